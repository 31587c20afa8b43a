"""Attack by rounding the weights: an edit smaller than half a step vanishes, and knowledge comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.audit.attacks.matrices import block_matrices, count_changed, edited_matrices
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Knowledge, Tier
from falcon_unlearn.events import Notice
from falcon_unlearn.linalg.quantisation import (
    FP4_LEVELS,
    NF4_LEVELS,
    Grid,
    IntegerGrid,
    TableGrid,
    edit_histogram,
    rounded,
    shared_codes,
)
from falcon_unlearn.models.engine import tensors_replaced

GRIDS: dict[str, Grid] = {
    "int8-channel": IntegerGrid(8),
    "int4-channel": IntegerGrid(4),
    "int4-group-32": IntegerGrid(4, 32),
    "int4-group-64": IntegerGrid(4, 64),
    "int4-group-128": IntegerGrid(4, 128),
    "nf4-64": TableGrid(NF4_LEVELS),
    "fp4-64": TableGrid(FP4_LEVELS),
}
QUICK = ("int8-channel", "int4-channel", "int4-group-32", "nf4-64")
_BORDERS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Quantisation:
    """Quantise and dequantise every matrix inside the blocks, scheme by scheme.

    The model computes with exactly the numbers of a weight-only scheme. No matrix is skipped: the last group
    of a row may be shorter. With the original at hand, `bucket_overlap` (rho_b) is the share of weights in
    edited matrices that the edit leaves in their bucket of the original's grid.
    """

    schemes: tuple[str, ...] | None = None
    """Keys of `GRIDS`; None: four in the quick tier, all in the full one."""
    name: str = "quantisation"
    tier: Tier = "quick"
    access: Access = "weights"
    knowledge: Knowledge = "none"
    needs_original: bool = False
    source: str = "Zhang et al. 2024, arXiv 2410.16454"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per scheme."""
        schemes = self.schemes or (tuple(GRIDS) if context.tier == "full" else QUICK)
        model = context.subject.model
        matrices = block_matrices(model, context.structure)
        edited = edited_matrices(matrices, context.original or {})
        for scheme in schemes:
            grid = GRIDS[scheme]
            replacements = {name: rounded(value.detach(), grid) for name, value in matrices.items()}
            changed = count_changed(matrices, replacements)
            if changed < len(matrices):
                context.sink(_unchanged(scheme, len(matrices) - changed, len(matrices)))
            details: dict[str, float | str] = {"matrices": len(matrices), "changed_matrices": changed}
            details |= overlap_details(edited, grid)
            with tensors_replaced(model, replacements):
                yield Attacked(scheme, details=details, again=partial(_rounded, model, matrices, grid))


def _rounded(model: Any, matrices: dict[str, nn.Parameter], grid: Grid) -> AbstractContextManager[None]:
    return tensors_replaced(model, {name: rounded(value.detach(), grid) for name, value in matrices.items()})


def _unchanged(scheme: str, unchanged: int, total: int) -> Notice:
    return Notice(
        message=f"{scheme}: {unchanged} of {total} matrices lie on the grid already, so rounding says "
        "nothing about them",
        level="warning",
    )


def overlap_details(edited: dict[str, tuple[Tensor, Tensor]], grid: Grid) -> dict[str, float]:
    """Return the bucket overlap over edited matrices, and for integer grids how large edits are in steps.

    `edits_below_B` is the share of weights whose edit is smaller than B steps of the original's grid.
    """
    total = sum(after.numel() for after, _ in edited.values())
    if not total:
        return {}
    shared = sum(shared_codes(after, before, grid) for after, before in edited.values())
    details = {"edited_matrices": float(len(edited)), "bucket_overlap": shared / total}
    if isinstance(grid, IntegerGrid):
        counts = torch.zeros(len(_BORDERS) + 1, dtype=torch.int64)
        for after, before in edited.values():
            counts += torch.tensor(edit_histogram(after, before, grid, _BORDERS))
        shares = (counts.cumsum(0)[:-1] / total).tolist()
        details |= {f"edits_below_{border:g}": share for border, share in zip(_BORDERS, shares, strict=True)}
    return details
