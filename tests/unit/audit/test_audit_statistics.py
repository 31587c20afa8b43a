from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats

from falcon_unlearn.audit.statistics import (
    RECOVERED,
    detectable_change,
    exact_mcnemar,
    fieller_interval,
    holm,
    resample,
    sign_flip_p_value,
)
from falcon_unlearn.errors import DataError
from falcon_unlearn.linalg.intervals import wilson_interval


def _generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 40), (353, 1273), (50, 50)])
def test_wilson_equals_scipy(right, count):
    expected = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx((expected.low, expected.high))


def test_mcnemar_is_the_exact_binomial_of_discordant_pairs():
    before, after = [1, 1, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 0, 1]
    result = exact_mcnemar(before, after)
    assert (result.gained, result.lost) == (3, 1)
    # 2 * P(Bin(4, 1/2) <= 1) = 2 * (1 + 4) / 16
    assert result.p_value == pytest.approx(10 / 16)
    assert exact_mcnemar(before, before).p_value == 1.0


def test_holm_equals_closed_testing_with_bonferroni():
    values = [0.01, 0.04, 0.03, 0.005, 0.5]
    for index, adjusted in enumerate(holm(values)):
        families = [members for members in product([0, 1], repeat=len(values)) if members[index]]
        expected = max(
            min(1.0, sum(members) * min(p for p, inside in zip(values, members, strict=True) if inside))
            for members in families
        )
        assert adjusted == pytest.approx(expected)
    assert holm([]) == []


