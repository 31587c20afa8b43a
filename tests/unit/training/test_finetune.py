"""Fine-tuning learns, repeats, goes on after an interruption, and leaves embeddings alone."""

from __future__ import annotations

import pytest
import torch

from falcon_unlearn.events import TrainingStepped, ignore_events
from falcon_unlearn.training.finetune import FinetuneSettings, finetune, trainable_names
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


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path):
    whole = tiny_engine()
    finetune(whole, EXAMPLES, SETTINGS, ignore_events)

    def kill(event):
        if isinstance(event, TrainingStepped) and event.step == 8:
            raise Killed

    state = tmp_path / "state"
    engine = tiny_engine()
    original = parameters_of(engine.model)
    with pytest.raises(Killed):
        finetune(engine, EXAMPLES, SETTINGS, kill, state)
    assert all(torch.equal(original[n], p) for n, p in engine.model.named_parameters())
    assert state.is_file()
    finetune(engine, EXAMPLES, SETTINGS, ignore_events, state)
    expected = parameters_of(whole.model)
    assert all(torch.equal(expected[n], p) for n, p in engine.model.named_parameters())
    assert not state.exists()


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
