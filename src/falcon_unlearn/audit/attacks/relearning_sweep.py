"""Attack by several recipes of relearning: a claim that holds for one recipe holds for that recipe."""

from __future__ import annotations

from dataclasses import dataclass

from falcon_unlearn.audit.attacks.relearning import Relearning
from falcon_unlearn.audit.base import Tier


@dataclass(frozen=True)
class RelearningSweep(Relearning):
    """Run the ladder at two learning rates, with adapters and on all weights; few rungs.

    The variant that is reported is chosen on the selection facts, and an attack that destroys the model does
    not count, so this is the worst case over recipes under a utility limit.
    """

    rungs: tuple[int, ...] | None = (8, 32, 128, 256)
    relative_steps: tuple[float, ...] = (0.001, 0.01)
    tier: Tier = "full"

    @property
    def source(self) -> str:
        """Return where sweeps of recipes come from."""
        return "Che et al. 2025, arXiv 2502.05209"

    @property
    def name(self) -> str:
        """Return the name with its threat model."""
        return f"relearning-sweep-{self.threat}"
