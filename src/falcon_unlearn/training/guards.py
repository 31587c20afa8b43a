"""Stop a run that has gone wrong, and say where."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import EventSink, Notice

FIRST_LOSSES = 5
"""Steps whose median is the initial loss."""
PATIENCE = 10
"""Steps in a row above the limit before the loss counts as diverged."""
SILENT_STEPS = 3
"""Steps in a row without a retain gradient before that is told."""
_HINT = "Lower train.learning_rate (or train.relative_step), or set train.compute_dtype=float32."


def check_finite_loss(name: str, value: float, step: int) -> None:
    """Raise NumericalError when a loss is not finite."""
    if not math.isfinite(value):
        raise NumericalError(
            f"step {step}: the {name} loss is {value}; the run has diverged and nothing was written",
            hint=_HINT,
        )


def check_finite_tensors(kind: str, tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise NumericalError naming the first tensor that holds a non-finite value."""
    for name, tensor in tensors.items():
        if tensor.numel() and not math.isfinite(_largest(tensor)):
            raise NumericalError(
                f"step {step}: the {kind} of {name} is not finite; "
                "the run has diverged and nothing was written",
                hint=_HINT,
            )


def _largest(tensor: Tensor) -> float:
    """Return the largest magnitude, in one pass without a copy; a NaN or an infinity always wins."""
    norm: Any = torch.linalg.vector_norm(tensor.float(), math.inf)
    # Shards of several processes are judged together, so that all of them stop.
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def check_finite_optimizer(optimizer: Optimizer, names: Sequence[str], step: int) -> None:
    """Raise NumericalError when a moment is not finite: an infinite one silently freezes its weight."""
    tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, tensors, strict=True):
        state = optimizer.state.get(parameter, {})
        moments = {f"{name} ({key})": value for key, value in state.items() if isinstance(value, Tensor)}
        check_finite_tensors("optimizer state", moments, step)


def check_loss_growth(losses: Sequence[float], factor: float) -> None:
    """Raise NumericalError when the last `PATIENCE` losses exceed `factor` times the initial median.

    Losses that start at or below zero, as those of gradient ascent do, have no such limit.
    """
    if len(losses) < FIRST_LOSSES + PATIENCE:
        return
    initial = statistics.median(losses[:FIRST_LOSSES])
    if initial > 0 and min(losses[-PATIENCE:]) > factor * initial:
        raise NumericalError(
            f"step {len(losses) - 1}: the forget loss has been above {factor:g} times its initial median "
            f"{initial:.3g} for {PATIENCE} steps; the run has diverged and nothing was written",
            hint="Lower train.learning_rate, or raise train.loss_factor if this is intended.",
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


class RetainGuard:
    """Tell once when the retain loss pulls at nothing: then it protects nothing."""

    def __init__(self, multiplier: float) -> None:
        self._silent = 0
        self._armed = multiplier > 0

    def note(self, retain_retain: float, step: int, sink: EventSink) -> None:
        """Take the squared norm of a step's retain gradient; the first step of a run has none by nature."""
        self._silent = self._silent + 1 if retain_retain == 0.0 and step > 0 else 0
        if self._armed and self._silent == SILENT_STEPS:
            self._armed = False
            words = (
                f"step {step}: the retain gradient has been zero for {SILENT_STEPS} steps, so nothing holds "
                "the retain text. Either nothing moves (see train.learning_rate), or the trained tensors do "
                "not act on the retain states (see train.modules and train.layers)"
            )
            sink(Notice(message=words, level="warning"))
