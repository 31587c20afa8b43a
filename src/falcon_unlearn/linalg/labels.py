"""Information between an activation and the label of its domain, in nats.

Shapes: N samples of both classes together, F forget samples, R retain samples, D coordinates, W weightings,
P relabellings. Everything is float64.

I(X;C) = H(X) - sum_c p_c H(X | C = c), with all densities taken with one kernel width so that the pooled
density is exactly the mixture of the class densities. Two properties follow. Normalisers cancel and no value
exceeds the entropy of the label (ln 2 for equal halves). And the value equals H(C) minus the leave-one-out
cross entropy of the classifier that the densities define, hence in expectation it does not exceed the true
information. It can be negative, when that classifier does worse than the class shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.linalg.kernels import checked_samples, cholesky, row_chunks, scott_factor

WIDTH_FACTORS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 16.0)
_SMALLEST = torch.finfo(torch.float64).tiny


class LabelInformation(NamedTuple):
    """Hold one estimate with its resamples.

    Attributes:
        value: information in nats.
        replicates: the same under each weighting (W).
        null: the same under each relabelling (P).
        width_factor: kernel width in units of Scott's.
    """

    value: float
    replicates: Tensor
    null: Tensor
    width_factor: float


def label_information(
    forget_FD: Tensor,
    retain_RD: Tensor,
    *,
    forget_weights_FW: Tensor | None = None,
    retain_weights_RW: Tensor | None = None,
    relabellings_PN: Tensor | None = None,
    width_factors: Sequence[float] = WIDTH_FACTORS,
) -> LabelInformation:
    """Estimate the information between activation and domain label.

    The kernel is Gaussian with the covariance within classes times Scott's factor for the smaller class,
    times the best of `width_factors`. Scott's width alone is far too narrow in tens of dimensions:
    independent labels then score about -1 nat. Since every width gives a lower bound in expectation, the
    largest value is taken, for every relabelling as for the data, so the null carries the same optimism.
    Weightings keep the chosen width.

    Args:
        forget_FD: activations of the first class (F x D).
        retain_RD: activations of the second class (R x D).
        forget_weights_FW: positive bootstrap weights of the first class; columns are scaled to sum to F.
        retain_weights_RW: the same for the second class, equally many columns.
        relabellings_PN: permutations of 0..F+R-1; the first F entries of a row become the first class.
        width_factors: widths to try, in units of Scott's; (1.0,) is Scott's rule itself.

    Raises:
        DataError: wrong shapes or fewer than three samples in a class.
        NumericalError: non-finite values or a singular covariance.
        UsageError: no width factor, or one that is not positive.
    """
    if not width_factors or min(width_factors) <= 0:
        raise UsageError(f"width_factors must be positive numbers, got {tuple(width_factors)}.")
    forget_FD = checked_samples(forget_FD, "forget samples")
    retain_RD = checked_samples(retain_RD, "retain samples")
    if forget_FD.ndim != 2 or retain_RD.ndim != 2 or forget_FD.shape[1] != retain_RD.shape[1]:
        raise DataError(
            "both classes need matrices of the same width, "
            f"got shapes {tuple(forget_FD.shape)} and {tuple(retain_RD.shape)}."
        )
    num_forget = forget_FD.shape[0]
    whitened_ND = _whitened_within(forget_FD, retain_RD)
    ones_N1 = torch.ones_like(whitened_ND[:, :1])
    labels_NP = _relabelled(relabellings_PN, num_forget, whitened_ND)
    results = [_evaluate(whitened_ND / factor, num_forget, ones_N1, labels_NP) for factor in width_factors]
    best = max(range(len(results)), key=lambda index: float(results[index][0]))
    replicates = whitened_ND.new_zeros(0)
    if forget_weights_FW is not None and retain_weights_RW is not None:
        weights_NW = _stacked_weights(forget_weights_FW, retain_weights_RW, whitened_ND)
        replicates, _ = _evaluate(whitened_ND / width_factors[best], num_forget, weights_NW, labels_NP[:, :0])
    null = torch.stack([relabelled for _, relabelled in results]).amax(dim=0)
    return LabelInformation(float(results[best][0]), replicates, null, float(width_factors[best]))


def _evaluate(
    samples_ND: Tensor, num_forget: int, weights_NW: Tensor, labels_NP: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the information under each weighting (W) and each relabelling (P) for kernels of width 1."""
    num_retain = samples_ND.shape[0] - num_forget
    is_forget_N1 = torch.arange(samples_ND.shape[0], device=samples_ND.device).unsqueeze(1) < num_forget
    observed, relabelled = [], []
    for rows in row_chunks(samples_ND, samples_ND.shape[0]):
        kernels_MN = _kernels(samples_ND, rows)
        sums_forget = kernels_MN[:, :num_forget] @ weights_NW[:num_forget]
        sums_retain = kernels_MN[:, num_forget:] @ weights_NW[num_forget:]
        own_weight = weights_NW[rows]
        log_ratio = _log_ratio(
            sums_forget, sums_retain, is_forget_N1[rows], own_weight, num_forget, num_retain
        )
        observed.append(own_weight * log_ratio)
        sums_first = kernels_MN @ labels_NP
        sums_second = (kernels_MN.sum(dim=1, keepdim=True) - sums_first).clamp(min=0.0)
        unit = torch.ones_like(sums_first)
        relabelled.append(
            _log_ratio(sums_first, sums_second, labels_NP[rows] > 0, unit, num_forget, num_retain)
        )
    # Classes enter with their shares of the sample, so a plain mean over samples is the sum over c of p_c.
    return torch.cat(observed).mean(dim=0), torch.cat(relabelled).mean(dim=0)


