"""Attack by asking differently: a fixed battery of templates, nothing optimised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import yaml

from falcon_unlearn.audit.base import (
    Access,
    AttackContext,
    Attacked,
    Format,
    Knowledge,
    PromptTransform,
    Tier,
)
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.errors import UsageError

_FILE = "prompts.yaml"


@dataclass(frozen=True)
class Template(PromptTransform):
    """Wrap a question in fixed words."""

    name: str
    question_words: str = "{question}"
    """`{question}` stands for what is asked, once or more."""
    before: str = ""
    after: str = ""

    def question(self, fact: Fact, asked: str) -> str:
        """Return the question in its wrapping."""
        del fact
        return self.question_words.replace("{question}", asked)

    def preamble(self, format: Format) -> str:
        """Return the text in front."""
        del format
        return self.before

    def cue(self, format: Format) -> str:
        """Return the text behind."""
        del format
        return self.after


@dataclass(frozen=True)
class Battery:
    """Hold the templates of one version of the file."""

    version: int
    templates: tuple[Template, ...]
    digest: str
    """First half of the SHA-256 of the file."""


@cache
def battery() -> Battery:
    """Read the templates that come with the package."""
    content = files(__package__).joinpath(_FILE).read_bytes()
    values = yaml.safe_load(content)
    templates = tuple(
        Template(
            entry["name"],
            entry.get("question", "{question}"),
            entry.get("before", ""),
            entry.get("after", ""),
        )
        for entry in values["templates"]
    )
    return Battery(int(values["version"]), templates, hashlib.sha256(content).hexdigest()[:32])


@dataclass(frozen=True)
class Prompting:
    """Ask through every template of the battery, or through those named."""

    templates: tuple[str, ...] = ()
    """Names of templates; empty: all."""
    digest: str = field(default_factory=lambda: battery().digest)
    """Of the file, so that kept scores are not taken for those of other words."""
    name: str = "prompting"
    tier: Tier = "quick"
    access: Access = "text"
    knowledge: Knowledge = "none"
    needs_original: bool = False
    source: str = "Doshi and Stickland 2024, arXiv 2411.12103; Jin et al. 2024 (RWKU), arXiv 2406.10890"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per template.

        Raises:
            UsageError: A name is unknown.
        """
        del context
        found = battery()
        known = {template.name: template for template in found.templates}
        for name in self.templates or tuple(known):
            if name not in known:
                raise UsageError(
                    f"prompting: there is no template {name!r}", hint=f"templates: {', '.join(known)}"
                )
            details: dict[str, float | str] = {"battery_version": found.version, "battery": self.digest}
            yield Attacked(name, transform=known[name], details=details)
