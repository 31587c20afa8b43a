from __future__ import annotations

import math

import pytest
import torch
from sklearn.feature_selection import mutual_info_regression

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.entropy import gaussian_entropy, kde_entropy
from falcon_unlearn.linalg.information import (
    mutual_information,
    permuted_information,
    reweighted_information,
)

ESTIMATORS = ("kde", "ksg", "gaussian")


def gaussian_pair(
    num_samples: int, num_dimensions: int, correlation: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return pairs whose coordinates correlate one by one, and their information in nats."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = torch.randn(2, num_samples, num_dimensions, generator=generator, dtype=torch.float64)
    second = correlation * first + math.sqrt(1 - correlation**2) * noise
    return first * 3 + 1, second * 0.2 - 4, -num_dimensions / 2 * math.log(1 - correlation**2)


@pytest.mark.parametrize("estimator", ["kde", "gaussian"])
@pytest.mark.parametrize(("num_samples", "num_dimensions"), [(60, 1), (200, 5), (120, 12)])
def test_is_the_difference_of_entropies_of_the_same_coordinates(
    estimator: str, num_samples: int, num_dimensions: int
) -> None:
    forget, retain, _ = gaussian_pair(num_samples, num_dimensions, 0.5)
    entropy = kde_entropy if estimator == "kde" else gaussian_entropy
    expected = entropy(forget) + entropy(retain) - entropy(torch.cat([forget, retain], dim=1))
    value = mutual_information(forget, retain, estimator=estimator)
    assert value == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("num_dimensions", [1, 2])
def test_gaussian_pair_approaches_the_closed_form(
    estimator: str, correlation: float, num_dimensions: int
) -> None:
    forget, retain, truth = gaussian_pair(4000, num_dimensions, correlation)
    # The KDE's own bias is the log ratio of its bandwidths and does not depend on the correlation.
    assert mutual_information(forget, retain, estimator=estimator) == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("estimator", ["ksg", "gaussian"])
def test_independent_samples_carry_no_information_on_average(estimator: str) -> None:
    forget, retain, _ = gaussian_pair(200, 10, 0.0)
    generator = torch.Generator().manual_seed(1)
    pairings = torch.stack([torch.randperm(200, generator=generator) for _ in range(64)])
    values = permuted_information(forget, retain, pairings, estimator=estimator)
    assert abs(float(values.mean())) < 0.05


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_permutation_removes_information(estimator: str) -> None:
    forget, retain, _ = gaussian_pair(200, 3, 0.8)
    generator = torch.Generator().manual_seed(1)
    pairings = torch.stack([torch.randperm(200, generator=generator) for _ in range(32)])
    null = permuted_information(forget, retain, pairings, estimator=estimator)
    value = mutual_information(forget, retain, estimator=estimator)
    assert value > float(null.max()) + 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batched_pairings_equal_reindexed_samples(estimator: str) -> None:
    forget, retain, _ = gaussian_pair(50, 4, 0.3)
    generator = torch.Generator().manual_seed(2)
    pairings = torch.stack([torch.randperm(50, generator=generator) for _ in range(3)])
    batched = permuted_information(forget, retain, pairings, estimator=estimator)
    for value, pairing in zip(batched, pairings, strict=True):
        single = mutual_information(forget, retain[pairing], estimator=estimator)
        assert float(value) == pytest.approx(single, abs=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_is_symmetric_and_independent_of_the_order_of_pairs(estimator: str) -> None:
    forget, retain, _ = gaussian_pair(80, 3, 0.5)
    value = mutual_information(forget, retain, estimator=estimator)
    assert mutual_information(retain, forget, estimator=estimator) == pytest.approx(value, abs=1e-9)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(4))
    shuffled = mutual_information(forget[order], retain[order], estimator=estimator)
    assert shuffled == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_nearest_neighbour_form_agrees_with_sklearn(correlation: float) -> None:
    forget, retain, _ = gaussian_pair(300, 1, correlation)
    oracle = mutual_info_regression(forget.numpy(), retain.numpy()[:, 0], n_neighbors=3, random_state=0)[0]
    ours = mutual_information(forget, retain, estimator="ksg")
    assert max(ours, 0.0) == pytest.approx(oracle, abs=2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_weights_change_nothing(estimator: str) -> None:
    forget, retain, _ = gaussian_pair(70, 3, 0.4)
    pairing = torch.randperm(70, generator=torch.Generator().manual_seed(4))
    weights = torch.full((70, 2), 0.3)
    values = reweighted_information(forget, retain, weights, pairing_N=pairing, estimator=estimator)
    expected = mutual_information(forget, retain[pairing], estimator=estimator)
    assert values.tolist() == pytest.approx([expected, expected], abs=1e-10)


def test_integer_weights_equal_repeated_points_without_self_support() -> None:
    forget, retain, _ = gaussian_pair(40, 2, 0.4)
    weights = torch.randint(1, 4, (40, 1), generator=torch.Generator().manual_seed(0)).double()
    value = float(reweighted_information(forget, retain, weights)[0])
    weights = weights[:, 0] * 40 / weights.sum()

    def entropy(samples: torch.Tensor) -> float:
        dimensions = samples.shape[1]
        covariance = torch.cov(samples.T).reshape(dimensions, dimensions)
        bandwidth = covariance * 40 ** (-2 / (dimensions + 4))
        total = 0.0
        for index in range(40):
            others = [other for other in range(40) if other != index]
            normal = torch.distributions.MultivariateNormal(samples[others], bandwidth)
            density = (weights[others] * normal.log_prob(samples[index]).exp()).sum() / weights[others].sum()
            total -= float(weights[index] * density.log()) / 40
        return total

    expected = entropy(forget) + entropy(retain) - entropy(torch.cat([forget, retain], dim=1))
    assert value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bootstrap_spread_matches_the_sampling_spread(estimator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = -torch.rand(150, 200, generator=generator, dtype=torch.float64).log()
    values, spreads = [], []
    for seed in range(60):
        forget, retain, _ = gaussian_pair(150, 1, 0.6, seed)
        values.append(mutual_information(forget, retain, estimator=estimator))
        spreads.append(float(reweighted_information(forget, retain, weights, estimator=estimator).std()))
    ratio = sum(spreads) / 60 / float(torch.tensor(values).std())
    assert 0.7 < ratio < 1.5


def test_bad_input_is_named() -> None:
    forget, retain, _ = gaussian_pair(30, 2, 0.0)
    with pytest.raises(DataError, match="equally many rows"):
        mutual_information(forget, retain[:20])
    with pytest.raises(UsageError, match="kde, ksg, gaussian"):
        mutual_information(forget, retain, estimator="kd")
    with pytest.raises(DataError, match="permutation"):
        permuted_information(forget, retain, torch.zeros(1, 30, dtype=torch.int64))
    with pytest.raises(NumericalError, match="singular"):
        mutual_information(forget, torch.ones(30, 2))
    with pytest.raises(NumericalError, match="together"):
        mutual_information(forget, forget.clone())
    with pytest.raises(DataError, match="more than 40"):
        mutual_information(forget, retain, estimator="ksg", num_neighbours=40)
