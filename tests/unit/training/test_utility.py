"""The utility budget: what is kept was measured inside it, with the model's own forward as oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import TrainingStepped, ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.runs import open_work
from falcon_unlearn.training.outputs import unlearn_outputs
from falcon_unlearn.training.session import unlearn_window
from falcon_unlearn.training.utility import UtilityMeter, last_inside
from killed_sessions import Killed, assert_equal, kill_at, session
from pico import pico_tokenizer
from tiny_runs import LAYER, parameters_of, tiny_data, tiny_engine, tiny_recipe


@lru_cache(maxsize=1)
def likely_texts():
    """Return texts that the random model itself prefers, so that every change makes them less likely."""
    model, texts = tiny_engine().model, []
    for first in range(10, 16):
        ids = torch.tensor([[first]])
        for _ in range(12):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        texts.append(EncodedExample(tuple(ids[0].tolist()), (False, *[True] * 12), "", False))
    return tuple(texts)


def data_with_held_out():
    data = tiny_data(prompt_tokens=5)
    return replace(data, retain=(replace(data.retain[0], held_out=likely_texts()),))


def perplexity(model, texts):
    """Score texts one by one through the model's own forward."""
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor(text.input_ids)
            logits = model(ids[None]).logits[0, :-1].double()
            total, count = (
                total + float(cross_entropy(logits, ids[1:], reduction="sum")),
                count + len(ids) - 1,
            )
    return math.exp(total / count)


def unlearn(recipe, folder, sink=ignore_events):
    engine, data = tiny_engine(), data_with_held_out()
    before = perplexity(engine.model, data.retain[0].held_out)
    if recipe.method_entry.acts_on == "outputs":
        session = unlearn_outputs(engine, pico_tokenizer(), data, recipe, LAYER, folder, sink)
    else:
        session = unlearn_window(engine, data, recipe, LAYER, folder, sink)
    return session, perplexity(engine.model, data.retain[0].held_out) / before - 1


CHANGES = {
    "falcon": {"train": {"steps": 12, "learning_rate": 0.02, "utility_steps": 3}},
    "grad_ascent": {
        "method": "grad_ascent",
        "data": {"loss_on": "answer"},
        "train": {"steps": 12, "parameters": "all", "learning_rate": 4e-3, "utility_steps": 3},
    },
}


@pytest.mark.parametrize("method", CHANGES)
def test_a_budget_keeps_the_last_checked_step_inside_it(method, tmp_path):
    changes = CHANGES[method]
    losses = {}
    for steps in (6, 9):  # what stopping there would have cost, by whole runs
        shorter = {**changes, "train": {**changes["train"], "steps": steps, "schedule": "constant"}}
        (tmp_path / str(steps)).mkdir()
        losses[steps] = unlearn(tiny_recipe(**shorter), tmp_path / str(steps))[1]
    assert losses[6] < losses[9], "the case is chosen so that the loss rises"
    limit = (losses[6] + losses[9]) / 2
    bounded = {**changes, "train": {**changes["train"], "maximum_utility_loss": limit}}
    (tmp_path / "bounded").mkdir()
    session, loss = unlearn(tiny_recipe(**bounded), tmp_path / "bounded")
    assert session.result.status == "stopped_on_budget"
    assert session.result.kept_step == 6
    assert loss == pytest.approx(losses[6], rel=1e-3)
    assert session.result.utility_loss == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("method", CHANGES)
def test_a_budget_that_is_never_reached_changes_nothing(method, tmp_path):
    changes = CHANGES[method]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    free, _ = unlearn(tiny_recipe(**changes), tmp_path / "a")
    wide = {**changes, "train": {**changes["train"], "maximum_utility_loss": 1e9}}
    bounded, loss = unlearn(tiny_recipe(**wide), tmp_path / "b")
    assert all(torch.equal(tensor, bounded.changed[name]) for name, tensor in free.changed.items())
    assert (bounded.result.status, free.result.utility_loss) == ("completed", None)
    assert bounded.result.utility_loss == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("method", CHANGES)
