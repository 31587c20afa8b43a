from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.pca import fit_shared_pca, principal_components
from falcon_unlearn.linalg.streaming import StreamingCovariance


def decaying_samples(num_samples: int, num_dimensions: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 0.8 ** torch.arange(num_dimensions, dtype=torch.float64)
    samples = torch.randn(num_samples, num_dimensions, generator=generator, dtype=torch.float64) * scales
    rotation, _ = torch.linalg.qr(
        torch.randn(num_dimensions, num_dimensions, generator=generator, dtype=torch.float64)
    )
    return samples @ rotation + 5.0


def projector(components: torch.Tensor) -> torch.Tensor:
    return components.T @ components


@pytest.mark.parametrize(("num_samples", "num_dimensions"), [(200, 30), (30, 80), (50, 50)])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_agrees_with_sklearn(num_samples: int, num_dimensions: int, share: float) -> None:
    samples = decaying_samples(num_samples, num_dimensions)
    oracle = PCA(n_components=share, svd_solver="full").fit(samples.numpy())
    ours = fit_shared_pca(samples, share)
    assert ours.num_components == oracle.n_components_
    np.testing.assert_allclose(
        projector(ours.components), oracle.components_.T @ oracle.components_, atol=1e-9
    )
    np.testing.assert_allclose(ours.explained_variance, oracle.explained_variance_, rtol=1e-9)
    distances = torch.pdist(ours.transform(samples))
    np.testing.assert_allclose(
        distances, torch.pdist(torch.from_numpy(oracle.transform(samples.numpy()))), rtol=1e-8
    )


def test_keeps_the_smallest_number_of_components_that_reaches_the_share() -> None:
    samples = decaying_samples(300, 20)
    components = fit_shared_pca(samples, 0.9)
    assert components.explained_share >= 0.9
    fewer = components.explained_variance[:-1].sum() / components.total_variance
    assert fewer < 0.9


def test_maximum_components_wins_and_the_missed_share_is_visible() -> None:
    components = fit_shared_pca(decaying_samples(300, 20), 0.99, maximum_components=3)
    assert components.num_components == 3
    assert components.explained_share < 0.99


def test_keeping_everything_stops_at_the_rank() -> None:
    samples = decaying_samples(40, 4)
    copies = torch.cat([samples, samples], dim=1)
    assert fit_shared_pca(copies, 1.0).num_components == 4
    assert fit_shared_pca(decaying_samples(6, 40), 1.0).num_components == 5


def test_float32_input_is_computed_in_float64() -> None:
    samples = decaying_samples(100, 10).float()
    wide, narrow = fit_shared_pca(samples.double()), fit_shared_pca(samples)
    assert narrow.components.dtype == torch.float64
    assert torch.equal(wide.components, narrow.components)


def test_constant_samples_are_an_error() -> None:
    constant = torch.full((10, 4), 3.3)
    with pytest.raises(NumericalError, match="constant"):
        fit_shared_pca(constant)
    covariance = StreamingCovariance(4)
    covariance.update(constant)
    with pytest.raises(NumericalError, match="constant"):
        principal_components(covariance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_samples_are_an_error(bad: float) -> None:
    samples = torch.randn(10, 4)
    samples[3, 2] = bad
    with pytest.raises(NumericalError, match="1 non-finite"):
        fit_shared_pca(samples)
    with pytest.raises(NumericalError, match="1 non-finite"):
        StreamingCovariance(4).update(samples)


def test_bad_settings_name_the_setting() -> None:
    samples = torch.randn(10, 4)
    with pytest.raises(UsageError, match="minimum_explained_variance"):
        fit_shared_pca(samples, 1.5)
    with pytest.raises(UsageError, match="maximum_components"):
        fit_shared_pca(samples, 0.9, maximum_components=0)
    with pytest.raises(DataError, match="at least 2 rows"):
        fit_shared_pca(samples[:1])


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=5), seed=st.integers(0, 1000))
def test_streaming_equals_one_shot(cuts: list[int], seed: int) -> None:
    samples = decaying_samples(60, 8, seed) + 1000.0
    bounds = [0, *sorted(set(cuts)), 60]
    batches = [samples[low:high] for low, high in itertools.pairwise(bounds)]
    streamed, other = StreamingCovariance(8), StreamingCovariance(8)
    for index, batch in enumerate(batches):
        (streamed if index % 2 == 0 else other).update(batch)
    streamed.merge(other)
    assert streamed.num_samples == 60
    torch.testing.assert_close(streamed.mean, samples.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(streamed.covariance(), torch.cov(samples.T), rtol=1e-9, atol=1e-11)
    one_shot, merged = fit_shared_pca(samples, 0.9), principal_components(streamed, 0.9)
    assert merged.num_components == one_shot.num_components
    torch.testing.assert_close(
        projector(merged.components), projector(one_shot.components), rtol=0, atol=1e-8
    )


def test_merging_into_an_empty_covariance_and_empty_batches() -> None:
    samples = torch.randn(20, 3)
    filled, empty = StreamingCovariance(3), StreamingCovariance(3)
    filled.update(samples)
    filled.update(samples[:0])
    empty.merge(filled)
    torch.testing.assert_close(empty.covariance(), filled.covariance())
    with pytest.raises(DataError, match=r"shape \(N, 3\)"):
        filled.update(torch.randn(4, 2))
    with pytest.raises(DataError, match="at least 2"):
        StreamingCovariance(3).covariance()
