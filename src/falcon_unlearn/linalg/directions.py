"""Find directions in which states differ, and take them out of states or of the weights that write them.

Shapes: N states, D hidden, K directions, I inputs of a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RELATIVE_RANK_TOLERANCE = 1e-6
_OUTLIER_Z = 3.0


def leading_directions(rows_ND: Tensor, rank: int) -> Tensor:
    """Return orthonormal rows K x D that carry the most energy of `rows_ND`, float32, largest first.

    Rows are not centred: a constant shift of all states is the first direction. K is smaller than `rank`
    where the rows span less, and 0 where they are zero.
    """
    rows_ND = rows_ND.double()
    if not rows_ND.numel():
        return torch.zeros(0, rows_ND.shape[-1])
    _, singular, right = torch.linalg.svd(rows_ND, full_matrices=False)
    count = int((singular > _RELATIVE_RANK_TOLERANCE * singular[0].clamp_min(1e-30)).sum())
    directions_KD: Tensor = right[: min(rank, count)].float()
    return directions_KD


def contrast_directions(first_ND: Tensor, second_ND: Tensor, rank: int) -> Tensor:
    """Return orthonormal rows K x D: the difference of the means, then what varies most in the first set.

    The variation is that around the second set's mean, without the difference of the means.
    """
    shifted_ND = first_ND.double() - second_ND.double().mean(dim=0)
    mean_1D = leading_directions(shifted_ND.mean(dim=0, keepdim=True), 1).double()
    rest_KD = leading_directions(ablated(shifted_ND, mean_1D), rank - len(mean_1D)).double()
    return torch.cat([mean_1D, rest_KD]).float()


def random_directions(rank: int, size: int, generator: torch.Generator) -> Tensor:
    """Return K = `rank` orthonormal rows of length `size`, uniformly distributed."""
    gaussian = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64)
    directions_KD: Tensor = torch.linalg.qr(gaussian).Q.T.contiguous().float()
    return directions_KD


def without_outliers(rows_ND: Tensor) -> Tensor:
    """Drop rows whose sum of magnitudes lies more than three standard deviations above the mean."""
    sizes_N = rows_ND.double().abs().sum(dim=1)
    limit = sizes_N.mean() + _OUTLIER_Z * sizes_N.std(correction=0)
    return rows_ND[sizes_N <= limit]


def ablated(states: Tensor, directions_KD: Tensor) -> Tensor:
    """Return new states (... x D) without their components along orthonormal rows: x - (x . r) r for each."""
    rows = directions_KD.to(states)
    return states - (states @ rows.T) @ rows


def ablated_writer(weight_DI: Tensor, directions_KD: Tensor) -> Tensor:
    """Return W - R'R W, a weight that writes nothing along the directions; also for a bias of length D."""
    rows_KD = directions_KD.double()
    written = weight_DI.double()
    return (written - rows_KD.T @ (rows_KD @ written)).to(weight_DI.dtype)