def test_sign_flips_equal_scipy():
    values = np.array([0.5, 1.0, -0.25, 1.0, 0.0, 0.75, -1.0, 1.0])
    expected = scipy.stats.permutation_test(
        (values, np.zeros_like(values)),
        lambda first, second, axis: (first - second).sum(axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
        vectorized=True,
    )
    clusters = list(range(8))
    exact = sign_flip_p_value(values, clusters, generator=_generator())
    assert exact == pytest.approx(expected.pvalue)
    sampled = sign_flip_p_value(values, clusters, generator=_generator(), num_resamples=100)
    assert abs(sampled - exact) < 0.15
    assert sign_flip_p_value(-values, clusters, generator=_generator()) == 1.0


def test_sign_flips_treat_a_cluster_as_one():
    values, clusters = np.ones(12), [0] * 6 + [1] * 6
    assert sign_flip_p_value(values, clusters, generator=_generator()) == pytest.approx(1 / 4)


def test_fieller_ends_solve_the_quadratic_and_reduce_to_the_ordinary_ratio():
    covariance = [[0.02, 0.005], [0.005, 0.01]]
    low, high = fieller_interval(0.6, 0.5, covariance)
    for end in (low, high):
        variance = covariance[0][0] - 2 * end * covariance[0][1] + end**2 * covariance[1][1]
        assert (0.6 - end * 0.5) ** 2 == pytest.approx(scipy.stats.norm.ppf(0.975) ** 2 * variance)
    exact = fieller_interval(0.6, 0.5, [[0.0004, 0.0], [0.0, 0.0]])
    half = scipy.stats.norm.ppf(0.975) * 0.02
    assert exact == pytest.approx(((0.6 - half) / 0.5, (0.6 + half) / 0.5))
    assert fieller_interval(0.6, 0.1, [[0.01, 0.0], [0.0, 0.01]]) == (-np.inf, np.inf)


def test_bootstrap_draws_the_same_clusters_for_all_quantities():
    values = _generator(1).random(30)
    drawn = resample(
        {"a": values, "b": values + 0.25},
        [n // 3 for n in range(30)],
        generator=_generator(),
        num_resamples=500,
    )
    _, replicates = drawn.combination({"b": 1.0, "a": -1.0})
    assert replicates == pytest.approx(np.full(500, 0.25))
    assert drawn.num_clusters == 10
    # The standard deviation of a mean of 10 equally large clusters.
    means = values.reshape(10, 3).mean(axis=1)
    _, single = drawn.combination({"a": 1.0})
    assert single.std() == pytest.approx(means.std() / np.sqrt(10), rel=0.1)


def test_seeds_are_resampled_around_the_items():
    seeds = np.array([[0.0] * 20, [1.0] * 20])
    drawn = resample({"a": seeds, "b": np.zeros(20)}, range(20), generator=_generator(), num_resamples=2000)
    value, replicates = drawn.combination({"a": 1.0})
    assert value == 0.5
    assert set(np.unique(replicates)) == {0.0, 0.5, 1.0}


def test_ratios_are_refused_over_an_uncertain_denominator():
    generator = _generator(2)
    tables = {"original": generator.integers(0, 2, 40), "null": generator.integers(0, 2, 40)}
    tables["unlearned"] = tables["original"]
    drawn = resample(tables, range(40), generator=generator, num_resamples=500)
    ratio = drawn.ratio(*RECOVERED["knowledge_left_unattacked"])
    assert ratio.value is None and "standard error" in ratio.note
    assert ratio.difference == pytest.approx(tables["original"].mean() - tables["null"].mean())


def test_recovery_numbers_have_their_formulas_and_are_not_clipped():
    ones = np.ones(50)
    tables = {
        "original": ones * 0.9,
        "unlearned": ones * 0.3,
        "null": ones * 0.25,
        "original^a": ones * 0.8,
        "unlearned^a": ones * 0.95,
        "null^a": ones * 0.35,
    }
    drawn = resample(tables, range(50), generator=_generator(), num_resamples=200)
    expected = {
        "recovered": 0.65 / 0.6,
        "net_recovered": (0.65 - 0.10) / 0.65,
        "knowledge_left": 0.60 / 0.45,
        "reachable": 0.60 / 0.65,
        "knowledge_left_unattacked": 0.05 / 0.65,
        "removed_share": 0.60 / 0.65,
    }
    for name, value in expected.items():
        assert drawn.ratio(*RECOVERED[name]).value == pytest.approx(value), name
    assert expected["reachable"] == pytest.approx(
        expected["knowledge_left_unattacked"] + expected["net_recovered"]
    )


def test_equal_values_still_have_an_interval():
    drawn = resample(
        {"a": np.ones(10), "b": np.ones(10)}, range(10), generator=_generator(), num_resamples=200
    )
    value, interval = drawn.difference({"a": 1.0, "b": -1.0})
    upper = scipy.stats.binomtest(0, 10).proportion_ci(method="wilson").high
    assert value == 0.0 and interval == pytest.approx((-upper, upper))


def test_coverage_of_differences_and_ratios():
    covered = {"difference": 0, "ratio": 0}
    generator = _generator(5)
    runs, clusters, size = 200, 40, 3
    labels = np.repeat(np.arange(clusters), size)
    for _ in range(runs):
        ability = generator.beta(1.5, 1.5, clusters)[labels]
        draw = generator.random((3, clusters * size))
        tables = {
            "original": (draw[0] < 0.6 + 0.4 * ability).astype(float),
            "unlearned": (draw[1] < 0.3 + 0.4 * ability).astype(float),
            "null": (draw[2] < 0.4 * ability).astype(float),
        }
        drawn = resample(tables, labels, generator=generator, num_resamples=1000)
        _, interval = drawn.difference({"unlearned": 1.0, "null": -1.0})
        covered["difference"] += interval.contains(0.3)
        ratio = drawn.ratio(*RECOVERED["knowledge_left_unattacked"])
        covered["ratio"] += ratio.low <= 0.5 <= ratio.high
    for name, count in covered.items():
        # 95 % less three binomial standard errors of 200 runs.
        assert count / runs > 0.90, name


def test_detectable_change_has_the_stated_values():
    assert detectable_change(0.15, 200) == pytest.approx(0.077, abs=5e-4)
    assert detectable_change(0.15, 1273) == pytest.approx(0.030, abs=5e-4)


def test_tables_of_different_items_are_refused():
    with pytest.raises(DataError, match="3 values for 4 items"):
        resample({"a": np.ones(3)}, range(4), generator=_generator())
