"""Promises of error rates, by simulation: what is called significant at 5 % is wrong at most that often."""

from __future__ import annotations

import numpy as np
import pytest

from falcon_unlearn.audit.statistics import exact_mcnemar
from falcon_unlearn.linalg.intervals import bootstrap_interval
from falcon_unlearn.metrics.auc import membership_auc

NULLS = 2000


@pytest.mark.parametrize(("num_items", "share"), [(20, 0.5), (60, 0.9), (200, 0.3)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_mcnemar_is_wrong_at_most_as_often_as_promised(num_items, share, alpha):
    """Before and after have the same share of right answers; the exact test may only be conservative."""
    draw = np.random.default_rng(0)
    before = draw.random((NULLS, num_items)) < share
    after = draw.random((NULLS, num_items)) < share
    p_values = {}
    wrong = 0
    for gained, lost in zip((~before & after).sum(1), (before & ~after).sum(1), strict=True):
        key = (int(gained), int(lost))
        if key not in p_values:
            first = np.array([0.0] * key[0] + [1.0] * key[1] + [1.0])
            second = np.array([1.0] * key[0] + [0.0] * key[1] + [1.0])
            p_values[key] = exact_mcnemar(first, second).p_value
        wrong += p_values[key] <= alpha
    # Three standard errors of the simulated share.
    assert wrong / NULLS <= alpha + 3 * (alpha * (1 - alpha) / NULLS) ** 0.5


@pytest.mark.parametrize("skewed", [False, True])
def test_the_bootstrap_covers_about_as_often_as_promised(skewed):
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(NULLS):
        values = draw.exponential(1.0, 80) if skewed else draw.normal(1.0, 1.0, 80)
        found = bootstrap_interval(values, generator=draw, num_resamples=200)
        hits += found.low <= 1.0 <= found.high
    # A percentile interval of 80 skewed values is known to be a little short.
    assert (0.90 if skewed else 0.925) <= hits / NULLS <= 0.97


def test_turning_the_scores_around_turns_the_area_around():
    draw = np.random.default_rng(2)
    for _ in range(50):
        first, second = draw.integers(0, 5, 17), draw.integers(1, 6, 23)
        assert membership_auc(first, second) == pytest.approx(1 - membership_auc(-first, -second))
