"""Mutual information of paired samples, I(F;R) = H(F) + H(R) - H(F,R) in nats (eq. 2).

Shapes: N pairs, D coordinates of either side, P pairings, W weightings. Everything is float64.

One coordinate system: the joint sample is the concatenation of the very coordinates that give the marginals,
so the identity holds. Two facts keep many pairings and resamples cheap:

* Entropies of eq. 6 are affine invariant up to a log determinant. With both marginals whitened once, the
  joint is whitened by regressing R on F, and only the D x D cross covariance depends on the pairing.
* A bootstrap resample only re-weights kernels, so all resamples share one kernel matrix and one matrix
  product. Own kernels stay excluded, hence resampled copies of a point cannot vouch for it.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.linalg.entropy import (
    check_num_neighbours,
    checked_radii,
    digamma,
    log_determinant_bias,
    whitened_kde_entropy,
)
from falcon_unlearn.linalg.kernels import (
    CHUNK_ELEMENTS,
    checked_samples,
    cholesky,
    log_diagonal,
    log_normaliser,
    scott_factor,
    weighted_log_kernel_sums,
    whiten,
)

Density = Literal["kde", "ksg", "gaussian"]


def mutual_information(
    forget_ND: Tensor, retain_ND: Tensor, *, estimator: Density = "kde", num_neighbours: int = 3
) -> float:
    """Estimate I(F;R) of row-wise pairs in nats.

    Args:
        forget_ND: one side of the pairs (N x D).
        retain_ND: the other side (N x D', the width may differ).
        estimator: `kde` (eq. 2 and 6, leave-one-out), `ksg` (Kraskov, Stoegbauer and Grassberger, first form)
            or `gaussian` (closed form, bias-corrected).
        num_neighbours: k of `ksg`.

    Raises:
        DataError: wrong shapes, different numbers of rows, or too few rows.
        NumericalError: non-finite values or a singular covariance.
        UsageError: unknown estimator or k.
    """
    identity = torch.arange(forget_ND.shape[0]).unsqueeze(0)
    values = permuted_information(
        forget_ND, retain_ND, identity, estimator=estimator, num_neighbours=num_neighbours
    )
    return float(values[0])


def permuted_information(
    forget_ND: Tensor,
    retain_ND: Tensor,
    pairings_PN: Tensor,
    *,
    estimator: Density = "kde",
    num_neighbours: int = 3,
) -> Tensor:
    """Estimate the information (P) for many pairings: row i of F goes with row `pairings_PN[p, i]` of R.

    Each row of `pairings_PN` must be a permutation of 0..N-1. Arguments and errors as in
    `mutual_information`.
    """
    forget_ND, retain_ND = _checked_pair(forget_ND, retain_ND)
    pairings_PN = _checked_pairings(pairings_PN, forget_ND)
    if estimator == "kde":
        return _kde_information(forget_ND, retain_ND, pairings_PN)
    if estimator == "gaussian":
        return _gaussian_information(forget_ND, retain_ND, pairings_PN)
    if estimator == "ksg":
        return _neighbour_information(forget_ND, retain_ND, pairings_PN, num_neighbours)
    raise UsageError(f"estimator must be one of {', '.join(get_args(Density))}, got {estimator!r}.")


def reweighted_information(
    forget_ND: Tensor,
    retain_ND: Tensor,
    weights_NW: Tensor,
    *,
    pairing_N: Tensor | None = None,
    estimator: Density = "kde",
    num_neighbours: int = 3,
) -> Tensor:
    """Estimate the information (W) under many weightings of the pairs, for the bootstrap.

    With equal weights every column is `mutual_information`. `kde` re-weights the kernels and keeps the
    bandwidths; `gaussian` and `ksg` re-weight the contributions of the pairs, which is the first order of the
    same thing.

    Args:
        forget_ND: one side of the pairs.
        retain_ND: the other side.
        weights_NW: positive pair weights; every column is scaled to sum to N.
        pairing_N: row of R that goes with each row of F; row i by default.
        estimator: as in `mutual_information`.
        num_neighbours: k of `ksg`.
    """
    forget_ND, retain_ND = _checked_pair(forget_ND, retain_ND)
    if pairing_N is not None:
        retain_ND = retain_ND[pairing_N.to(retain_ND.device)]
    num_samples = forget_ND.shape[0]
    weights_NW = weights_NW.to(device=forget_ND.device, dtype=torch.float64)
    weights_NW = weights_NW * (num_samples / weights_NW.sum(dim=0))
    if estimator == "kde":
        return _reweighted_kde(forget_ND, retain_ND, weights_NW)
    value = mutual_information(forget_ND, retain_ND, estimator=estimator, num_neighbours=num_neighbours)
    if estimator == "gaussian":
        contributions_N = _gaussian_contributions(forget_ND, retain_ND)
    else:
        contributions_N = -_neighbour_terms(
            _scaled_distances(forget_ND), _scaled_distances(retain_ND), num_neighbours
        )
    return value + (contributions_N - contributions_N.mean()) @ weights_NW / num_samples


def _reweighted_kde(forget_ND: Tensor, retain_ND: Tensor, weights_NW: Tensor) -> Tensor:
    num_samples = forget_ND.shape[0]
    forget, retain = whiten(forget_ND, "forget samples"), whiten(retain_ND, "retain samples")
    joint_NE, half_log_determinant = _joint_whitened(forget.samples, retain.samples)

    def entropy(samples: Tensor) -> Tensor:
        width = scott_factor(*samples.shape)
        log_sums_NW = weighted_log_kernel_sums(samples, weights_NW, width)
        log_density_NW = log_sums_NW - torch.log(num_samples - weights_NW)
        return log_normaliser(samples.shape[1], width) - (weights_NW * log_density_NW).mean(dim=0)

    return entropy(forget.samples) + entropy(retain.samples) - entropy(joint_NE) - half_log_determinant


def _gaussian_contributions(forget_ND: Tensor, retain_ND: Tensor) -> Tensor:
    """Return log p(f, r) - log p(f) - log p(r) of every pair (N), up to a constant."""
    forget, retain = whiten(forget_ND, "forget samples"), whiten(retain_ND, "retain samples")
    joint_NE, _ = _joint_whitened(forget.samples, retain.samples)
    squares_N = forget.samples.square().sum(dim=1) + retain.samples.square().sum(dim=1)
    return (squares_N - joint_NE.square().sum(dim=1)) / 2


def _checked_pair(forget_ND: Tensor, retain_ND: Tensor) -> tuple[Tensor, Tensor]:
    forget_ND = checked_samples(forget_ND, "forget samples")
    retain_ND = checked_samples(retain_ND, "retain samples")
    if forget_ND.ndim != 2 or retain_ND.ndim != 2 or forget_ND.shape[0] != retain_ND.shape[0]:
        raise DataError(
            "paired samples need two matrices with equally many rows, "
            f"got shapes {tuple(forget_ND.shape)} and {tuple(retain_ND.shape)}."
        )
    return forget_ND, retain_ND


def _checked_pairings(pairings_PN: Tensor, samples_ND: Tensor) -> Tensor:
    pairings_PN = pairings_PN.to(samples_ND.device)
    expected_N = torch.arange(samples_ND.shape[0], device=samples_ND.device)
    if pairings_PN.ndim != 2 or not torch.equal(
        pairings_PN.sort(dim=1).values, expected_N.expand_as(pairings_PN)
    ):
        raise DataError(f"every pairing must be a permutation of 0..{samples_ND.shape[0] - 1}.")
    return pairings_PN


def _joint_whitened(forget: Tensor, retain: Tensor) -> tuple[Tensor, Tensor]:
    """Whiten the concatenation of two whitened samples by regressing the second on the first.

    Returns:
        Joint samples (... x N x (D + D')) and half the log determinant of the joint covariance (...).
    """
    cross = forget.mT @ retain / (forget.shape[-2] - 1)
    unexplained = torch.eye(retain.shape[-1], dtype=retain.dtype, device=retain.device) - cross.mT @ cross
    factor = cholesky(unexplained, "forget and retain samples together")
    residual = torch.linalg.solve_triangular(factor, (retain - forget @ cross).mT, upper=False).mT
    return torch.cat([forget.expand(*residual.shape[:-1], -1), residual], dim=-1), log_diagonal(factor)


def _kde_information(forget_ND: Tensor, retain_ND: Tensor, pairings_PN: Tensor) -> Tensor:
    forget, retain = whiten(forget_ND, "forget samples"), whiten(retain_ND, "retain samples")
    marginal = whitened_kde_entropy(forget.samples) + whitened_kde_entropy(retain.samples)
    parts = []
    for pairings in _pairing_chunks(pairings_PN):
        joint, half_log_determinant = _joint_whitened(forget.samples, retain.samples[pairings])
        parts.append(marginal - whitened_kde_entropy(joint) - half_log_determinant)
    return torch.cat(parts)


def _gaussian_information(forget_ND: Tensor, retain_ND: Tensor, pairings_PN: Tensor) -> Tensor:
    num_samples, num_forget = forget_ND.shape
    num_retain = retain_ND.shape[1]
    forget, retain = whiten(forget_ND, "forget samples"), whiten(retain_ND, "retain samples")
    parts = [
        -_joint_whitened(forget.samples, retain.samples[pairings])[1]
        for pairings in _pairing_chunks(pairings_PN)
    ]
    correction = (
        log_determinant_bias(num_samples, num_forget)
        + log_determinant_bias(num_samples, num_retain)
        - log_determinant_bias(num_samples, num_forget + num_retain)
    )
    return torch.cat(parts) - correction


def _neighbour_information(
    forget_ND: Tensor, retain_ND: Tensor, pairings_PN: Tensor, num_neighbours: int
) -> Tensor:
    check_num_neighbours(num_neighbours)
    num_samples = forget_ND.shape[0]
    if num_samples <= num_neighbours:
        raise DataError(f"ksg with k = {num_neighbours} needs more than {num_neighbours} pairs.")
    forget_NN, retain_NN = _scaled_distances(forget_ND), _scaled_distances(retain_ND)
    constant = digamma(num_neighbours) + digamma(num_samples)
    # A pairing only re-indexes the distances of one side.
    terms = [
        _neighbour_terms(forget_NN, retain_NN[pairing_N][:, pairing_N], num_neighbours)
        for pairing_N in pairings_PN
    ]
    return constant - torch.stack(terms).mean(dim=1)


def _neighbour_terms(forget_NN: Tensor, retain_NN: Tensor, num_neighbours: int) -> Tensor:
    """Return digamma(n_F + 1) + digamma(n_R + 1) of every pair (N); the joint distance is the larger one."""
    radii_N = checked_radii(torch.maximum(forget_NN, retain_NN).kthvalue(num_neighbours, dim=1).values)
    num_forget_N = (forget_NN < radii_N.unsqueeze(1)).sum(dim=1).to(torch.float64)
    num_retain_N = (retain_NN < radii_N.unsqueeze(1)).sum(dim=1).to(torch.float64)
    return torch.digamma(num_forget_N + 1.0) + torch.digamma(num_retain_N + 1.0)


def _scaled_distances(samples_ND: Tensor) -> Tensor:
    """Return Euclidean distances (N x N) in units of the sample's spread, infinite on the diagonal."""
    spread = samples_ND.var(dim=0).sum().sqrt()
    distances_NN = torch.cdist(samples_ND, samples_ND, compute_mode="donot_use_mm_for_euclid_dist") / spread
    return distances_NN.fill_diagonal_(math.inf)


def _pairing_chunks(pairings_PN: Tensor) -> tuple[Tensor, ...]:
    size = max(1, CHUNK_ELEMENTS // pairings_PN.shape[1] ** 2)
    return torch.split(pairings_PN, size)
