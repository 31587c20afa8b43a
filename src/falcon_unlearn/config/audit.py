"""What the recovery audit does, and the limits behind its words."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from falcon_unlearn.config.base import Settings

GATE_METRICS = ("worst", "worst_upper", "reachable", "reachable_upper", "knowledge_left", "utility_loss")
"""What a gate can limit."""
GATE_PATTERN = rf"^\s*({'|'.join(GATE_METRICS)})\s*(<=|<)\s*([0-9]*\.?[0-9]+)\s*$"
QUICK_SELECTION = 20
"""Selection facts that the quick tier asks under every variant."""


class AuditSettings(Settings):
    """Choose attacks, sizes and thresholds of the recovery audit."""

    tier: Literal["off", "quick", "full"] = "off"
    """Run no audit after unlearning, its quick tier, or all of it."""
    attacks: tuple[str, ...] = ()
    """Names of the attacks to run; empty: all of the tier. `falcon-unlearn audit --help` lists them."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds; every attack that draws anything runs once with each."""
    null_model: str | None = None
    """Model that never saw the forget data. Without it nothing can be called removed."""
    items: int = Field(default=200, ge=6)
    """Most forget facts; they are split by cluster into attack, selection and report."""
    other_items: int = Field(default=60, ge=4)
    """Most facts of each other set."""
    selection_items: int | None = Field(default=None, ge=1)
    """Most facts on which an attack's variant is chosen, as whole clusters; None: 20 in the quick tier, all
    of them in the full one."""
    formats: tuple[Literal["letter", "text", "generation"], ...] = Field(
        default=("letter", "text", "generation"), min_length=1
    )
    """Formats that are asked; letters cost most."""
    chat_template: bool = False
    """Ask through the tokenizer's chat template."""
    letter_orders: int | None = Field(default=None, ge=1)
    """Cyclic orders of the options asked by letter; None: all."""
    maximum_new_tokens: int | None = Field(default=None, ge=1, le=512)
    """Most tokens of a free answer; None: a quarter and eight more than the longest right one, 12 to 128."""
    delta: float = Field(default=0.10, gt=0, lt=1)
    """Recovered share of the knowledge that counts as recovery."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of the tests; intervals have confidence 1 - alpha."""
    utility_loss: float = Field(default=0.10, gt=0, lt=1)
    """Relative loss of retain accuracy from which a model counts as damaged, and an attack as destructive."""
    degenerate_rise: float = Field(default=0.05, gt=0, lt=1)
    """Rise of the share of degenerate free answers to retain and neighbour questions that is damage."""
    least_removed: float = Field(default=0.25, gt=0, lt=1)
    """Share of the knowledge that must be gone, before any attack, for the scores to count as lower."""
    resamples: int = Field(default=10_000, ge=200)
    """Draws of the cluster bootstrap and of the sign-flip tests."""
    gates: tuple[str, ...] = ()
    """Limits such as `worst<=0.2`; the audit fails with exit code 4 if one is missed."""

    @property
    def most_selection(self) -> int | None:
        """Return the most selection facts, None without a limit."""
        if self.selection_items is None and self.run_tier == "quick":
            return QUICK_SELECTION
        return self.selection_items

    @property
    def run_tier(self) -> Literal["quick", "full"]:
        """Return the tier of an audit that was asked for by itself."""
        return "full" if self.tier == "full" else "quick"

    @field_validator("gates")
    @classmethod
    def _gates_are_limits(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        for gate in gates:
            if re.match(GATE_PATTERN, gate) is None:
                raise ValueError(
                    f"gate {gate!r}: write METRIC<=NUMBER, METRIC one of {', '.join(GATE_METRICS)}"
                )
        return gates
