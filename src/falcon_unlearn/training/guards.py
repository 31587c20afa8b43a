"""Stop a run that has gone wrong, and say where."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError

_HINT = "Lower train.learning_rate (or train.relative_step), or set train.compute_dtype=float32."


def check_finite_loss(name: str, value: float, step: int) -> None:
    """Raise NumericalError when a loss is not finite."""
    if not math.isfinite(value):
        raise NumericalError(
            f"step {step}: the {name} loss is {value}; the run has diverged and nothing was written",
            hint=_HINT,
        )


def check_finite_tensors(kind: str, tensors: dict[str, Tensor], step: int) -> None:
    """Raise NumericalError naming the first tensor that holds a non-finite value."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(
                f"step {step}: the {kind} of {name} is not finite; "
                "the run has diverged and nothing was written",
                hint=_HINT,
            )


class NormGuard:
    """Detect a blow-up of forget activations relative to their frozen norm."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def check(self, updated_norm: float, frozen_norm: float, step: int) -> None:
        """Raise NumericalError when states grew beyond `factor` times their frozen norm."""
        if updated_norm > self.factor * max(frozen_norm, 1e-12):
            raise NumericalError(
                f"step {step}: forget states grew from norm {frozen_norm:.3g} to {updated_norm:.3g}, "
                f"beyond train.divergence_factor={self.factor:g}; nothing was written",
                hint="Lower train.learning_rate, or raise train.divergence_factor if this is intended.",
            )
