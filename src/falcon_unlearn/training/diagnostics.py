"""Measure what a step did to hidden states, over the rows of all ranks.

Legend: B batch, L tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.losses import retention_loss

SumValues = Callable[[Sequence[float]], list[float]]
"""Sums numbers over all ranks."""


@torch.no_grad()
def state_diagnostics(
    forget_BLD: Tensor,
    forget: StateBatch,
    retain_BLD: Tensor,
    retain: StateBatch,
    sum_values: SumValues = list,
) -> dict[str, float]:
    """Measure norms of updated states by token class, and how far retain states moved.

    Returns:
        forget_norm, forget_norm_frozen (counted tokens), retain_norm (real tokens but sinks), sink_norm
        (sinks of both batches, 0 when there are none), retain_drift, the mean of
        norm(change) / norm(frozen), and retain_cosine_distance, the mean of 1 - cosine that
        train.maximum_retain_drift bounds, both over all real retain tokens.

    Raises:
        NumericalError: A state is not finite.
    """
    if not bool(torch.isfinite(forget_BLD).all()) or not bool(torch.isfinite(retain_BLD).all()):
        raise NumericalError(
            f"step {forget.step}: a hidden state is not finite; the run has diverged and nothing was written",
            hint="Lower train.learning_rate.",
        )
    ordinary_BL = retain.mask_BL.bool() & ~retain.sinks_BL
    change_BL = (retain_BLD.float() - retain.frozen_BLD.float()).norm(dim=-1)
    relative_BL = change_BL / retain.frozen_BLD.float().norm(dim=-1).clamp_min(1e-12)
    sinks = torch.cat([_norms(forget_BLD, forget.sinks_BL), _norms(retain_BLD, retain.sinks_BL)])
    return _means(
        {
            "forget_norm": _norms(forget_BLD, forget.counted_BL),
            "forget_norm_frozen": _norms(forget.frozen_BLD, forget.counted_BL),
            "retain_norm": _norms(retain_BLD, ordinary_BL),
            "sink_norm": sinks,
            "retain_drift": relative_BL[retain.mask_BL.bool()],
        },
        sum_values,
    ) | {"retain_cosine_distance": retain_distance(retain_BLD, retain, sum_values)}


@torch.no_grad()
def retain_distance(retain_BLD: Tensor, retain: StateBatch, sum_values: SumValues = list) -> float:
    """Return the mean of 1 - cosine over all real retain tokens of all ranks."""
    count = int(retain.mask_BL.sum())
    local = float(retention_loss(retain_BLD, retain.frozen_BLD, retain.mask_BL))
    total, tokens = sum_values([local * count, count])
    return total / max(1.0, tokens)


def _means(groups: dict[str, Tensor], sum_values: SumValues) -> dict[str, float]:
    """Average every group over all ranks; 0 where it is empty."""
    sums = [float(values.double().sum()) for values in groups.values()]
    counts = [float(values.numel()) for values in groups.values()]
    summed = sum_values([*sums, *counts])
    return {
        name: total / max(1.0, count)
        for name, total, count in zip(groups, summed[: len(sums)], summed[len(sums) :], strict=True)
    }


def _norms(states_BLD: Tensor, chosen_BL: Tensor) -> Tensor:
    norms: Tensor = states_BLD[chosen_BL.bool()].float().norm(dim=-1)
    return norms
