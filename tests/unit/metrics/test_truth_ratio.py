from __future__ import annotations

import math

import numpy as np
import pytest

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.metrics.truth_ratio import (
    forget_truth_ratio,
    knowledge_truth_ratio,
    retain_truth_ratio,
    truth_ratio,
)


def test_by_hand():
    # P(right) = .5; wrong answers .25 and .04: geometric mean .1, arithmetic .145.
    right, wrong = [-math.log(0.5)], [[-math.log(0.25), -math.log(0.04)]]
    assert truth_ratio(right, wrong) == pytest.approx([0.2])
    assert truth_ratio(right, wrong, averaging="arithmetic") == pytest.approx([0.29])
    assert truth_ratio(right, wrong, epsilon=0.5) == pytest.approx([0.1])
    assert truth_ratio(right, wrong, averaging="arithmetic", epsilon=0.5) == pytest.approx([0.145])


def test_the_arithmetic_mean_is_never_smaller():
    generator = np.random.default_rng(0)
    right, wrong = generator.gamma(2, 1, 50), generator.gamma(2, 1, (50, 5))
    assert (truth_ratio(right, wrong, averaging="arithmetic") >= truth_ratio(right, wrong)).all()


def test_ratio_survives_probabilities_that_underflow():
    assert truth_ratio([2000.0], [[2001.0, 2001.0]]) == pytest.approx([math.exp(-1)])


def test_aggregates_by_hand():
    ratios = [0.5, 4.0, 1.0]
    assert forget_truth_ratio(ratios) == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert retain_truth_ratio(ratios) == pytest.approx(0.5 / 3)
    assert knowledge_truth_ratio(ratios) == pytest.approx((2 / 3 + 1 / 5 + 1 / 2) / 3)


@pytest.mark.parametrize("ratio", [0.0, math.inf])
def test_a_collapsed_model_scores_zero_on_the_forget_set(ratio):
    assert forget_truth_ratio([ratio]) == 0.0


def test_unusable_input():
    with pytest.raises(DataError, match=r"\(2,\) and \(3, 5\)"):
        truth_ratio(np.ones(2), np.ones((3, 5)))
    with pytest.raises(DataError):
        truth_ratio(np.ones(2), np.ones((2, 0)))
    with pytest.raises(NumericalError):
        truth_ratio([math.nan], [[1.0]])
    with pytest.raises(NumericalError):
        forget_truth_ratio([-0.1])
    with pytest.raises(DataError):
        retain_truth_ratio([])
