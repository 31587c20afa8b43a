"""What training hands to an objective, and what an objective must offer.

Legend: B batch, L tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class StateBatch:
    """Hold the frozen side of one batch; the updated states come from the window."""

    frozen_BLD: Tensor
    """Output of the unchanged window."""
    mask_BL: Tensor
    """Real tokens, boolean."""
    counted_BL: Tensor
    """Tokens that the forget loss counts: real, of an answer if so asked, no attention sink."""
    sinks_BL: Tensor
    """Attention sinks, boolean."""
    samples: tuple[int, ...]
    """Index of each row in its corpus."""
    domain: int
    """Index of the forget domain; -1 for retain batches."""
    step: int
    """Optimisation step, 0-based."""


class RepresentationObjective(Protocol):
    """Turn the states leaving the window into two losses. Implementations hold no model."""

    def forget_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Return the scalar to minimise on forget data."""

    def retain_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Return the scalar to minimise on retain data, multiplier excluded."""
