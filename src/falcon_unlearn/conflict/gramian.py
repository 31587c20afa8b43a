"""Inner products of two gradients, per tensor, per layer or over all tensors.

Everything later needs only these scalars, so a sharded trainer all-reduces one small matrix per step.
Shapes: S tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError, UsageError

Scope = Literal["tensor", "layer", "global"]
Reduce = Callable[[Tensor], Tensor]

# 8 MB of float64 at a time: a large tensor is never copied whole into the accumulation dtype.
_CHUNK_ELEMENTS = 1_000_000


class Gramian(NamedTuple):
    """Hold the inner products of a forget gradient and a retain gradient."""

    forget_forget: float
    forget_retain: float
    retain_retain: float


def cosine(gramian: Gramian) -> float | None:
    """Return the cosine of the two gradients (eq. 12), or None where one of them is zero."""
    norms = math.sqrt(gramian.forget_forget) * math.sqrt(gramian.retain_retain)
    if norms == 0.0:
        return None
    return max(-1.0, min(1.0, gramian.forget_retain / norms))


def compute_gramians(
    forget_gradients: Mapping[str, Tensor],
    retain_gradients: Mapping[str, Tensor],
    scope: Scope,
    *,
    layers: Mapping[str, int] | None = None,
    reduce: Reduce | None = None,
    accumulation_dtype: torch.dtype = torch.float64,
) -> dict[str, Gramian]:
    """Return the inner products of every group of tensors that `scope` forms.

    Args:
        forget_gradients: gradient of the forget loss by parameter name.
        retain_gradients: gradient of the retain loss, same names and shapes.
        scope: `tensor` (one group per name), `layer` (per layer index) or `global` (one group).
        layers: layer index of every name; required by `layer`.
        reduce: maps the table of scalars (S x 3) to the sum over all shards; identity by default.
        accumulation_dtype: dtype of products and sums; float32 where a device has no float64.

    Raises:
        UsageError: names or shapes differ, unknown scope, or a name without layer.
        NumericalError: a gradient holds NaN or infinity.
    """
    groups = group_names(forget_gradients, scope, layers)
    per_tensor = tensor_gramians(
        forget_gradients, retain_gradients, reduce=reduce, accumulation_dtype=accumulation_dtype
    )
    return {key: sum_gramians(per_tensor[name] for name in names) for key, names in groups.items()}


def group_names(
    names: Iterable[str], scope: Scope, layers: Mapping[str, int] | None = None
) -> dict[str, list[str]]:
    """Return the names of every group; keys are the name, `layer.<index>` or `global`."""
    if scope == "tensor":
        return {name: [name] for name in names}
    if scope == "global":
        return {"global": list(names)}
    if scope != "layer":
        raise UsageError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}.")
    groups: dict[str, list[str]] = {}
    for name in names:
        if layers is None or name not in layers:
            raise UsageError(
                f"scope 'layer' needs the layer of every tensor, but {name!r} has none.",
                hint="Pass layers={name: layer index}, or use scope 'tensor' or 'global'.",
            )
        groups.setdefault(f"layer.{layers[name]}", []).append(name)
    return groups


def tensor_gramians(
    forget_gradients: Mapping[str, Tensor],
    retain_gradients: Mapping[str, Tensor],
    *,
    reduce: Reduce | None = None,
    accumulation_dtype: torch.dtype = torch.float64,
) -> dict[str, Gramian]:
    """Return the inner products of every tensor; arguments and errors as in `compute_gramians`."""
    _check_same_tensors(forget_gradients, retain_gradients)
    rows = []
    for name, forget in forget_gradients.items():
        retain = retain_gradients[name]
        pairs = ((forget, forget), (forget, retain), (retain, retain))
        rows.append(torch.stack([_inner_product(*pair, accumulation_dtype) for pair in pairs]))
    table_S3 = torch.stack([row.to(rows[0].device) for row in rows])
    if reduce is not None:
        table_S3 = reduce(table_S3)
    # One transfer to the host for all tensors.
    gramians = {name: Gramian(*row) for name, row in zip(forget_gradients, table_S3.tolist(), strict=True)}
    broken = [name for name, gramian in gramians.items() if not all(map(math.isfinite, gramian))]
    if broken:
        raise NumericalError(
            f"the gradients of {len(broken)} tensor(s) are not finite, first {broken[0]!r}.",
            hint="Lower the learning rate, or compute in float32 (train.compute_dtype=float32).",
        )
    return gramians


def sum_gramians(gramians: Iterable[Gramian]) -> Gramian:
    """Return the inner products of concatenated tensors: inner products add up."""
    columns = zip(*gramians, strict=True)
    return Gramian(*(math.fsum(column) for column in columns))


def _check_same_tensors(
    forget_gradients: Mapping[str, Tensor], retain_gradients: Mapping[str, Tensor]
) -> None:
    if not forget_gradients:
        raise UsageError("no gradients were given.", hint="Check that some parameters are trainable.")
    different = sorted(forget_gradients.keys() ^ retain_gradients.keys())
    if different:
        raise UsageError(
            f"forget and retain gradients must name the same tensors; {different[0]!r} is in one only."
        )
    for name, forget in forget_gradients.items():
        retain = retain_gradients[name]
        if forget.shape != retain.shape:
            raise UsageError(
                f"forget and retain gradients of {name!r} have shapes "
                f"{tuple(forget.shape)} and {tuple(retain.shape)}."
            )


def _inner_product(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    first, second = first.detach().reshape(-1), second.detach().reshape(-1)
    total = torch.zeros((), dtype=dtype, device=first.device)
    for start in range(0, first.numel(), _CHUNK_ELEMENTS):
        part = slice(start, start + _CHUNK_ELEMENTS)
        total += torch.dot(first[part].to(dtype), second[part].to(dtype))
    return total
