from __future__ import annotations

import numpy as np
import pytest

from falcon_unlearn.conflict.gramian import Gramian
from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.selection import score as flags
from falcon_unlearn.selection.gradients import score_gradient_conflict
from falcon_unlearn.selection.rank import choose_layer, rank_layers


def batches(cosines: list[float], forget_norm: float = 3.0, retain_norm: float = 0.1) -> list[Gramian]:
    return [Gramian(forget_norm**2, value * forget_norm * retain_norm, retain_norm**2) for value in cosines]


def test_value_is_the_mean_cosine_whatever_the_norms() -> None:
    result = score_gradient_conflict({4: batches([0.2, -0.4, 0.5]), 2: batches([0.1] * 3, 1e-6, 1e6)})
    assert [score.layer for score in result.scores] == [2, 4]
    assert result.scores[0].value == pytest.approx(0.1)
    assert result.scores[1].value == pytest.approx(0.1)
    assert result.scores[1].low < 0.1 < result.scores[1].high
    assert result.scores[0].high - result.scores[0].low < 1e-9
    assert result.direction == "highest"


def test_least_conflict_is_best() -> None:
    generator = np.random.default_rng(0)
    gramians = {
        layer: batches(list(generator.normal(mean, 0.05, size=20)))
        for layer, mean in {0: -0.6, 1: -0.1, 2: 0.3, 3: -0.4}.items()
    }
    result = score_gradient_conflict(gramians)
    assert rank_layers(result).order == (2, 1, 3, 0)
    assert rank_layers(result).probability_best[2] == 1.0
    assert choose_layer(result).layer == 2


def test_shared_batches_let_layers_be_told_apart() -> None:
    # The cosines vary widely between batches but differ by the same amount between layers in each.
    difficulty = np.random.default_rng(0).normal(0, 0.4, size=16).clip(-0.7, 0.7)
    result = score_gradient_conflict({0: batches(list(difficulty - 0.1)), 1: batches(list(difficulty + 0.1))})
    assert result.scores[0].high > result.scores[1].low
    assert choose_layer(result).tied_layers == (1,)


def test_spread_matches_the_standard_error() -> None:
    cosines = np.random.default_rng(0).normal(0, 0.2, size=40)
    score = score_gradient_conflict({0: batches(list(cosines))}, num_resamples=4000).scores[0]
    assert (score.high - score.low) / (2 * 1.96) == pytest.approx(cosines.std() / np.sqrt(41), rel=0.1)


def test_batches_with_a_zero_gradient_are_left_out_and_flagged() -> None:
    zero = Gramian(1.0, 0.0, 0.0)
    result = score_gradient_conflict({0: [zero, *batches([0.2, 0.4])], 1: batches([0.9, 0.1, 0.3])})
    assert [score.value for score in result.scores] == pytest.approx([0.3, 0.2])
    assert result.num_samples == {"batches": 2}
    assert all({flags.ZERO_GRADIENT, flags.FEW_SAMPLES} <= set(score.flags) for score in result.scores)
    with pytest.raises(NumericalError, match="zero on 2 of 3 batches") as raised:
        score_gradient_conflict({0: [zero, zero, *batches([0.2])]})
    assert "before the first step" in str(raised.value.hint)


def test_bad_input_is_named() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        score_gradient_conflict({0: [Gramian(1.0, float("nan"), 1.0), *batches([0.1])]})
    with pytest.raises(DataError, match="two or more"):
        score_gradient_conflict({0: batches([0.1]), 1: batches([0.1])})
    with pytest.raises(DataError, match="same"):
        score_gradient_conflict({0: batches([0.1, 0.2]), 1: batches([0.1, 0.2, 0.3])})
    with pytest.raises(DataError, match="same"):
        score_gradient_conflict({})
