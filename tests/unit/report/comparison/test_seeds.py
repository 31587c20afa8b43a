from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from falcon_unlearn.report.comparison.seeds import spread, usable


@given(
    values=st.lists(st.floats(-1e3, 1e3).map(lambda value: round(value, 4)), min_size=2, max_size=8),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_interval_equals_scipy(values: list[float], confidence: float) -> None:
    found = spread(values, confidence)
    error = stats.sem(values)
    low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=max(error, 1e-300))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
    assert (found.minimum, found.maximum) == (min(values), max(values))
    assert found.minimum <= found.mean <= found.maximum


def test_single_value_has_no_interval() -> None:
    found = spread([0.3], 0.95)
    assert (found.mean, found.minimum, found.maximum) == (0.3, 0.3, 0.3)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_three_known_values() -> None:
    # Mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027.
    found = spread([1.0, 2.0, 3.0], 0.95)
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1e101, -1e300])
def test_numbers_that_cannot_be_averaged(value: float | None) -> None:
    assert usable(value) is None


@pytest.mark.parametrize("value", [0.0, -3.5, 1e100])
def test_usable_numbers_come_back(value: float) -> None:
    assert usable(value) == value
