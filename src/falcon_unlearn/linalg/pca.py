"""Principal components in float64, in one shot or from a streaming covariance.

Shapes: N samples, D hidden, K components. Components are unique up to sign (and up to rotation where
    eigenvalues
coincide), so results are compared as subspaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.streaming import StreamingCovariance, require_finite

_RELATIVE_RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class PrincipalComponents:
    """Hold the leading principal directions of a sample.

    Attributes:
        mean: mean that is subtracted first (D).
        components: orthonormal rows, largest variance first (K x D).
        explained_variance: variance along each component (K).
        total_variance: variance summed over all directions, kept or not.
    """

    mean: Tensor
    components: Tensor
    explained_variance: Tensor
    total_variance: float

    @property
    def num_components(self) -> int:
        """Return K."""
        return int(self.components.shape[0])

    @property
    def explained_share(self) -> float:
        """Return the share of the total variance that the K components carry, 0 to 1."""
        return float(self.explained_variance.sum()) / self.total_variance

    def transform(self, samples_ND: Tensor) -> Tensor:
        """Return the coordinates of `samples_ND` (... x D) on the components (... x K), float64."""
        centred_ND = samples_ND.to(device=self.mean.device, dtype=torch.float64) - self.mean
        return centred_ND @ self.components.T


def fit_shared_pca(
    samples_ND: Tensor, minimum_explained_variance: float = 0.95, maximum_components: int | None = None
) -> PrincipalComponents:
    """Fit one PCA on all given samples, the coordinate system of eq. 7.

    "Shared" means that forget and retain samples are stacked by the caller, so that every entropy of eq. 2 is
    taken in the same coordinates. Works on the smaller of the covariance (D x D) and the Gram matrix (N x N).

    Args:
        samples_ND: samples (N x D), any floating dtype; computed in float64.
        minimum_explained_variance: share of the variance to reach, in (0, 1]. K is the smallest number
            reaching it.
        maximum_components: upper bound on K; the share may then be missed (see `explained_share`).

    Raises:
        DataError: fewer than two samples, or not a matrix.
        NumericalError: non-finite or constant samples.
        UsageError: a setting outside its range.
    """
    _check_settings(minimum_explained_variance, maximum_components)
    if samples_ND.ndim != 2 or samples_ND.shape[0] < 2:
        raise DataError(f"PCA needs a matrix with at least 2 rows, got shape {tuple(samples_ND.shape)}.")
    require_finite(samples_ND, "samples")
    samples_ND = samples_ND.detach().to(torch.float64)
    mean_D = samples_ND.mean(dim=0)
    centred_ND = samples_ND - mean_D
    num_samples, num_dimensions = centred_ND.shape
    if num_dimensions <= num_samples:
        variance, vectors = _descending_eigenpairs(centred_ND.T @ centred_ND / (num_samples - 1))
        directions_KD = vectors.T
    else:
        variance, vectors = _descending_eigenpairs(centred_ND @ centred_ND.T / (num_samples - 1))
        directions_KD = vectors.T @ centred_ND
    num_components = _num_components(
        variance, float(mean_D.square().sum()), minimum_explained_variance, maximum_components
    )
    components_KD = torch.nn.functional.normalize(directions_KD[:num_components], dim=1)
    return _assemble(mean_D, components_KD, variance, num_components)


def principal_components(
    covariance: StreamingCovariance,
    minimum_explained_variance: float = 0.95,
    maximum_components: int | None = None,
) -> PrincipalComponents:
    """Return the PCA of all rows that a `StreamingCovariance` has seen; equals `fit_shared_pca`."""
    _check_settings(minimum_explained_variance, maximum_components)
    variance, vectors = _descending_eigenpairs(covariance.covariance())
    num_components = _num_components(
        variance, float(covariance.mean.square().sum()), minimum_explained_variance, maximum_components
    )
    return _assemble(covariance.mean.clone(), vectors.T[:num_components], variance, num_components)


def _check_settings(minimum_explained_variance: float, maximum_components: int | None) -> None:
    if not 0.0 < minimum_explained_variance <= 1.0:
        raise UsageError(f"minimum_explained_variance must lie in (0, 1], got {minimum_explained_variance}.")
    if maximum_components is not None and maximum_components < 1:
        raise UsageError(f"maximum_components must be at least 1, got {maximum_components}.")


def _descending_eigenpairs(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp(min=0.0), vectors.flip(1)


def _num_components(
    variance: Tensor, squared_mean: float, minimum_explained_variance: float, maximum_components: int | None
) -> int:
    total = float(variance.sum())
    # Rounding leaves about 1e-32 of the squared mean as spurious variance of a constant sample.
    if total <= 1e-24 * squared_mean or total == 0.0:
        raise NumericalError(
            "the samples are constant, so they have no principal components.",
            hint="Check that the texts differ, also at the token position that is used.",
        )
    rank = int((variance > _RELATIVE_RANK_TOLERANCE * variance[0]).sum())
    reached = torch.cumsum(variance, dim=0) / total >= minimum_explained_variance
    smallest = int(reached.to(torch.uint8).argmax()) + 1 if bool(reached.any()) else rank
    return min(smallest, rank, maximum_components or rank)


def _assemble(
    mean_D: Tensor, components_KD: Tensor, variance: Tensor, num_components: int
) -> PrincipalComponents:
    largest_K1 = components_KD.abs().argmax(dim=1, keepdim=True)
    # A fixed sign keeps results identical between runs and between the two eigenproblems.
    signs_K1 = torch.sign(torch.gather(components_KD, 1, largest_K1))
    return PrincipalComponents(
        mean=mean_D,
        components=(components_KD * signs_K1).contiguous(),
        explained_variance=variance[:num_components].clone(),
        total_variance=float(variance.sum()),
    )