def test_a_budget_that_the_first_check_exceeds_leaves_the_original(method, tmp_path):
    tight = {**CHANGES[method], "train": {**CHANGES[method]["train"], "maximum_utility_loss": 1e-9}}
    seen = []
    session, loss = unlearn(
        tiny_recipe(**tight), tmp_path, lambda e: seen.append(e) if isinstance(e, TrainingStepped) else None
    )
    assert (session.result.kept_step, loss) == (0, 0.0)
    before = parameters_of(tiny_engine().model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.changed.items())
    # A method on outputs sees it at the first check and stops; a window is measured at the end.
    assert len(seen) == (3 if method == "grad_ascent" else 12)


@pytest.mark.parametrize("limit", ["stops", "never reached"])
@pytest.mark.parametrize("method", CHANGES)
def test_a_run_with_a_budget_that_is_killed_twice_ends_in_the_same_bits(method, limit, tmp_path):
    changes = CHANGES[method]
    data = data_with_held_out()
    budget = 1e9
    if limit == "stops":
        shorter = {**changes, "train": {**changes["train"], "steps": 6, "schedule": "constant"}}
        (tmp_path / "six").mkdir()
        budget = 1.01 * unlearn(tiny_recipe(**shorter), tmp_path / "six")[1]
    train = {**changes["train"], "maximum_utility_loss": budget}
    recipe = tiny_recipe(**{**changes, "train": train, "runtime": {"save_seconds": 0}})
    whole = session(recipe, tmp_path / "whole", data=data)
    assert whole.result.status == ("stopped_on_budget" if limit == "stops" else "completed")
    path = tmp_path / ".out.work"
    for step in (4, 8):
        with pytest.raises(Killed):
            session(recipe, tmp_path, kill_at(step), open_work(path, {"r": 1}), data=data)
    steps = []

    def count(event):
        if isinstance(event, TrainingStepped):
            steps.append(event.step)

    assert_equal(whole, session(recipe, tmp_path, count, open_work(path, {"r": 1}), data=data))
    assert steps[0] == 8


def test_without_held_out_text_a_budget_is_refused(tmp_path):
    recipe = tiny_recipe(train={"maximum_utility_loss": 0.1})
    with pytest.raises(UsageError, match="held-out retain text") as caught:
        unlearn_window(tiny_engine(), tiny_data(), recipe, LAYER, tmp_path, ignore_events)
    assert "holdout_share" in caught.value.hint


def test_a_method_whose_steps_say_nothing_about_the_result_refuses_a_budget(tmp_path):
    recipe = tiny_recipe(method="task_vector", train={"parameters": "all", "maximum_utility_loss": 0.1})
    with pytest.raises(UsageError, match="task_vector"):
        unlearn_outputs(
            tiny_engine(), pico_tokenizer(), data_with_held_out(), recipe, LAYER, tmp_path, ignore_events
        )


def test_a_model_that_breaks_has_an_infinite_loss():
    engine = tiny_engine()
    meter = UtilityMeter(engine, data_with_held_out().retain[0].held_out, 256)
    assert meter.loss() == 0.0
    engine.model.lm_head.weight.data.fill_(float("nan"))
    assert meter.loss() == math.inf


@given(st.lists(st.floats(0, 10), max_size=40), st.floats(0.001, 9))
def test_bisection_finds_the_last_step_inside_a_rising_loss(values, limit):
    losses = sorted(values)
    steps = [10 * (n + 1) for n in range(len(losses))]
    calls = []

    def loss_at(step):
        calls.append(step)
        return losses[step // 10 - 1]

    kept, loss = last_inside(steps, loss_at, limit)
    inside = [step for step, value in zip(steps, losses, strict=True) if value <= limit]
    assert kept == (inside[-1] if inside else 0)
    assert loss == (losses[kept // 10 - 1] if kept else 0.0)
    assert len(calls) <= math.ceil(math.log2(len(steps) + 1))


@given(st.lists(st.floats(0, 10), max_size=20), st.floats(0.001, 9))
def test_whatever_the_loss_does_what_is_kept_was_inside(values, limit):
    kept, loss = last_inside(range(1, len(values) + 1), lambda step: values[step - 1], limit)
    assert loss <= limit
    assert kept == 0 or values[kept - 1] == loss
