"""The update that the released FALCON code really performs: a Sophia variant that behaves like sign momentum.

It is not the published Sophia: the curvature is the square of the gradient just applied, it is refreshed at
every step, the momentum average is updated twice per step, and a batch-size factor of 5120 stays in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from falcon_unlearn.optimizers.checks import check_fraction, check_not_negative, check_rate

# Keeps 0 / 0 away where a weight has never had a gradient; the value is the one of the variant.
_EPSILON = 1e-15


class SophiaReference(Optimizer):
    """Reproduce the `SophiaG` of zetascale 2.7.7 as the released code calls it, by formula.

    With the combined gradient g, per step and in this order:

        h <- beta2 * h + (1 - beta2) * g^2
        m <- beta1 * m + (1 - beta1) * g
        theta <- (1 - lr * weight_decay) * theta
        m <- beta1 * m + (1 - beta1) * g
        theta <- theta - lr * sign(m) * min(1, |m| / (rho * batch_factor * h + 1e-15))

    h and m start at zero, without bias correction. The order, the place of the weight decay and the default
    beta1 = 0.965 were read in that wheel; that the released run leaves both betas at these defaults is
    inferred from the size of its steps.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 5e-5,
        *,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.9,
        batch_factor: float = 5120.0,
        weight_decay: float = 1e-3,
    ) -> None:
        """Set the hyperparameters.

        Raises:
            UsageError: a value outside its range.
        """
        check_rate(lr)
        check_fraction(betas[0], "betas[0]")
        check_fraction(betas[1], "betas[1]")
        check_not_negative(rho, "rho")
        check_not_negative(batch_factor, "batch_factor")
        check_not_negative(weight_decay, "weight_decay")
        defaults = {
            "lr": lr,
            "betas": betas,
            "rho": rho,
            "batch_factor": batch_factor,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

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

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["curvature"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        momentum: Tensor = state["momentum"]
        curvature: Tensor = state["curvature"]
        beta1, beta2 = group["betas"]
        curvature.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        momentum.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        momentum.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        bound = curvature * (group["rho"] * group["batch_factor"]) + _EPSILON
        ratio = (momentum.abs() / bound).clamp_(max=1.0)
        parameter.addcmul_(momentum.sign(), ratio, value=-group["lr"])
