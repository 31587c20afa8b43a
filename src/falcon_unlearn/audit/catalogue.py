"""The attacks by name: a literal table of where each is defined, imported when it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

from falcon_unlearn.audit.base import Attack
from falcon_unlearn.errors import UsageError

Tier = Literal["quick", "full"]


@dataclass(frozen=True)
class Entry:
    """Say where an attack is defined."""

    module: str
    """Below `falcon_unlearn.audit.attacks`."""
    name: str
    """Class."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class."""

    def build(self) -> Attack:
        """Import and build the attack."""
        module = importlib.import_module(f"falcon_unlearn.audit.attacks.{self.module}")
        attack: Attack = getattr(module, self.name)(**self.settings)
        return attack


ATTACKS: dict[str, Entry] = {
    "wording": Entry("wording", "Wording"),
    "logit-lens": Entry("logit_lens", "LogitLens"),
    "tuned-lens": Entry("tuned_lens", "TunedLens"),
    "linear-probe": Entry("linear_probe", "LinearProbe"),
    "quantisation": Entry("quantisation", "Quantisation"),
    "pruning": Entry("pruning", "Pruning"),
    "set-difference-pruning": Entry("set_difference", "SetDifferencePruning"),
    "direction-original": Entry("direction_ablation", "DirectionAblation", {"against": "original"}),
    "direction-retain": Entry("direction_ablation", "DirectionAblation", {"against": "retain"}),
    "checkpoint-difference": Entry("checkpoint_difference", "CheckpointDifference"),
    "prompting": Entry("prompting", "Prompting"),
    "few-shot-retain": Entry("few_shot", "FewShot", {"kind": "retain"}),
    "few-shot-forget": Entry("few_shot", "FewShot", {"kind": "forget"}),
    "paraphrase": Entry("paraphrase", "Paraphrase"),
    "encoding": Entry("encoding", "Encoding"),
    "sampling": Entry("sampling", "Sampling"),
    "relearning-benign": Entry("relearning", "Relearning", {"threat": "benign"}),
    "relearning-rtt": Entry("relearning", "Relearning", {"threat": "rtt"}),
    "relearning-in-domain": Entry("relearning", "Relearning", {"threat": "in-domain"}),
    "relearning-sweep-benign": Entry("relearning_sweep", "RelearningSweep", {"threat": "benign"}),
    "relearning-sweep-in-domain": Entry("relearning_sweep", "RelearningSweep", {"threat": "in-domain"}),
    "gcg": Entry("gcg", "Gcg"),
    "enhanced-gcg": Entry("enhanced_gcg", "EnhancedGcg"),
    "soft-prompt": Entry("soft_prompt", "SoftPrompt"),
    "latent": Entry("latent", "Latent"),
}
"""Name to entry; the order is that of tables."""


def chosen_attacks(names: tuple[str, ...], tier: Tier) -> list[Attack]:
    """Build the named attacks; without names, all of the tier.

    Raises:
        UsageError: There is no such attack.
    """
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise UsageError(f"attack: got {unknown[0]!r}, allowed are {', '.join(ATTACKS)}")
    if names:
        return [ATTACKS[name].build() for name in dict.fromkeys(names)]
    built = [entry.build() for entry in ATTACKS.values()]
    return [attack for attack in built if tier == "full" or attack.tier == "quick"]
