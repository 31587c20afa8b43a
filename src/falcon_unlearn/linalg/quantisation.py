"""Round weights to few levels and back, without packing: the numbers a weight-only scheme computes with.

Shapes: ... x I weight (I inputs), G groups along the inputs (or the flattened tensor), g values per group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from falcon_unlearn.errors import UsageError

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip
"""Quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E)."""
_FP4_POSITIVE = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
FP4_LEVELS = tuple(sorted({sign * value / 12.0 for value in _FP4_POSITIVE for sign in (-1.0, 1.0)}))
"""Four-bit floats as bitsandbytes defines them, its default for `load_in_4bit`."""


class Grid(Protocol):
    """Map weights to codes on a grid that follows the largest value of each group."""

    def scales(self, weight: Tensor) -> Tensor:
        """Return one float32 scale per group."""

    def codes(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return the code of every weight on the grid that `scales` define, int16, in the weight's shape."""

    def values(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the float32 values of codes, in their shape."""


@dataclass(frozen=True)
class IntegerGrid:
    """Round to nearest, symmetric: s = max|w| / (2^(b-1) - 1), code = round(w / s), between +-2^(b-1).

    Half goes to the even code, as in torch. The last group of a row may be shorter than the others.
    """

    bits: int
    group: int | None = None
    """Inputs that share a scale; None: all inputs of an output channel."""

    def __post_init__(self) -> None:
        """Refuse grids without two sides."""
        if not 2 <= self.bits <= 8 or (self.group is not None and self.group < 1):
            raise UsageError(f"an integer grid needs 2 to 8 bits and groups of 1 or more, got {self}")

    def scales(self, weight: Tensor) -> Tensor:
        """Return ... x G scales; a group of zeros gets 1."""
        largest = _grouped(weight.float(), self._width(weight)).abs().amax(dim=-1)
        return torch.where(largest > 0, largest / (2 ** (self.bits - 1) - 1), 1.0)

    def codes(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return codes from -2^(b-1) to 2^(b-1) - 1."""
        limit = 2 ** (self.bits - 1)
        ratios = weight.float() / self.steps(weight, scales)
        return ratios.round().clamp(-limit, limit - 1).to(torch.int16)

    def values(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return code times scale."""
        return codes.float() * self.steps(codes, scales)

    def steps(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return the distance between neighbouring levels at every weight, in the weight's shape."""
        width = self._width(weight)
        return scales.repeat_interleave(width, dim=-1)[..., : weight.shape[-1]]

    def _width(self, weight: Tensor) -> int:
        return min(self.group or weight.shape[-1], weight.shape[-1])


@dataclass(frozen=True)
class TableGrid:
    """Round to the nearest entry of a table, after division by the largest magnitude of each block.

    Blocks run over the flattened tensor, as in bitsandbytes.
    """

    levels: Sequence[float]
    """Ascending, between -1 and 1."""
    block: int = 64

    def scales(self, weight: Tensor) -> Tensor:
        """Return one scale per block; a block of zeros gets 1."""
        largest = _grouped(weight.float().flatten(), self.block).abs().amax(dim=-1)
        return torch.where(largest > 0, largest, 1.0)

    def codes(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return indices into the table."""
        table = torch.tensor(self.levels, device=weight.device)
        borders = (table[1:] + table[:-1]) / 2
        return torch.bucketize(weight.float() / self._spread(weight, scales), borders).to(torch.int16)

    def values(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return table entry times scale."""
        return torch.tensor(self.levels, device=codes.device)[codes.long()] * self._spread(codes, scales)

    def _spread(self, weight: Tensor, scales: Tensor) -> Tensor:
        return scales.repeat_interleave(self.block)[: weight.numel()].view(weight.shape)


def _grouped(weight: Tensor, width: int) -> Tensor:
    """Return ... x G x g, zeros filling the last group."""
    count = math.ceil(weight.shape[-1] / width)
    padded = torch.nn.functional.pad(weight, (0, count * width - weight.shape[-1]))
    return padded.reshape(*weight.shape[:-1], count, width)


def rounded(weight: Tensor, grid: Grid) -> Tensor:
    """Return the weight after rounding to the grid, in its own dtype and shape."""
    scales = grid.scales(weight)
    return grid.values(grid.codes(weight, scales), scales).to(weight.dtype)


def shared_codes(edited: Tensor, original: Tensor, grid: Grid) -> int:
    """Count the weights that an edit leaves in their bucket of the original's grid.

    Divided by the number of weights this is the bucket overlap rho_b: near 1, rounding reverts the edit.
    """
    scales = grid.scales(original)
    return int((grid.codes(edited, scales) == grid.codes(original, scales)).sum())


def edit_histogram(
    edited: Tensor, original: Tensor, grid: IntegerGrid, borders: Sequence[float]
) -> list[int]:
    """Count |edit| / step of the original's grid between ascending borders, from below the first."""
    steps = grid.steps(original, grid.scales(original))
    ratios = (edited.float() - original.float()).abs() / steps
    places = torch.bucketize(ratios.flatten(), torch.tensor(borders, device=ratios.device), right=True)
    counts: list[int] = torch.bincount(places, minlength=len(borders) + 1).tolist()
    return counts
