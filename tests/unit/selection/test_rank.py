from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.selection.rank import choose_layer, kendall_tau, rank_layers, spearman_correlation
from falcon_unlearn.selection.score import LayerScore, LayerScores, preferred_direction

numbers = st.integers(-4, 4).map(float)


def scores(
    values: dict[int, float],
    spread: float,
    shared: float = 0.0,
    nulls: dict[int, float] | None = None,
    estimator: str = "pooled",
) -> LayerScores:
    """Return scores with own noise of size `spread` and noise common to all layers of size `shared`."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, shared, size=400) if shared else np.zeros(400)
    records = []
    for layer, value in values.items():
        replicates = value + common + generator.normal(0, spread, size=400)
        records.append(
            LayerScore(
                layer,
                value,
                low=float(np.quantile(replicates, 0.025)),
                high=float(np.quantile(replicates, 0.975)),
                null_mean=None if nulls is None else nulls[layer],
                replicates=tuple(replicates),
            )
        )
    return LayerScores(estimator, tuple(records))


def test_clear_differences_give_a_firm_ranking() -> None:
    ranking = rank_layers(scores({0: 0.9, 1: 0.2, 2: 0.5}, spread=0.01))
    assert ranking.order == (1, 2, 0)
    assert ranking.probability_best == {0: 0.0, 1: 1.0, 2: 0.0}
    assert ranking.kendall == pytest.approx(1.0)
    assert ranking.spearman == pytest.approx(1.0)


def test_equal_layers_share_the_probability_and_have_no_stable_order() -> None:
    ranking = rank_layers(scores(dict.fromkeys(range(4), 0.3), spread=0.1))
    assert sum(ranking.probability_best.values()) == pytest.approx(1.0)
    assert all(0.15 < share < 0.35 for share in ranking.probability_best.values())
    nearly = rank_layers(scores({0: 0.3, 1: 0.3001, 2: 0.3002, 3: 0.3003}, spread=0.1))
    assert abs(nearly.kendall) < 0.1


def test_lowest_layer_among_the_indistinguishable_is_chosen() -> None:
    curve = scores({2: 0.80, 5: 0.31, 7: 0.30, 9: 0.33, 12: 0.60}, spread=0.03)
    choice = choose_layer(curve)
    assert (choice.layer, choice.best_layer, choice.tied_layers) == (5, 7, (5, 7, 9))
    assert "layer 5" in choice.reason and "Layer 7" in choice.reason
    assert choose_layer(curve, rule="best").layer == 7


def test_noise_that_all_layers_share_does_not_tie_them() -> None:
    values = {1: 0.5, 2: 0.4}
    assert choose_layer(scores(values, spread=0.3)).layer == 1
    assert choose_layer(scores(values, spread=0.01, shared=0.3)).layer == 2


def test_candidates_bound_the_choice() -> None:
    curve = scores({0: 0.0, 4: 0.5, 8: 0.2, 29: 0.1}, spread=0.001)
    choice = choose_layer(curve, candidates=(4, 18))
    assert (choice.layer, choice.candidates) == (8, (4, 8))
    assert rank_layers(curve, candidates=(4, 18)).order == (8, 4)
    with pytest.raises(DataError, match="no layer from 5 to 6"):
        choose_layer(curve, candidates=(5, 6))


def test_highest_is_preferred_for_the_gradient_cosine() -> None:
    values = {0: -0.5, 1: 0.2, 2: 0.1}
    cosines = scores(values, spread=0.001, estimator="gradient_conflict")
    assert choose_layer(cosines).layer == 1
    assert rank_layers(cosines).order == (1, 2, 0)
    assert "highest mean gradient cosine" in choose_layer(cosines).reason
    assert [preferred_direction(name) for name in ("paired", "pooled")] == ["lowest", "lowest"]


def test_excess_ranks_by_the_distance_to_the_null() -> None:
    curve = scores({0: 1.0, 1: 1.2}, spread=0.001, nulls={0: 0.1, 1: 1.1})
    assert choose_layer(curve).layer == 0
    assert choose_layer(curve, quantity="excess").layer == 1
    assert curve.scores[1].excess == pytest.approx(0.1)
    with pytest.raises(UsageError, match="excess"):
        choose_layer(scores({0: 1.0}, 0.1), quantity="excess")


def test_missing_layers_are_explained() -> None:
    curve = LayerScores("pooled", scores({5: 0.1}, 0.1).scores, missing={0: "constant"})
    with pytest.raises(DataError, match="1 failed, first: constant"):
        choose_layer(curve, candidates=(0, 3))


def test_bad_arguments_are_named() -> None:
    curve = scores({0: 0.1}, 0.1)
    with pytest.raises(UsageError, match="earliest_tied, best"):
        choose_layer(curve, rule="argmin")
    with pytest.raises(UsageError, match="value, excess"):
        choose_layer(curve, quantity="low")
    with pytest.raises(UsageError, match="paired, pooled, gradient_conflict"):
        preferred_direction("mi")
    with pytest.raises(DataError, match="replicates"):
        choose_layer(LayerScores("pooled", (LayerScore(0, 0.1, 0.0, 0.2),)))


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_correlations_equal_scipy(pairs: list[tuple[float, float]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert kendall_tau(first, second) == spearman_correlation(first, second) == 0.0
    else:
        assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
        assert spearman_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_ranking_needs_no_torch() -> None:
    script = "import sys; import falcon_unlearn.selection.rank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
