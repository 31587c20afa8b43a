"""What training hands to an objective, and what an objective must offer.

Legend: B batch, L tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
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
    whole: StateBatch | None = None
    """The whole batch, where the rows above are a part of it: those of one rank, if the objective asked for
    it, or those of one part of a step."""
    positions: tuple[int, ...] = ()
    """Position of each row in `whole`."""

    @property
    def entire(self) -> StateBatch:
        """Return the batch of all ranks."""
        return self.whole or self

    def part(self, rows: Sequence[int]) -> StateBatch:
        """Return some of the rows, at the same length, with the whole batch for targets and negatives."""
        chosen = list(rows)
        positions = chosen if self.whole is None else [self.positions[row] for row in chosen]
        return StateBatch(
            self.frozen_BLD[chosen],
            self.mask_BL[chosen],
            self.counted_BL[chosen],
            self.sinks_BL[chosen],
            tuple(self.samples[row] for row in chosen),
            self.domain,
            self.step,
            self.entire,
            tuple(positions),
        )

    def own_rows(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the own rows of a tensor over the batch of all ranks, along `dim`."""
        if self.whole is None:
            return tensor
        return tensor.index_select(dim, torch.tensor(self.positions, device=tensor.device))


class RepresentationObjective(Protocol):
    """Turn the states leaving the window into two losses. Implementations hold no model.

    The forget loss is a mean over `counted_BL`, the retain loss one over `mask_BL`: ranks that hold parts of
    a batch weight theirs by these counts.
    """

    @property
    def needs_whole_batch(self) -> bool:
        """Tell whether targets or negatives depend on rows of other ranks."""

    def forget_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Return the scalar to minimise on forget data."""

    def retain_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Return the scalar to minimise on retain data, multiplier excluded."""
