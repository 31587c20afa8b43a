"""Optimizers by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch.optim.optimizer import Optimizer

from falcon_unlearn.errors import UsageError
from falcon_unlearn.optimizers.checks import check_fraction, check_not_negative, check_rate
from falcon_unlearn.optimizers.sign_momentum import SignMomentum
from falcon_unlearn.optimizers.sophia_reference import SophiaReference

OPTIMIZERS = ("adamw", "sgd", "sign_momentum", "sophia_reference")


def build_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter] | Iterable[torch.Tensor],
    learning_rate: float,
    *,
    weight_decay: float | None = None,
    momentum: float | None = None,
) -> Optimizer:
    """Build an optimizer over `parameters`, usually float32 masters.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: tensors to update.
        learning_rate: step size.
        weight_decay: decoupled decay (added to the gradient by `sgd`). None means 0, and 1e-3 for
            `sophia_reference`: decay would move weights that the data leave alone.
        momentum: first-moment coefficient. None means 0.9 (`adamw`, `sign_momentum`), 0 (`sgd`) and 0.965
            (`sophia_reference`).

    Raises:
        UsageError: unknown name, no parameters, or a value outside its range.
    """
    tensors = list(parameters)
    if name not in OPTIMIZERS:
        close = difflib.get_close_matches(name, OPTIMIZERS, n=1)
        raise UsageError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}.",
            hint=f"Did you mean {close[0]!r}?" if close else None,
        )
    if not tensors:
        raise UsageError("there are no parameters to train.", hint="Check train.layers and train.modules.")
    check_rate(learning_rate)
    check_not_negative(weight_decay or 0.0, "weight_decay")
    check_fraction(momentum or 0.0, "momentum")
    if name == "sophia_reference":
        return SophiaReference(
            tensors,
            lr=learning_rate,
            betas=(0.965 if momentum is None else momentum, 0.99),
            weight_decay=1e-3 if weight_decay is None else weight_decay,
        )
    decay = weight_decay or 0.0
    if name == "sgd":
        return torch.optim.SGD(tensors, lr=learning_rate, momentum=momentum or 0.0, weight_decay=decay)
    beta1 = 0.9 if momentum is None else momentum
    if name == "sign_momentum":
        return SignMomentum(tensors, lr=learning_rate, momentum=beta1, weight_decay=decay)
    return torch.optim.AdamW(tensors, lr=learning_rate, betas=(beta1, 0.999), weight_decay=decay)
