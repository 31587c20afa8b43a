from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.metrics.membership import (
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    reference_score,
    zlib_score,
)


def test_simple_scores_by_hand():
    assert loss_score([-1.0, -3.0]) == 2.0
    assert zlib_score(3.0, "café " * 20) == pytest.approx(3.0 / len(zlib.compress(("café " * 20).encode())))
    assert reference_score(2.0, 2.5) == -0.5


@pytest.mark.parametrize(
    ("number", "used"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (7, 2), (10, 4), (35, 14), (40, 16)]
)
def test_min_k_uses_the_lowest_forty_percent_and_at_least_one(number, used):
    values = -np.arange(1.0, number + 1)
    np.random.default_rng(0).shuffle(values)
    assert min_k_score(values) == pytest.approx(np.arange(number - used + 1, number + 1).mean())


def test_min_k_of_all_tokens_is_the_loss():
    values = -np.random.default_rng(0).gamma(2, 1, 30)
    assert min_k_score(values, share=1.0) == pytest.approx(loss_score(values))


def test_dropping_the_last_token():
    assert min_k_score([-1.0, -2.0, -9.0], drop_last=True) == 2.0
    with pytest.raises(DataError, match="got 1"):
        min_k_score([-1.0], drop_last=True)


def test_min_k_plus_plus_from_a_full_distribution():
    torch.manual_seed(0)
    log_probabilities = torch.randn(12, 50, dtype=torch.float64).log_softmax(-1)
    tokens = torch.randint(0, 50, (12,))
    means, variances, expected = [], [], []
    for row, token in zip(log_probabilities.tolist(), tokens.tolist(), strict=True):
        mean = sum(math.exp(value) * value for value in row)
        variance = sum(math.exp(value) * (value - mean) ** 2 for value in row)
        means.append(mean)
        variances.append(variance)
        expected.append((row[token] - mean) / math.sqrt(variance))
    found = log_probabilities.gather(1, tokens[:, None])[:, 0].numpy()
    score = min_k_plus_plus_score(found, means, variances)
    assert score == pytest.approx(-np.mean(sorted(expected)[:4]))
    shorter = min_k_plus_plus_score(found, means, variances, drop_last=True)
    assert shorter == pytest.approx(-np.mean(sorted(expected[:-1])[:4]))


def test_min_k_plus_plus_with_a_certain_model():
    # No spread over the vocabulary: the variance counts as 1e-6, not 0.
    assert min_k_plus_plus_score([-0.002], [-0.001], [0.0]) == pytest.approx(1.0)
    with pytest.raises(DataError, match="2, 1 and 2"):
        min_k_plus_plus_score([-1.0, -1.0], [-1.0], [1.0, 1.0])


@pytest.mark.parametrize("share", [0.0, -0.4, 1.1])
def test_impossible_shares(share):
    with pytest.raises(DataError, match="share"):
        min_k_score([-1.0], share=share)


def test_scores_refuse_what_is_not_a_number():
    with pytest.raises(NumericalError):
        min_k_score([-1.0, math.nan])


# The 1B target on forget10, and MUSE-News (specification of the benchmark).
@pytest.mark.parametrize(
    ("auc", "reference", "expected"),
    [(0.99665, 0.3826125, -99.45739100654656), (0.9991, 0.5236, -99.81108310247458), (0.38, 0.38, 0.0)],
)
def test_privleak_reaches_the_published_values(auc, reference, expected):
    assert privleak(auc, reference) == pytest.approx(expected, rel=1e-12)


def test_privleak_against_the_default_of_a_half():
    assert privleak(0.3826125, 0.5) == pytest.approx(23.477499995304495, rel=1e-12)


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_both_orientations_agree(auc, reference):
    muse = privleak(1 - auc, 1 - reference, orientation="muse")
    assert privleak(auc, reference) == pytest.approx(muse, rel=1e-6, abs=1e-6)


def test_privleak_is_never_measured_against_nothing():
    with pytest.raises(DataError, match="retrained") as caught:
        privleak(0.9, None)
    assert "retain log" in caught.value.hint
    for auc, reference in ((1.1, 0.5), (0.5, math.nan), (0.5, 1.0)):
        with pytest.raises(DataError):
            privleak(auc, reference)
