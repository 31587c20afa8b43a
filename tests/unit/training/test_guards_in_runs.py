"""The guards in whole sessions of both loops: faults appear at one step, and what is left is sound."""

from __future__ import annotations

import json

import pytest
import torch

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import Notice, TrainingStepped
from falcon_unlearn.objectives.falcon import FalconObjective
from falcon_unlearn.objectives.outputs.npo import Npo
from falcon_unlearn.runs import open_work
from falcon_unlearn.training.guards import FIRST_LOSSES, PATIENCE
from falcon_unlearn.training.loop import UnlearningLoop
from falcon_unlearn.training.outputs.loop import OutputLoop
from killed_sessions import recipe_of, session
from tiny_runs import parameters_of, tiny_engine

LOOPS = {
    "window": ("falcon", UnlearningLoop, FalconObjective),
    "outputs": ("npo", OutputLoop, Npo),
}
both_loops = pytest.mark.parametrize(("method", "loop", "objective"), LOOPS.values(), ids=LOOPS)


def poison_moment(monkeypatch, loop, at_step, value):
    """Put `value` into a moment before the update of a step; an infinite one leaves every weight finite."""
    update = loop._update

    def poisoned(self, step, gradients):
        if step == at_step:
            parameter = self.optimizer.param_groups[0]["params"][0]
            self.optimizer.state[parameter]["exp_avg_sq"].view(-1)[0] = value
        update(self, step, gradients)

    monkeypatch.setattr(loop, "_update", poisoned)


def raise_loss(monkeypatch, objective, high_steps):
    """Make the forget loss a hundred-fold in some steps, without a change of its gradient."""
    original = objective.forget_loss

    def raised(self, updated, batch):
        loss = original(self, updated, batch)
        return loss + 1.0 - loss.detach() + (99.0 if batch.step in high_steps else 0.0)

    monkeypatch.setattr(objective, "forget_loss", raised)


@pytest.fixture
def failing(tmp_path):
    """Run a session that must fail; give the words and the kept state, and check what must be untouched."""

    def run(recipe):
        engine, work = tiny_engine(), open_work(tmp_path / ".out.work", {"recipe": 1})
        before, steps = parameters_of(engine.model), []
        with pytest.raises(NumericalError) as caught:
            session(recipe, tmp_path, steps.append, work, engine=engine)
        after = parameters_of(engine.model)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert [path.name for path in tmp_path.iterdir()] == [".out.work"]
        done = sum(isinstance(event, TrainingStepped) for event in steps)
        return str(caught.value), done, work.snapshots("training").newest()

    return run


@both_loops
def test_an_infinite_moment_ends_the_session_and_keeps_the_state_before(
    method, loop, objective, failing, monkeypatch, tmp_path
):
    recipe = recipe_of(method)
    with monkeypatch.context() as patch:
        poison_moment(patch, loop, 3, float("inf"))
        words, done, kept = failing(recipe)
    assert "step 3: the optimizer state of" in words and "(exp_avg_sq)" in words
    assert (done, kept.number) == (3, 3)
    # The state is good: going on from it ends where a session without the fault does.
    whole = session(recipe, tmp_path / "whole")
    resumed = session(recipe, tmp_path, work=open_work(tmp_path / ".out.work", {"recipe": 1}))
    assert all(torch.equal(tensor, resumed.changed[name]) for name, tensor in whole.changed.items())


@both_loops
def test_a_forget_loss_that_stays_high_ends_the_session(method, loop, objective, failing, monkeypatch):
    raise_loss(monkeypatch, objective, range(FIRST_LOSSES, 100))
    last = FIRST_LOSSES + PATIENCE - 1
    words, done, kept = failing(recipe_of(method, steps=last + 5, loss_factor=50.0))
    assert f"step {last}: the forget loss has been above 50 times its initial median 1" in words
    assert (done, kept.number) == (last, last)
    history = json.loads((kept.path / "state.json").read_text())["history"]
    assert [row["forget_loss"] for row in history] == pytest.approx([1.0] * 5 + [100.0] * (PATIENCE - 1))


@both_loops
@pytest.mark.parametrize(
    ("high_steps", "factor"),
    [(range(FIRST_LOSSES, FIRST_LOSSES + PATIENCE - 1), 50.0), (range(FIRST_LOSSES, 100), 101.0)],
    ids=["comes back in time", "within the factor"],
)
def test_a_forget_loss_within_its_limits_ends_nothing(
    method, loop, objective, high_steps, factor, tmp_path, monkeypatch
):
    raise_loss(monkeypatch, objective, high_steps)
    steps = FIRST_LOSSES + PATIENCE + 1
    done = session(recipe_of(method, steps=steps, loss_factor=factor), tmp_path)
    assert (done.result.status, done.result.steps_done) == ("completed", steps)


@both_loops
@pytest.mark.parametrize(("silent", "told_at"), [(range(1, 8), [3]), ((2, 3, 5, 6), [])], ids=["told", "not"])
def test_a_silent_retain_gradient_is_told_once_at_its_third_step(
    method, loop, objective, silent, told_at, tmp_path, monkeypatch
):
    original = objective.retain_loss

    def retain_loss(self, updated, batch):
        loss = original(self, updated, batch)
        return loss * 0.0 if batch.step in silent else loss

    monkeypatch.setattr(objective, "retain_loss", retain_loss)
    events = []
    session(recipe_of(method, steps=8), tmp_path, events.append)
    told = [event.message for event in events if isinstance(event, Notice) and "retain grad" in event.message]
    assert [int(words.split(":")[0].removeprefix("step ")) for words in told] == told_at
