"""Combine a forget gradient and a retain gradient into the update direction (eq. 12-14)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.conflict.gramian import (
    Gramian,
    Reduce,
    Scope,
    cosine,
    group_names,
    sum_gramians,
    tensor_gramians,
)
from falcon_unlearn.conflict.rules import CombinationWeights, Rule, conflicts, resolve_rule

_LARGEST_FLOAT32_WEIGHT = 1e30


@dataclass(frozen=True)
class ResolvedGradients:
    """Hold the combined gradients and what was decided.

    Attributes:
        gradients: update direction by parameter name, in the dtype of the forget gradient.
        cosines: cosine of the two gradients by parameter name, whatever the scope; None where one is zero.
        conflict_share: share of groups whose gradients oppose each other, 0 to 1.
        gramians: inner products by group.
        weights: factors of both gradients by group.
    """

    gradients: dict[str, Tensor]
    cosines: dict[str, float | None]
    conflict_share: float
    gramians: dict[str, Gramian]
    weights: dict[str, CombinationWeights]


def resolve_conflict(
    forget_gradients: Mapping[str, Tensor],
    retain_gradients: Mapping[str, Tensor],
    *,
    rule: str | Rule = "falcon",
    scope: Scope = "tensor",
    layers: Mapping[str, int] | None = None,
    conflict_weights: tuple[float, float] = (1.0, 1.0),
    aligned_weights: tuple[float, float] = (1.0, 1.0),
    reduce: Reduce | None = None,
    accumulation_dtype: torch.dtype = torch.float64,
    overwrite: bool = False,
) -> ResolvedGradients:
    """Combine two gradients of any pair of losses, group by group.

    Args:
        forget_gradients: gradient of the forget loss by parameter name.
        retain_gradients: gradient of the retain loss (multiplier included), same names and shapes.
        rule: `falcon`, `sum`, `pcgrad`, `mgda`, or a function from `Gramian` to `CombinationWeights`.
        scope: on what a conflict is decided: `tensor`, `layer` or `global`.
        layers: layer index of every name; required by scope `layer`.
        conflict_weights: alpha and beta of eq. 14 on conflict; `falcon` only.
        aligned_weights: alpha and beta elsewhere; `falcon` only.
        reduce: sums the table of inner products over shards.
        accumulation_dtype: dtype of the inner products.
        overwrite: write the result over the forget gradients, where they are wide enough.

    Raises:
        NumericalError: a gradient holds NaN or infinity.
        UsageError: names, shapes, rule or scope do not fit.
    """
    weigh = resolve_rule(rule, conflict_weights, aligned_weights)
    groups = group_names(forget_gradients, scope, layers)
    per_tensor = tensor_gramians(
        forget_gradients, retain_gradients, reduce=reduce, accumulation_dtype=accumulation_dtype
    )
    gramians = {key: sum_gramians(per_tensor[name] for name in names) for key, names in groups.items()}
    weights = {key: weigh(gramian) for key, gramian in gramians.items()}
    gradients = {
        name: _combine(forget_gradients[name], retain_gradients[name], weights[key], overwrite=overwrite)
        for key, names in groups.items()
        for name in names
    }
    return ResolvedGradients(
        gradients=gradients,
        cosines={name: cosine(gramian) for name, gramian in per_tensor.items()},
        conflict_share=sum(map(conflicts, gramians.values())) / len(gramians),
        gramians=gramians,
        weights=weights,
    )


def _combine(forget: Tensor, retain: Tensor, weights: CombinationWeights, *, overwrite: bool) -> Tensor:
    forget, retain = forget.detach(), retain.detach()
    # Half precision would round the projection away; it is used for the result only.
    wide = torch.promote_types(forget.dtype, torch.float32)
    if max(map(abs, weights)) > _LARGEST_FLOAT32_WEIGHT:
        # A retain gradient of denormal size has a weight beyond the range of float32.
        wide = torch.float64
    combined = forget.to(wide)
    if combined is forget and not overwrite:
        combined = forget.clone()
    combined.mul_(weights.forget_weight)
    combined.add_(retain.to(device=combined.device, dtype=wide), alpha=weights.retain_weight)
    return combined.to(forget.dtype)