def label_entropy(num_forget: int, num_retain: int) -> float:
    """Return H(C) in nats, the upper bound of the information (ln 2 for equal halves)."""
    share = num_forget / (num_forget + num_retain)
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


def _whitened_within(forget_FD: Tensor, retain_RD: Tensor) -> Tensor:
    """Return all samples (N x D) in units of the kernel: within-class covariance times Scott's factor."""
    residuals_ND = torch.cat([forget_FD - forget_FD.mean(dim=0), retain_RD - retain_RD.mean(dim=0)])
    covariance_DD = residuals_ND.T @ residuals_ND / (residuals_ND.shape[0] - 2)
    factor = cholesky(covariance_DD, "samples within each domain")
    samples_ND = torch.cat([forget_FD, retain_RD])
    samples_ND = samples_ND - samples_ND.mean(dim=0)
    width = scott_factor(min(forget_FD.shape[0], retain_RD.shape[0]), samples_ND.shape[1])
    whitened_ND: Tensor = torch.linalg.solve_triangular(factor, samples_ND.T, upper=False).T
    return whitened_ND / width


def _stacked_weights(forget_FW: Tensor, retain_RW: Tensor, like: Tensor) -> Tensor:
    """Stack the weights of both classes (N x W), each class scaled to its size."""
    parts = [part.to(device=like.device, dtype=like.dtype) for part in (forget_FW, retain_RW)]
    return torch.cat([part * (part.shape[0] / part.sum(dim=0)) for part in parts])


def _relabelled(relabellings_PN: Tensor | None, num_forget: int, like: Tensor) -> Tensor:
    """Return indicators of the first class (N x P) under each relabelling."""
    num_relabellings = 0 if relabellings_PN is None else relabellings_PN.shape[0]
    labels_PN = like.new_zeros(num_relabellings, like.shape[0])
    if relabellings_PN is not None:
        labels_PN.scatter_(1, relabellings_PN[:, :num_forget].to(like.device), 1.0)
    return labels_PN.T


def _kernels(samples_ND: Tensor, rows: slice) -> Tensor:
    """Return kernel values (M x N) of some rows, each scaled by its largest; own kernels are zero."""
    block_MD = samples_ND[rows]
    exponents_MN = block_MD @ samples_ND.T - samples_ND.square().sum(dim=1) / 2
    exponents_MN.diagonal(offset=rows.start).fill_(-math.inf)
    # A common factor per row cancels in the ratio of densities.
    return exponents_MN.sub_(exponents_MN.amax(dim=1, keepdim=True)).exp_()


def _log_ratio(
    sums_forget: Tensor,
    sums_retain: Tensor,
    is_forget: Tensor,
    own_weight: Tensor,
    num_forget: int,
    num_retain: int,
) -> Tensor:
    """Return log p(x | own class) - log p(x), both without the sample's own kernel."""
    own_sums = torch.where(is_forget, sums_forget, sums_retain)
    other_sums = torch.where(is_forget, sums_retain, sums_forget)
    own_size = torch.where(is_forget, float(num_forget), float(num_retain)).to(own_sums)
    total = num_forget + num_retain
    # Kernels of far outliers underflow; the floor keeps their penalty finite (about -700 nats).
    own_density = (own_sums / (own_size - own_weight)).clamp(min=_SMALLEST)
    other_density = other_sums / (total - own_size)
    return own_density.log() - (own_size / total * own_density + (1 - own_size / total) * other_density).log()
