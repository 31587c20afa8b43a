"""Count what the audit's quick tier computes, without a clock: tokens and passes by attack, format and set.

    python benchmarks/audit_cost.py --label after

A small model of 201 invented facts, and the same trained to refuse, are audited with every attack of the
quick tier. A hook on the decoder counts the tokens of every forward pass, padding included, and whether it
learns. The model is small, but its prompts have the lengths of real ones (a token per word), so that shares
of tokens carry over. Adds the counts under the label to benchmarks/results/audit_cost.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import planted
import synthetic_world
from falcon_unlearn import __version__
from falcon_unlearn.audit import runner, session
from falcon_unlearn.audit.catalogue import ATTACKS, Entry
from falcon_unlearn.audit.gathering import AuditSources
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.runtime import RuntimeSettings
from falcon_unlearn.pipeline import AuditRequest, audit_models
from falcon_unlearn.results_audit import AuditResult

RESULT = Path(__file__).parent / "results" / "audit_cost.json"
PEOPLE = 67
"""Three facts each: 201 to forget."""
THREATS = ("benign", "rtt", "in-domain")
RUNGS = (4, 16)
"""Rungs that the quick tier's budget leaves SmolLM2-135M; the small model alone would get all four."""
TEMPLATE = "{% for message in messages %}Question {{ message['content'] }} {% endfor %}Answer"


@dataclass
class Counter:
    """Count tokens of forward passes under the label that is set."""

    label: tuple[str, ...] = ("", "", "", "")
    tokens: dict[tuple[str, ...], int] = field(default_factory=lambda: defaultdict(int))
    passes: dict[tuple[str, ...], int] = field(default_factory=lambda: defaultdict(int))

    def count(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count one pass of a decoder."""
        fed = kwargs.get("input_ids", args[0] if args else None)
        if fed is None:
            fed = kwargs["inputs_embeds"][..., 0]
        kind = "learning" if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() else "reading"
        self.tokens[(*self.label, kind)] += fed.numel()
        self.passes[(*self.label, kind)] += 1

    @contextmanager
    def under(self, **parts: str) -> Iterator[None]:
        """Count under another label."""
        kept = self.label
        names = ("model", "attack", "format", "set")
        self.label = tuple(parts.get(name, old) for name, old in zip(names, kept, strict=True))
        try:
            yield
        finally:
            self.label = kept


@contextmanager
def counted(counter: Counter) -> Iterator[None]:
    """Count all forward passes of an audit."""
    opened, score, choose, repeat = session.opened, runner.score, runner.Runner.choose, runner.Runner.repeat

    @contextmanager
    def counted_model(model: Any, **settings: Any) -> Iterator[Any]:
        with opened(model, **settings) as found, counter.under(model=model.role):
            handle = found.subject.model.model.register_forward_pre_hook(counter.count, with_kwargs=True)
            yield found
            handle.remove()

    def counted_score(subject: Any, facts: Sequence[Any], attacked: Any, formats: Any, *rest: Any) -> Any:
        with counter.under(format="+".join(formats), set=f"{facts[0].id.split('-')[0]}"):
            return score(subject, facts, attacked, formats, *rest)

    def counted_choice(self: Any, opened: Any, attack: Any, formats: Any) -> Any:
        with counter.under(attack=attack.name, format="making"):
            return choose(self, opened, attack, formats)

    def counted_repeat(self: Any, opened: Any, run: Any) -> None:
        with counter.under(attack=run.attack.name, format="making"):
            repeat(self, opened, run)

    session.opened, runner.score = counted_model, counted_score
    runner.Runner.choose, runner.Runner.repeat = counted_choice, counted_repeat
    try:
        yield
    finally:
        session.opened, runner.score = opened, score
        runner.Runner.choose, runner.Runner.repeat = choose, repeat


def prepare(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Train original and unlearned model, unless they are there; write the facts."""
    synthetic_world.NUM_FORGET = PEOPLE
    world = synthetic_world.World()
    original, unlearned = folder / "original", folder / "unlearned"
    tokenizer = world.tokenizer()
    tokenizer.chat_template = TEMPLATE
    if not (unlearned / "config.json").is_file():
        model = synthetic_world.new_model(world)
        synthetic_world.train(model, world, [*world.forget, *world.retain], letters=False)
        model.save_pretrained(original)
        planted.refusal(model.requires_grad_(True), world)
        model.save_pretrained(unlearned)
    for place in (original, unlearned):
        tokenizer.save_pretrained(place)
    return original, unlearned, *world.write_facts(folder)


def audited(folder: Path, counter: Counter) -> AuditResult:
    """Audit with the quick tier."""
    original, unlearned, forget, retain = prepare(folder)
    for threat in THREATS:
        ATTACKS[f"relearning-{threat}"] = Entry(
            "relearning", "Relearning", {"threat": threat, "rungs": RUNGS}
        )
    request = AuditRequest(
        original=str(original),
        unlearned=str(unlearned),
        sources=AuditSources(
            forget=(CorpusSettings(name="forget", path=str(forget)),),
            retain=(CorpusSettings(name="retain", path=str(retain)),),
        ),
        settings=AuditSettings(tier="quick", items=3 * PEOPLE, resamples=200),
        model=ModelSettings(name=str(original)),
        runtime=RuntimeSettings(device="cpu", threads=1),
    )
    with counted(counter), tempfile.TemporaryDirectory() as output:
        return audit_models(request, Path(output))


def table(counter: Counter, place: int) -> dict[str, dict[str, int]]:
    """Sum by one part of the label."""
    found: dict[str, dict[str, int]] = {}
    for label, tokens in counter.tokens.items():
        name = (f"{label[1]}: {label[2]}" if place == -1 else label[place]) or "none"
        row = found.setdefault(name, {"tokens": 0, "learning_tokens": 0, "passes": 0})
        row["tokens" if label[-1] == "reading" else "learning_tokens"] += tokens
        row["passes"] += counter.passes[label]
    return found


def summary(counter: Counter, result: AuditResult) -> dict[str, Any]:
    """Return what is kept."""
    tokens = {
        kind: sum(n for k, n in counter.tokens.items() if k[-1] == kind) for kind in ("reading", "learning")
    }
    return {
        "package_version": __version__,
        "facts": {s.role: {"selection": s.selection, "report": s.report} for s in result.sets},
        "verdict": result.verdict,
        "chosen": {f"{a.attack}, {a.format}": a.variant for a in result.attacks},
        "tokens": tokens["reading"],
        "learning_tokens": tokens["learning"],
        "passes": sum(counter.passes.values()),
        "by_attack": table(counter, 1),
        "by_format": table(counter, 2),
        "by_model": table(counter, 0),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--label", required=True, help="under which the counts are kept")
    parser.add_argument("--work", type=Path, help="keeps the models; a temporary folder without it")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    counter = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = summary(counter, audited(folder, counter))
    kept = json.loads(chosen.result.read_text()) if chosen.result.is_file() else {}
    kept[chosen.label] = found
    chosen.result.write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("tokens", "learning_tokens", "passes")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
