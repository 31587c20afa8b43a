from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.metrics.auc import (
    auc_interval,
    auc_standard_error,
    membership_auc,
    privleak_estimate,
    resampled_aucs,
)
from falcon_unlearn.metrics.membership import privleak

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)


@given(SCORES, SCORES)
def test_equals_scikit_learn_with_ties(forget, holdout):
    labels = [0] * len(forget) + [1] * len(holdout)
    assert membership_auc(forget, holdout) == pytest.approx(roc_auc_score(labels, forget + holdout))


@given(SCORES, SCORES, st.integers(0, 99))
def test_every_draw_has_the_area_that_scikit_learn_gives_it(forget, holdout, seed):
    generator = np.random.default_rng(seed)
    draws = [
        tuple(generator.integers(0, len(side), generator.integers(1, 9)) for side in (forget, holdout))
        for _ in range(5)
    ]
    found = resampled_aucs(forget, holdout, draws)
    for area, (mine, theirs) in zip(found, draws, strict=True):
        scores = [*np.array(forget)[mine], *np.array(holdout)[theirs]]
        assert area == pytest.approx(roc_auc_score([0] * len(mine) + [1] * len(theirs), scores))


def test_infinite_scores_have_their_place_in_a_draw():
    whole = [(np.arange(2), np.arange(3))]
    scores = [-np.inf, 1.0], [np.inf, 1.0, -np.inf]
    assert resampled_aucs(*scores, whole) == pytest.approx([membership_auc(*scores)])


def test_orientation():
    assert membership_auc([0.1, 0.2], [3.0, 4.0]) == 1.0  # members have the lower loss
    assert membership_auc([3.0], [0.1]) == 0.0
    assert membership_auc([1.0], [1.0]) == 0.5


# Sampling errors in the specification of the benchmark; retrained models have AUCs around .4.
@pytest.mark.parametrize(
    ("number", "error"), [(20, 0.094), (40, 0.064), (100, 0.040), (200, 0.027), (400, 0.020)]
)
def test_standard_errors_of_retrained_models(number, error):
    assert auc_standard_error(0.4, number, number) == pytest.approx(error, rel=0.06)


@pytest.mark.parametrize(("num_forget", "num_holdout"), [(60, 15), (15, 60)])
def test_standard_error_of_exponential_scores_by_simulation(num_forget, num_holdout):
    """For exponential scores the formula of Hanley and McNeil is exact."""
    generator = np.random.default_rng(0)
    found = [
        membership_auc(generator.exponential(1.0, num_forget), generator.exponential(4.0, num_holdout))
        for _ in range(3000)
    ]
    assert np.std(found) == pytest.approx(auc_standard_error(0.8, num_forget, num_holdout), rel=0.06)


@pytest.mark.parametrize("scale", [1.0, 3.0, 30.0])
def test_the_interval_covers(scale):
    generator = np.random.default_rng(1)
    truth = scale / (1 + scale)
    covered = 0
    for _ in range(400):
        auc = membership_auc(generator.exponential(1.0, 40), generator.exponential(scale, 40))
        covered += auc_interval(auc, 40, 40).contains(truth)
    assert 0.92 <= covered / 400 <= 0.99


@given(st.floats(0, 1), st.integers(1, 500), st.integers(1, 500))
def test_the_interval_holds_the_estimate_and_is_never_a_point(auc, num_forget, num_holdout):
    low, high = auc_interval(auc, num_forget, num_holdout)
    assert 0.0 <= low <= auc + 1e-9
    assert auc - 1e-9 <= high <= 1.0
    assert high - low > 1e-6


def test_more_texts_narrow_the_interval():
    few, many = auc_interval(1.0, 20, 20), auc_interval(1.0, 400, 400)
    assert few.high == many.high == 1.0
    assert few.low < many.low < 1.0


def test_privleak_pairs_the_texts():
    generator = np.random.default_rng(0)
    forget, holdout = generator.normal(0.3, 1, 100), generator.normal(0, 1, 100)
    replicate = forget + 0.02 * generator.normal(size=100), holdout + 0.02 * generator.normal(size=100)
    found = privleak_estimate(forget, holdout, *replicate, generator=generator, num_resamples=300)
    assert found.value == privleak(membership_auc(forget, holdout), membership_auc(*replicate))
    assert found.low <= found.value <= found.high
    # A replicate of the reference stays within the band of MUSE; unpaired errors alone would exceed it.
    assert -5 < found.low <= 0.5
    assert -0.5 <= found.high < 5


def test_unusable_input():
    with pytest.raises(DataError, match="holdout"):
        membership_auc([1.0], [])
    with pytest.raises(NumericalError, match="1 forget"):
        membership_auc([np.nan], [1.0])
    with pytest.raises(DataError, match="draw"):
        resampled_aucs([1.0], [2.0], [(np.array([0]), np.array([], dtype=np.int64))])
    with pytest.raises(DataError):
        auc_standard_error(1.2, 10, 10)
    with pytest.raises(DataError, match="2 and 1"):
        privleak_estimate([1.0, 2.0], [1.0], [1.0], [1.0], generator=np.random.default_rng(0))
