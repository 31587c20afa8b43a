"""Fit affine maps between states by ridge regression towards the identity.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Shares of the mean eigenvalue of the inputs' scatter that are tried."""
_HELD_OUT = 5
"""One row in so many chooses the penalty."""


@dataclass(frozen=True)
class AffineMap:
    """Map x to x + W x + b."""

    weight_DD: Tensor
    """W, added to the identity."""
    bias_D: Tensor
    penalty: float
    """Share of the mean eigenvalue that was chosen."""
    explained: float | None
    """Share of the held-out targets' variance that a map of the other rows explains; None: too few rows."""
    num_rows: int

    def __call__(self, states_PD: Tensor) -> Tensor:
        """Return the mapped states, float32."""
        states_PD = states_PD.float()
        device = states_PD.device
        return states_PD + states_PD @ self.weight_DD.to(device).T + self.bias_D.to(device)


def fit_affine(
    inputs_ND: Tensor, targets_ND: Tensor, *, seed: int, penalties: Sequence[float] = PENALTIES
) -> AffineMap:
    """Fit targets from inputs: min ||X + X W' + b - Y||^2 + penalty * mean eigenvalue * ||W||^2, in float64.

    The penalty is the one with the least error on held-out rows; all rows then give the map. With fewer than
    ten rows the largest penalty is taken.

    Args:
        inputs_ND: Rows.
        targets_ND: What each row shall become.
        seed: Decides which rows are held out.
        penalties: What is tried.
    """
    inputs, residuals = inputs_ND.double(), (targets_ND - inputs_ND).double()
    count = len(inputs)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held, kept = order[: count // _HELD_OUT], order[count // _HELD_OUT :]
    if count < 2 * _HELD_OUT:
        weight, bias = _solve(inputs, residuals, penalties[-1])
        return AffineMap(weight.float(), bias.float(), penalties[-1], None, count)
    targets = targets_ND.double()[held]
    variance = (targets - targets.mean(dim=0)).square().sum()
    errors = []
    for penalty in penalties:
        weight, bias = _solve(inputs[kept], residuals[kept], penalty)
        left = residuals[held] - inputs[held] @ weight.T - bias
        errors.append(float(left.square().sum() / variance.clamp_min(torch.finfo(torch.float64).tiny)))
    best = min(range(len(penalties)), key=errors.__getitem__)
    weight, bias = _solve(inputs, residuals, penalties[best])
    return AffineMap(weight.float(), bias.float(), penalties[best], 1.0 - errors[best], count)


def _solve(inputs_ND: Tensor, residuals_ND: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    mean_D, residual_mean_D = inputs_ND.mean(dim=0), residuals_ND.mean(dim=0)
    centred_ND = inputs_ND - mean_D
    scatter_DD = centred_ND.T @ centred_ND
    ridge = penalty * scatter_DD.trace() / len(scatter_DD) + torch.finfo(torch.float64).tiny
    scatter_DD.diagonal().add_(ridge)
    weight_DD = torch.linalg.solve(scatter_DD, centred_ND.T @ (residuals_ND - residual_mean_D)).T
    return weight_DD, residual_mean_D - weight_DD @ mean_D
