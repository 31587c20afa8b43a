from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, norm

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.metrics.forget_quality import forget_quality, smallest_p_value

# scipy warns where its exact method gives way; the result says so instead.
pytestmark = pytest.mark.filterwarnings("ignore:ks_2samp:RuntimeWarning")

RATIOS = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=20)


@given(RATIOS, RATIOS)
def test_equals_scipy_with_its_default_method(first, second):
    result = forget_quality(first, second)
    expected = ks_2samp(first, second)
    assert (result.p_value, result.distance) == (expected.pvalue, expected.statistic)
    assert result.interval is None
    named = ks_2samp(first, second, method={"exact": "exact", "asymptotic": "asymp"}[result.method])
    assert named.pvalue == result.p_value


def test_method_follows_the_size():
    generator = np.random.default_rng(0)
    small, large = generator.normal(size=40), generator.normal(size=10_001)
    assert forget_quality(small, small + 1).method == "exact"
    assert forget_quality(small, large).method == "asymptotic"


# p-values of two samples without overlap, from the specification of the benchmark.
@pytest.mark.parametrize(("number", "floor"), [(40, 1.9e-23), (200, 1.94e-119), (400, 1.06e-239)])
def test_the_floor_of_the_p_value(number, floor):
    ratios = np.arange(number, dtype=float)
    assert forget_quality(ratios, ratios + number).p_value == pytest.approx(floor, rel=0.03)
    assert smallest_p_value(number, number) == pytest.approx(floor, rel=0.03)


def test_the_floor_with_unequal_sizes():
    assert smallest_p_value(3, 5) == pytest.approx(ks_2samp(np.arange(3), np.arange(5) + 9).pvalue)
    assert smallest_p_value(10_000, 10_000) == 0.0  # below the smallest float


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_the_interval_covers_the_true_distance(shift, paired):
    generator = np.random.default_rng(3)
    truth = 2 * norm.cdf(shift / 2) - 1
    covered = 0
    for _ in range(60):
        shared = generator.normal(size=80) if paired else 0.0
        first = 0.6 * shared + (0.8 if paired else 1.0) * generator.normal(size=80)
        second = 0.6 * shared + (0.8 if paired else 1.0) * generator.normal(size=80) + shift
        result = forget_quality(first, second, generator=generator, paired=paired, num_resamples=200)
        assert result.interval is not None
        assert result.interval.contains(result.distance)
        covered += result.interval.contains(truth)
    assert covered >= 54


def test_pairing_narrows_the_interval_of_two_models_that_agree():
    generator = np.random.default_rng(0)
    first = generator.normal(size=200)
    second = first + 0.1 * generator.normal(size=200)
    paired, free = (
        forget_quality(first, second, generator=generator, paired=p).interval for p in (True, False)
    )
    assert paired.high - paired.low < free.high - free.low


def test_the_interval_repeats_with_the_seed():
    ratios = np.random.default_rng(0).normal(size=(2, 50))
    first, second = (forget_quality(*ratios, generator=np.random.default_rng(5)).interval for _ in range(2))
    assert first == second


def test_unusable_input():
    with pytest.raises(DataError, match="reference"):
        forget_quality([1.0], [])
    with pytest.raises(DataError, match="2 and 3"):
        forget_quality([1.0, 2.0], [1.0, 2.0, 3.0], generator=np.random.default_rng(0), paired=True)
    with pytest.raises(NumericalError, match="model"):
        forget_quality([np.nan], [1.0])
    with pytest.raises(DataError):
        smallest_p_value(0, 3)


def test_infinite_ratios_are_ties():
    ratios = [0.5, np.inf, np.inf, np.inf]
    result = forget_quality(ratios, ratios, generator=np.random.default_rng(0), paired=True)
    assert (result.p_value, result.distance, result.interval) == (1.0, 0.0, (0.0, 0.0))
