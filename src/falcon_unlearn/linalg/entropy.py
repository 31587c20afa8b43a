"""Differential entropy in nats: Gaussian KDE (eq. 6), nearest neighbours, and the Gaussian closed form.

Shapes: ... any leading batch dimensions, N samples, M evaluation points, D coordinates. Everything is
    float64, and
a leading dimension (layers, resamples, permutations) is computed in one call.

The kernel width is Scott's rule of eq. 6 with the covariance of the whole sample as its scale, which is what
scipy's `gaussian_kde` does. In leave-one-out evaluation only the kernel of the evaluated point is left out;
the covariance keeps it, since N refitted covariances would cost N Cholesky factors for a change of order 1/N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError, UsageError
from falcon_unlearn.linalg.kernels import (
    checked_samples,
    log_kernel_sums,
    log_normaliser,
    row_chunks,
    scott_factor,
    whiten,
)


def kde_log_density(samples: Tensor, points: Tensor) -> Tensor:
    """Return the log of the Gaussian KDE of `samples` at `points` (... x M), eq. 6.

    Args:
        samples: kernel centres (... x N x D).
        points: evaluation points (... x M x D), same leading dimensions.

    Raises:
        DataError: wrong shapes or fewer than three samples.
        NumericalError: non-finite values or a singular covariance.
    """
    samples = checked_samples(samples)
    points = checked_samples(points, "points", minimum_samples=1)
    whitened = whiten(samples)
    width = scott_factor(*samples.shape[-2:])
    moved = torch.linalg.solve_triangular(whitened.factor, (points - whitened.mean).mT, upper=False).mT
    log_sums = log_kernel_sums(moved, whitened.samples, width, leave_one_out=False)
    constant = math.log(samples.shape[-2]) + log_normaliser(samples.shape[-1], width)
    return log_sums - constant - whitened.log_determinant.unsqueeze(-1)


def kde_entropy(samples: Tensor, *, leave_one_out: bool = True) -> Tensor:
    """Estimate the entropy (...) of `samples` (... x N x D) by a Gaussian KDE, in nats.

    With `leave_one_out` each point is scored by the density of the others. Without it the density is scored
    on its own centres (resubstitution), which is biased downwards and offered for comparison only.

    Raises:
        DataError: wrong shape or fewer than three samples.
        NumericalError: non-finite values or a singular covariance.
    """
    samples = checked_samples(samples)
    whitened = whiten(samples)
    entropy = whitened_kde_entropy(whitened.samples, leave_one_out=leave_one_out)
    return entropy + whitened.log_determinant


def whitened_kde_entropy(samples: Tensor, *, leave_one_out: bool = True) -> Tensor:
    """Return the KDE entropy (...) of samples that are whitened already (... x N x D)."""
    num_samples, num_dimensions = samples.shape[-2:]
    width = scott_factor(num_samples, num_dimensions)
    log_sums = log_kernel_sums(samples, samples, width, leave_one_out=leave_one_out)
    num_kernels = num_samples - 1 if leave_one_out else num_samples
    return math.log(num_kernels) + log_normaliser(num_dimensions, width) - log_sums.mean(dim=-1)


def nearest_neighbour_entropy(samples: Tensor, *, num_neighbours: int = 3) -> Tensor:
    """Estimate the entropy (...) of `samples` (... x N x D) by Kozachenko and Leonenko, in nats.

    Uses Euclidean balls around each point that reach its k-th neighbour.

    Raises:
        DataError: wrong shape or not more than `num_neighbours` samples.
        NumericalError: non-finite values, or so many equal points that a radius is zero.
        UsageError: `num_neighbours` below 1.
    """
    check_num_neighbours(num_neighbours)
    samples = checked_samples(samples, minimum_samples=num_neighbours + 1)
    num_samples, num_dimensions = samples.shape[-2:]
    parts = []
    for rows in row_chunks(samples, num_samples):
        distances = torch.cdist(samples[..., rows, :], samples, compute_mode="donot_use_mm_for_euclid_dist")
        distances.diagonal(offset=rows.start, dim1=-2, dim2=-1).fill_(math.inf)
        parts.append(distances.kthvalue(num_neighbours, dim=-1).values)
    radii = checked_radii(torch.cat(parts, dim=-1))
    log_ball_volume = num_dimensions / 2 * math.log(math.pi) - math.lgamma(num_dimensions / 2 + 1)
    return (
        digamma(num_samples)
        - digamma(num_neighbours)
        + log_ball_volume
        + num_dimensions * radii.log().mean(dim=-1)
    )


def gaussian_entropy(samples: Tensor, *, bias_corrected: bool = True) -> Tensor:
    """Estimate the entropy (...) of `samples` (... x N x D) as if they were Gaussian, in nats.

    The plug-in value (D/2) log(2 pi e) + (1/2) log det S is too low on few samples; with `bias_corrected` the
    expected log determinant of a Wishart matrix is removed, which makes it exactly unbiased for Gaussian
    data.

    Raises:
        DataError: wrong shape or fewer than three samples.
        NumericalError: non-finite values or a singular covariance (fewer samples than coordinates).
    """
    samples = checked_samples(samples)
    num_samples, num_dimensions = samples.shape[-2:]
    entropy = whiten(samples).log_determinant + num_dimensions / 2 * math.log(2 * math.pi * math.e)
    return entropy - log_determinant_bias(num_samples, num_dimensions) if bias_corrected else entropy


def log_determinant_bias(num_samples: int, num_dimensions: int) -> float:
    """Return E[(1/2) log det S] - (1/2) log det Sigma for the sample covariance S of Gaussian data."""
    degrees = (num_samples - 1 - torch.arange(num_dimensions, dtype=torch.float64)) / 2
    return float((torch.digamma(degrees) - math.log((num_samples - 1) / 2)).sum()) / 2


def digamma(value: float) -> float:
    """Return the digamma function, computed by torch."""
    return float(torch.digamma(torch.tensor(float(value), dtype=torch.float64)))


def check_num_neighbours(num_neighbours: int) -> None:
    """Raise `UsageError` unless `num_neighbours` is at least 1."""
    if num_neighbours < 1:
        raise UsageError(f"num_neighbours must be at least 1, got {num_neighbours}.")


def checked_radii(radii: Tensor) -> Tensor:
    """Return `radii` after checking that none is zero."""
    if bool((radii <= 0).any()):
        raise NumericalError(
            f"{int((radii <= 0).sum())} points have their nearest neighbours at distance 0.",
            hint="Remove duplicate texts, or use the KDE estimator.",
        )
    return radii
