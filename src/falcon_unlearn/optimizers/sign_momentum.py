"""Sign of the momentum as update direction: every weight moves by the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from falcon_unlearn.optimizers.checks import check_fraction, check_not_negative, check_rate


class SignMomentum(Optimizer):
    """Step by the sign of an exponential average of the gradient.

    m <- momentum * m + (1 - momentum) * g;  theta <- (1 - lr * weight_decay) * theta - lr * sign(m).
    This is what the `reference` optimizer does in practice, without its curvature term. A weight whose
    average is exactly zero stays.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        """Set the hyperparameters.

        Raises:
            UsageError: a value outside its range.
        """
        check_rate(lr)
        check_fraction(momentum, "momentum")
        check_not_negative(weight_decay, "weight_decay")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; return the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, float]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        momentum: Tensor = state["momentum"]
        momentum.mul_(group["momentum"]).add_(gradient, alpha=1.0 - group["momentum"])
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(momentum.sign(), alpha=-group["lr"])
