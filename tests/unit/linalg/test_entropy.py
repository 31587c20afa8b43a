from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special
from scipy.spatial import cKDTree
from scipy.stats import gaussian_kde

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg import kernels
from falcon_unlearn.linalg.entropy import (
    gaussian_entropy,
    kde_entropy,
    kde_log_density,
    nearest_neighbour_entropy,
)


def correlated(num_samples: int, num_dimensions: int, seed: int = 0) -> tuple[torch.Tensor, float]:
    """Return Gaussian samples and their entropy in nats."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(num_dimensions, num_dimensions, generator=generator, dtype=torch.float64)
    factor = torch.tril(factor, diagonal=-1) + torch.diag(
        1 + torch.arange(num_dimensions, dtype=torch.float64)
    )
    samples = torch.randn(num_samples, num_dimensions, generator=generator, dtype=torch.float64) @ factor.T
    entropy = num_dimensions / 2 * math.log(2 * math.pi * math.e) + float(factor.diagonal().log().sum())
    return samples + 7.0, entropy


@pytest.mark.parametrize("num_dimensions", [1, 3, 12])
def test_log_density_equals_scipy(num_dimensions: int) -> None:
    samples, _ = correlated(150, num_dimensions)
    points, _ = correlated(40, num_dimensions, seed=1)
    oracle = gaussian_kde(samples.numpy().T)
    np.testing.assert_allclose(
        kde_log_density(samples, points), oracle.logpdf(points.numpy().T), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        kde_entropy(samples, leave_one_out=False),
        -oracle.logpdf(samples.numpy().T).mean(),
        rtol=0,
        atol=1e-9,
    )


def test_leave_one_out_equals_a_loop_over_points() -> None:
    samples, _ = correlated(60, 4)
    bandwidth = torch.cov(samples.T) * kernels.scott_factor(60, 4) ** 2
    logs = []
    for index in range(60):
        others = torch.cat([samples[:index], samples[index + 1 :]])
        normal = torch.distributions.MultivariateNormal(others, bandwidth)
        logs.append(torch.logsumexp(normal.log_prob(samples[index]), dim=0) - math.log(59))
    torch.testing.assert_close(kde_entropy(samples), -torch.stack(logs).mean(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_dimensions", [1, 3])
@pytest.mark.parametrize("estimator", [kde_entropy, nearest_neighbour_entropy, gaussian_entropy])
def test_entropy_of_a_gaussian_approaches_its_closed_form(estimator, num_dimensions: int) -> None:
    samples, truth = correlated(4000, num_dimensions)
    assert float(estimator(samples)) == pytest.approx(truth, abs=0.09)


def test_resubstitution_is_lower_than_leave_one_out() -> None:
    samples, _ = correlated(100, 6)
    assert float(kde_entropy(samples, leave_one_out=False)) < float(kde_entropy(samples)) - 0.5


def test_bias_correction_makes_the_gaussian_entropy_unbiased() -> None:
    entropies = []
    truth = 5.0 / 2 * math.log(2 * math.pi * math.e)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4000, 12, 5, generator=generator, dtype=torch.float64)
    for corrected in (True, False):
        values = gaussian_entropy(samples, bias_corrected=corrected)
        entropies.append(float(values.mean()))
        error = float(values.std()) / math.sqrt(4000)
    assert abs(entropies[0] - truth) < 4 * error
    assert entropies[1] < truth - 20 * error


def test_nearest_neighbour_entropy_equals_a_tree_search() -> None:
    samples, _ = correlated(200, 3)
    radii = cKDTree(samples.numpy()).query(samples.numpy(), k=5)[0][:, -1]
    volume = math.log(math.pi**1.5 / math.gamma(2.5))
    oracle = special.digamma(200) - special.digamma(4) + volume + 3 * np.log(radii).mean()
    assert float(nearest_neighbour_entropy(samples, num_neighbours=4)) == pytest.approx(oracle, abs=1e-10)


@pytest.mark.parametrize("estimator", [kde_entropy, nearest_neighbour_entropy, gaussian_entropy])
def test_batches_equal_single_calls_and_chunks_change_nothing(estimator, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(2, 3, 50, 4, generator=generator, dtype=torch.float64)
    batched = estimator(samples)
    assert batched.shape == (2, 3)
    torch.testing.assert_close(batched[1, 2], estimator(samples[1, 2]), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 7 * 50 * 6)
    torch.testing.assert_close(estimator(samples), batched, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [kde_entropy, gaussian_entropy])
def test_affine_maps_add_their_log_determinant(estimator) -> None:
    samples, _ = correlated(80, 3)
    matrix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 4.0]], dtype=torch.float64)
    moved = estimator(samples @ matrix.T - 3.0)
    torch.testing.assert_close(moved, estimator(samples) + math.log(4.0), rtol=0, atol=1e-9)


def test_far_outlier_stays_finite() -> None:
    samples, _ = correlated(50, 2)
    samples[0] += 1e6
    assert torch.isfinite(kde_entropy(samples))


@pytest.mark.parametrize("estimator", [kde_entropy, gaussian_entropy])
def test_degenerate_samples_are_errors(estimator) -> None:
    samples, _ = correlated(30, 3)
    copied = torch.cat([samples, samples[:, :1]], dim=1)
    with pytest.raises(NumericalError, match="singular"):
        estimator(copied)
    with pytest.raises(NumericalError, match="singular"):
        estimator(torch.ones(20, 2))
    with pytest.raises(NumericalError, match="singular"):
        estimator(samples[:3])
    with pytest.raises(DataError, match="at least 3"):
        estimator(samples[:2])
    samples[4, 1] = float("nan")
    with pytest.raises(NumericalError, match="non-finite"):
        estimator(samples)


def test_duplicates_are_an_error_for_nearest_neighbours() -> None:
    samples, _ = correlated(30, 3)
    samples[:5] = samples[0]
    with pytest.raises(NumericalError, match="distance 0"):
        nearest_neighbour_entropy(samples)
    with pytest.raises(UsageError, match="num_neighbours"):
        nearest_neighbour_entropy(samples, num_neighbours=0)
