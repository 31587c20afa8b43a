from __future__ import annotations

import pytest

from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import Progress, StageStarted
from falcon_unlearn.pipeline import select_layer
from falcon_unlearn.pipeline.selecting import candidate_range, draw_mixture, draw_samples
from tiny_runs import tiny_corpus


def recipe_for(bench, estimator, **selection):
    settings = {"layer": None, "estimator": estimator, "resamples": 10, "candidates": [0.2, 0.9]}
    return bench.bare(selection=settings | selection)


@pytest.mark.parametrize("estimator", ["pooled", "paired", "gradient_conflict"])
def test_every_estimator_chooses_a_candidate_and_explains_it(estimator, bench):
    recipe = recipe_for(bench, estimator)
    result = select_layer(recipe)
    low, high = candidate_range(recipe, 6)
    assert (low, high) == (1, 5)
    assert result.estimator == estimator and not result.fixed
    assert result.unit == ("cosine" if estimator == "gradient_conflict" else "nats")
    assert low <= result.layer <= high and low <= result.best_layer <= high
    scored = {value.layer: value for value in result.layers}
    assert set(scored) == (set(range(6)) if estimator != "gradient_conflict" else set(range(low, high + 1)))
    candidates = [value for value in result.layers if value.candidate]
    assert {value.layer for value in candidates} == set(range(low, high + 1))
    assert sum(value.probability_best for value in candidates) == pytest.approx(1)
    assert all(value.low <= value.high for value in result.layers)
    best = max(candidates, key=lambda v: v.value if estimator == "gradient_conflict" else -v.value)
    assert result.best_layer == best.layer
    assert len(result.explanation) > 20 and str(result.layer) in result.explanation
    assert -1 <= result.rank_stability <= 1
    assert result.seconds_forward > 0
    if estimator != "gradient_conflict":
        assert all(value.null_low <= value.null_mean <= value.null_high for value in result.layers)
        assert set(result.samples) >= {"forget trees", "forget quiz"}


def test_the_result_depends_on_the_seed_only(bench):
    first, again = (select_layer(recipe_for(bench, "pooled")) for _ in range(2))
    assert [v.model_dump() for v in first.layers] == [v.model_dump() for v in again.layers]


def test_the_bare_optimum_can_be_asked_for(bench):
    result = select_layer(recipe_for(bench, "pooled", rule="best"))
    assert result.rule == "best" and result.layer == result.best_layer


def test_a_fixed_layer_is_recorded_and_nothing_is_scored(bench):
    events = []
    result = select_layer(bench.bare(selection={"layer": 4}), sink=events.append)
    assert (result.layer, result.fixed, result.layers) == (4, True, [])
    assert "select" not in [event.stage for event in events if isinstance(event, StageStarted)]


def test_a_fixed_layer_outside_the_model_is_refused(bench):
    with pytest.raises(UsageError, match="0 to 5"):
        select_layer(bench.bare(selection={"layer": 6}))


@pytest.mark.parametrize(
    ("candidates", "layers", "expected"),
    [
        ([0.15, 0.6], 2, (1, 4)),
        ([0.15, 0.6], 4, (3, 4)),  # room for the window
        ([0.0, 0.1], 1, (0, 1)),
        ([0.9, 1.0], 1, (5, 5)),
        ([0.0, 0.1], 6, (5, 5)),
    ],
)
def test_candidates_lie_in_the_depth_range_with_room_for_the_window(bench, candidates, layers, expected):
    recipe = bench.bare(selection={"layer": None, "candidates": candidates}, train={"layers": layers})
    assert candidate_range(recipe, 6) == expected


def test_progress_counts_every_sample_once(bench):
    events = []
    result = select_layer(recipe_for(bench, "pooled", samples=9), sink=events.append)
    progress = [event for event in events if isinstance(event, Progress) and event.stage == "select"]
    assert progress[-1].done == progress[-1].total == 27
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert sum(result.samples.values()) == 27


def test_samples_are_drawn_without_repetition_and_the_mixture_by_weight(bench):
    recipe = recipe_for(bench, "pooled", samples=12)
    big, small = tiny_corpus("big", 40, (8, 12), 0, weight=3.0), tiny_corpus("small", 40, (8, 12), 1)
    rows = draw_samples(big, recipe, "x")
    assert len(rows) == len(set(rows)) == 12
    assert rows == draw_samples(big, recipe, "x") != draw_samples(big, recipe, "y")
    mixture = draw_mixture([big, small], recipe)
    owners = [row in {e.input_ids for e in big.training} for row in mixture]
    assert (owners.count(True), owners.count(False)) == (9, 3)
