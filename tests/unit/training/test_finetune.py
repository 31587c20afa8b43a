"""Fine-tuning learns, repeats, goes on after an interruption, and leaves embeddings alone."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import torch

from falcon_unlearn.errors import NumericalError, PrerequisiteError
from falcon_unlearn.events import Notice, TrainingStepped, ignore_events
from falcon_unlearn.runs import open_work
from falcon_unlearn.stopping import Terminated, stop_signals
from falcon_unlearn.training import finetune as module
from falcon_unlearn.training.finetune import FinetuneSettings, finetune, trainable_names
from falcon_unlearn.training.states import TENSORS
from pico import FAMILIES
from tiny_runs import parameters_of, tiny_corpus, tiny_engine

SETTINGS = FinetuneSettings(epochs=4, batch_size=4, learning_rate=3e-3, compute_dtype="float32")
EXAMPLES = tiny_corpus("t", 12, (9, 14), 0, prompt_tokens=4).training


class Killed(BaseException):
    """Stand for a kill in the middle of an epoch."""


def test_the_loss_falls_and_embeddings_stay():
    engine = tiny_engine()
    before = parameters_of(engine.model)
    result = finetune(engine, EXAMPLES, SETTINGS, ignore_events)
    after = parameters_of(engine.model)
    assert result.losses[-1] < result.losses[0] - 0.5
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trainable_names(engine, embeddings=False))
    assert not any("embed" in name or "lm_head" in name for name in moved)


@pytest.fixture(scope="module")
def whole():
    """Parameters and epoch losses of a training that nothing interrupts: 12 steps."""
    engine = tiny_engine()
    result = finetune(engine, EXAMPLES, SETTINGS, ignore_events)
    return parameters_of(engine.model), result


def at_step(number, action):
    def sink(event):
        if isinstance(event, TrainingStepped) and event.step == number:
            action()

    return sink


def kill():
    raise Killed


def train(folder, sink=ignore_events, save_seconds=0.0, engine=None):
    """Train a fresh model with the states of `folder`; return parameters, result, steps and warnings."""
    engine, events = engine or tiny_engine(), []

    def seen(event):
        events.append(event)
        sink(event)

    work = open_work(folder / ".out.work", {"preparation": "k"}, sink=events.append)
    result = finetune(engine, EXAMPLES, SETTINGS, seen, work, save_seconds=save_seconds)
    steps = [event.step for event in events if isinstance(event, TrainingStepped)]
    warnings = [e.message for e in events if isinstance(e, Notice) and e.level == "warning"]
    return parameters_of(engine.model), result, steps, warnings


def assert_whole(found, whole):
    parameters, result = found[:2]
    assert all(torch.equal(whole[0][name], parameters[name]) for name in parameters)
    assert (result.losses, result.tokens, result.steps) == (
        whole[1].losses,
        whole[1].tokens,
        whole[1].steps,
    )


def states(folder):
    return sorted((folder / ".out.work" / "training").iterdir())


def test_a_run_killed_twice_within_epochs_ends_in_the_same_weights(tmp_path, whole):
    for number in (5, 8):
        engine = tiny_engine()
        original = parameters_of(engine.model)
        with pytest.raises(Killed):
            train(tmp_path, at_step(number, kill), engine=engine)
        assert all(torch.equal(original[n], p) for n, p in engine.model.named_parameters())
    found = train(tmp_path)
    # Killed before step 8 was saved, so it is the first that is taken again.
    assert found[2] == [8, 9, 10, 11, 12]
    assert_whole(found, whole)


def test_the_states_stay_until_the_caller_has_the_result(tmp_path, whole):
    train(tmp_path)
    assert [path.name[:8] for path in states(tmp_path)] == ["00000011", "00000012"]
    found = train(tmp_path)
    assert found[2] == []
    assert_whole(found, whole)


def test_states_are_saved_by_the_clock_and_at_the_end(tmp_path):
    train(tmp_path, save_seconds=1e9)
    assert [path.name[:8] for path in states(tmp_path)] == ["00000012"]


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_step_and_saves(number, kind, tmp_path, whole):
    with pytest.raises(kind), stop_signals():
        train(tmp_path, at_step(7, lambda: os.kill(os.getpid(), number)), save_seconds=1e9)
    assert [path.name[:8] for path in states(tmp_path)] == ["00000007"]
    found = train(tmp_path)
    assert found[2][0] == 8
    assert_whole(found, whole)


@pytest.mark.parametrize("kept", [1, 0])
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_state_is_named_and_the_one_before_or_the_start_is_used(damage, kept, tmp_path, whole):
    with pytest.raises(Killed):
        train(tmp_path, at_step(6, kill))
    damaged = states(tmp_path)[kept:] if kept else states(tmp_path)
    for path in damaged:
        content = (path / TENSORS).read_bytes()
        cut = content[:-4] if damage == "truncated" else content[:-4] + b"\0\0\x80\x7f"
        (path / TENSORS).write_bytes(cut)
    found = train(tmp_path)
    assert found[2][0] == (5 if kept else 1)
    assert all(any(path.name in words for words in found[3]) for path in damaged)
    assert_whole(found, whole)


def test_a_full_disk_is_told_and_the_states_before_are_whole(tmp_path, whole, monkeypatch):
    saved = module.TrainingStates.save

    def full_after_step_6(self, state, values, optimizer):
        if state.step == 7:

            def full(descriptor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "fsync", full)
        saved(self, state, values, optimizer)

    with monkeypatch.context() as patched:
        patched.setattr(module.TrainingStates, "save", full_after_step_6)
        with pytest.raises(PrerequisiteError, match="No space left"):
            train(tmp_path)
    monkeypatch.undo()
    assert [path.name[:8] for path in states(tmp_path)] == ["00000005", "00000006"]
    found = train(tmp_path)
    assert found[2][0] == 7
    assert_whole(found, whole)


def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path, monkeypatch):
    real = torch.autograd.grad

    def poisoned(*arguments):
        return tuple(gradient * float("inf") for gradient in real(*arguments))

    monkeypatch.setattr(torch.autograd, "grad", poisoned)
    engine = tiny_engine()
    original = parameters_of(engine.model)
    with pytest.raises(NumericalError, match="gradient norm of fine-tuning"):
        finetune(engine, EXAMPLES, SETTINGS, ignore_events)
    assert all(torch.equal(original[n], p) for n, p in engine.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_head_are_trained_on_demand(family):
    engine = tiny_engine(family)
    names = trainable_names(engine, embeddings=True)
    assert set(names) == {name for name, _ in engine.model.named_parameters()}
    assert set(trainable_names(engine, embeddings=False)) < set(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_model_trains_in_float32_and_ends_in_bfloat16(family):
    engine = tiny_engine(family)
    engine.model.to(torch.bfloat16)
    result = finetune(engine, EXAMPLES, SETTINGS, ignore_events)
    assert result.losses[-1] < result.losses[0]
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}
