"""Whitening and sums of Gaussian kernels, the shared core of every density estimate here.

Shapes: ... any leading batch dimensions, N samples, M evaluation points, D coordinates, W weightings.
    Everything is
float64. In whitened coordinates the kernel of eq. 6 is a round Gaussian of width `scott_factor`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.linalg.streaming import require_finite

# Pairwise matrices are built in row chunks of at most this many float64 numbers (32 MB).
CHUNK_ELEMENTS = 4_000_000
_RELATIVE_PIVOT_TOLERANCE = 1e-12


class Whitened(NamedTuple):
    """Hold samples with zero mean and identity covariance.

    Attributes:
        samples: whitened samples (... x N x D).
        factor: lower Cholesky factor L of the covariance (... x D x D); samples = (x - mean) L^-T.
        mean: what was subtracted (... x 1 x D).
        log_determinant: log det L, half the log determinant of the covariance (...).
    """

    samples: Tensor
    factor: Tensor
    mean: Tensor
    log_determinant: Tensor


def scott_factor(num_samples: int, num_dimensions: int) -> float:
    """Return N^(-1/(d+4)), the bandwidth of eq. 6 in units of the data's standard deviation."""
    return float(num_samples ** (-1.0 / (num_dimensions + 4)))


def checked_samples(samples: Tensor, name: str = "samples", minimum_samples: int = 3) -> Tensor:
    """Return `samples` (... x N x D) as float64 after checking shape, sample count and finiteness."""
    if samples.ndim < 2 or samples.shape[-1] == 0:
        raise DataError(f"{name} must have shape (..., N, D) with D >= 1, got {tuple(samples.shape)}.")
    if samples.shape[-2] < minimum_samples:
        raise DataError(f"{name} need at least {minimum_samples} rows, got {samples.shape[-2]}.")
    require_finite(samples, name)
    return samples.detach().to(torch.float64)


def cholesky(covariance: Tensor, name: str) -> Tensor:
    """Return the lower Cholesky factor (... x D x D).

    Raises:
        NumericalError: the matrix is singular, that is, some direction is constant.
    """
    decomposition = torch.linalg.cholesky_ex(covariance)
    lower: Tensor = decomposition.L
    status: Tensor = decomposition.info
    failed = bool((status != 0).any())
    if not failed:
        pivots = lower.diagonal(dim1=-2, dim2=-1).square()
        scale = covariance.diagonal(dim1=-2, dim2=-1)
        # A pivot is the variance that a coordinate keeps once the earlier ones are known.
        failed = bool((pivots <= _RELATIVE_PIVOT_TOLERANCE * scale.amax(dim=-1, keepdim=True)).any())
    if failed:
        raise NumericalError(
            f"the covariance of the {name} is singular: some direction is constant or a copy of others.",
            hint="Use more samples or fewer principal components, and check that the texts differ.",
        )
    return lower


def whiten(samples: Tensor, name: str = "samples") -> Whitened:
    """Transform `samples` (... x N x D) to zero mean and identity covariance (division by N - 1)."""
    mean = samples.mean(dim=-2, keepdim=True)
    centred = samples - mean
    factor = cholesky(centred.mT @ centred / (samples.shape[-2] - 1), name)
    whitened = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
    return Whitened(whitened, factor, mean, log_diagonal(factor))


def log_diagonal(factor: Tensor) -> Tensor:
    """Return the log determinant of a triangular matrix (...)."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def log_kernel_sums(points: Tensor, samples: Tensor, width: float, *, leave_one_out: bool) -> Tensor:
    """Return log sum_j exp(-|point_i - sample_j|^2 / (2 width^2)) for every point i.

    Args:
        points: evaluation points (... x M x D).
        samples: kernel centres (... x N x D), same leading dimensions.
        width: kernel width.
        leave_one_out: leave j = i out; `points` and `samples` must then be the same samples.

    Returns:
        Log sums (... x M). At most `CHUNK_ELEMENTS` kernel values are held at a time, or one row per batch
        entry.
    """
    points, samples = points / width, samples / width
    half_norms = samples.square().sum(dim=-1).unsqueeze(-2) / 2
    parts = []
    for rows in row_chunks(points, samples.shape[-2]):
        exponents = _exponents(points, samples, half_norms, rows, leave_one_out=leave_one_out)
        largest = exponents.amax(dim=-1, keepdim=True)
        sums = exponents.sub_(largest).exp_().sum(dim=-1)
        parts.append(sums.log_().add_(largest.squeeze(-1)))
    return torch.cat(parts, dim=-1)


def weighted_log_kernel_sums(samples: Tensor, weights_NW: Tensor, width: float) -> Tensor:
    """Return log sum_{j != i} w_j exp(-|x_i - x_j|^2 / (2 width^2)) for many weightings at once.

    Args:
        samples: samples (N x D).
        weights_NW: positive sample weights, one column per weighting.
        width: kernel width.

    Returns:
        Log sums (N x W): one matrix product serves all weightings.
    """
    samples = samples / width
    half_norms = samples.square().sum(dim=-1).unsqueeze(-2) / 2
    parts = []
    for rows in row_chunks(samples, samples.shape[-2]):
        exponents = _exponents(samples, samples, half_norms, rows, leave_one_out=True)
        largest = exponents.amax(dim=-1, keepdim=True)
        parts.append((exponents.sub_(largest).exp_() @ weights_NW).log_().add_(largest))
    return torch.cat(parts, dim=-2)


def log_normaliser(num_dimensions: int, width: float) -> float:
    """Return the log of the integral of exp(-|x|^2 / (2 width^2)) over D dimensions."""
    return num_dimensions * (math.log(width) + 0.5 * math.log(2 * math.pi))


def row_chunks(points: Tensor, num_columns: int) -> list[slice]:
    """Return row slices such that batch x rows x columns stays within `CHUNK_ELEMENTS`."""
    num_batches = math.prod(points.shape[:-2])
    size = max(1, CHUNK_ELEMENTS // max(1, num_batches * num_columns))
    return [slice(start, start + size) for start in range(0, points.shape[-2], size)]


def _exponents(
    points: Tensor, samples: Tensor, half_norms: Tensor, rows: slice, *, leave_one_out: bool
) -> Tensor:
    block = points[..., rows, :]
    exponents = block @ samples.mT
    exponents -= half_norms
    exponents -= block.square().sum(dim=-1, keepdim=True) / 2
    if leave_one_out:
        # Row r of this block is sample rows.start + r; its own kernel is masked.
        exponents.diagonal(offset=rows.start, dim1=-2, dim2=-1).fill_(-math.inf)
    return exponents
