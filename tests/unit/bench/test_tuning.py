"""Equal effort for every method, kept after every trial, and the layer part of what is tuned."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.bench.tuning import MAXIMUM_TRIALS, Knowledge, Tuned, trials_of, tune, tuning_score
from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.errors import NumericalError, UsageError
from falcon_unlearn.events import ignore_events

TRIALS = [{"train.learning_rate": rate} for rate in (1.0, 2.0, 3.0)]


def search(record, scores, trials=TRIALS, calls=None):
    def score_of(trial):
        if calls is not None:
            calls.append(trial)
        score = scores[trial["train.learning_rate"]]
        if score is None:
            raise NumericalError("diverged")
        return score

    return tune("npo", trials, score_of, record, ignore_events)


@pytest.mark.parametrize("count", [1, 3, MAXIMUM_TRIALS])
def test_all_methods_try_equally_many_different_settings(count):
    for name, method in METHODS.items():
        trials = trials_of(name, method.acts_on, 30, count)
        assert len({json.dumps(trial, sort_keys=True) for trial in trials}) == count
        assert all(("selection.layer" in trial) == (method.acts_on == "states") for trial in trials)


def test_default_trials_vary_layer_and_strength():
    trials = trials_of("falcon", "states", 30, 3)
    assert {trial["selection.layer"] for trial in trials} == {7, 9}
    assert len({trial["train.relative_step"] for trial in trials}) == 2


def test_a_fixed_layer_leaves_the_strength_to_vary():
    trials = trials_of("rmu", "states", 30, 3, layer=12)
    assert {trial["selection.layer"] for trial in trials} == {12}
    assert len({trial["train.relative_step"] for trial in trials}) == 3


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 6])
def test_layers_lie_inside_small_models(num_blocks):
    for trial in trials_of("rmu", "states", num_blocks, MAXIMUM_TRIALS, window=1):
        assert 0 <= trial["selection.layer"] < num_blocks


@pytest.mark.parametrize("count", [0, MAXIMUM_TRIALS + 1])
def test_impossible_numbers_of_trials_are_refused(count):
    with pytest.raises(UsageError, match="--trials"):
        trials_of("npo", "outputs", 30, count)


def test_the_best_trial_is_kept_and_a_diverged_one_scores_nothing(tmp_path):
    tuned = search(tmp_path / "npo.json", {1.0: 0.4, 2.0: 0.7, 3.0: None})
    assert tuned.overrides == TRIALS[1]
    assert tuned.scores == (0.4, 0.7, 0.0)


def test_interrupted_tuning_goes_on_after_the_last_finished_trial(tmp_path):
    record = tmp_path / "npo.json"
    with pytest.raises(KeyError):
        search(record, {1.0: 0.4})
    calls = []
    tuned = search(record, {2.0: 0.2, 3.0: 0.3}, calls=calls)
    assert calls == TRIALS[1:] and tuned.overrides == TRIALS[0]
    assert search(record, {}) == tuned


def test_fewer_trials_use_the_first_and_forget_none(tmp_path):
    record = tmp_path / "npo.json"
    search(record, {1.0: 0.1, 2.0: 0.2, 3.0: 0.9})
    assert search(record, {}, TRIALS[:2]).scores == (0.1, 0.2)
    assert search(record, {}).scores == (0.1, 0.2, 0.9)


def test_records_of_other_settings_are_passed_over(tmp_path):
    record = tmp_path / "npo.json"
    record.write_text(json.dumps({"overrides": {}, "scores": [0.5], "trials": [TRIALS[0]]}))
    tuned = search(record, {1.0: 0.1, 2.0: 0.2, 3.0: 0.3})
    assert isinstance(tuned, Tuned) and tuned.scores == (0.1, 0.2, 0.3)


def test_a_trial_that_removes_more_than_unseen_earns_nothing_extra():
    reference = Knowledge(forget=0.9, checked=0.8, unseen=0.1)
    exact = tuning_score(Knowledge(0.1, 0.8, 0.0), reference)
    beyond = tuning_score(Knowledge(0.0, 0.8, 0.0), reference)
    harmful = tuning_score(Knowledge(0.1, 0.2, 0.0), reference)
    assert exact == beyond == pytest.approx(1.0)
    assert harmful == pytest.approx(2 * 0.25 / 1.25)
    assert tuning_score(reference, reference) == 0
