from __future__ import annotations

import pytest
import torch

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import TrainingStepped
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.objectives.falcon import FalconObjective
from falcon_unlearn.training.session import unlearn_window
from tiny_runs import LAYER, parameters_of, run_session, tiny_data, tiny_engine, tiny_recipe


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def poison_loss(monkeypatch):
    original = FalconObjective.forget_loss

    def forget_loss(self, updated, batch):
        loss = original(self, updated, batch)
        return loss * float("nan") if batch.step == 2 else loss

    monkeypatch.setattr(FalconObjective, "forget_loss", forget_loss)


def poison_gradient(monkeypatch):
    original = FalconObjective.retain_loss

    def retain_loss(self, updated, batch):
        # The square root of zero has value 0 and slope infinity; times zero that is NaN.
        return original(self, updated, batch) + (0.0 * updated).abs().sqrt().sum()

    monkeypatch.setattr(FalconObjective, "retain_loss", retain_loss)


def poison_activation(monkeypatch):
    original = BlockEngine.forward
    calls = []

    def forward(self, states, position_ids=None):
        result = original(self, states, position_ids)
        if not torch.is_grad_enabled():
            return result  # caching is left alone
        calls.append(1)
        if len(calls) % 2 == 0:
            return result  # only forget states go wrong
        mask = torch.zeros_like(result, dtype=torch.bool)
        mask[0, 0, 0] = True  # the first token of a prompt
        return result.masked_fill(mask, float("nan"))

    monkeypatch.setattr(BlockEngine, "forward", forward)


@pytest.mark.parametrize(
    ("poison", "changes", "words"),
    [
        (poison_loss, {}, "step 2: the forget loss is nan"),
        (poison_gradient, {}, "gradient"),
        (poison_activation, {}, "hidden state is not finite|loss is nan"),
        (None, {"learning_rate": 1e38, "optimizer": "sgd", "weight_decay": 1e9}, "parameter"),
        (None, {"learning_rate": 5.0, "divergence_factor": 1.5}, "divergence_factor"),
    ],
    ids=["loss", "gradient", "activation", "parameter", "norm"],
)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_run_that_goes_wrong_leaves_the_model_as_it_was(
    poison, changes, words, source, tmp_path, monkeypatch
):
    engine = tiny_engine()
    engine.model.to(source)
    before = parameters_of(engine.model)
    if poison is not None:
        poison(monkeypatch)
    with pytest.raises(NumericalError, match=words) as caught:
        run_session(tmp_path, tiny_recipe(train=changes), tiny_data(prompt_tokens=3), engine=engine)
    assert caught.value.exit_code == 2
    after = dict(engine.model.named_parameters())
    assert all(after[name].dtype == source and torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in after.values())
    assert engine.base.config.num_hidden_layers == 6
    assert len(engine.base.layers) == 6


def test_an_interrupt_leaves_the_model_as_it_was(tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)

    def interrupt(event):
        if isinstance(event, TrainingStepped) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn_window(engine, tiny_data(), tiny_recipe(), LAYER, tmp_path, interrupt)
    assert equal(before, dict(engine.model.named_parameters()))
