from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from falcon_unlearn.models.architectures import resolve_trained_parameters
from falcon_unlearn.training.cost import cache_flops, train_flops
from tiny_runs import tiny_engine

WIDE = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "num_hidden_layers": 4}
TOKENS = (2, 16)  # short, so that attention, which the model leaves out, stays small


@pytest.fixture(scope="module")
def engine():
    return tiny_engine("llama", **WIDE)


def block_parameters(engine):
    return sum(p.numel() for p in engine.block(0).parameters())


def test_caching_costs_what_torch_counts(engine):
    states = torch.randn(*TOKENS, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        engine.run(states, 0, 2)
    predicted = cache_flops(32, block_parameters(engine), 2)
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_training_pass_costs_at_most_what_is_predicted(engine):
    trained = resolve_trained_parameters(engine.model, engine.structure, ["mlp.down"], [1, 2])
    parameters = [dict(engine.model.named_parameters())[name].requires_grad_() for name in trained]
    states = torch.randn(*TOKENS, 128)
    with FlopCounterMode(display=False) as counter, engine.window(1, 2):
        torch.autograd.grad(engine.forward(states).square().mean(), parameters)
    predicted = train_flops(32, block_parameters(engine), 2, sum(p.numel() for p in parameters))
    # Below the lowest trained matrix no gradient of activations is taken: an upper bound, no loose one.
    assert 0.6 * predicted < counter.get_total_flops() <= 1.02 * predicted
