"""Rows laid end to end: little padding, and the states and gradients of single sequences."""

from __future__ import annotations

import random

import pytest
import torch

from falcon_unlearn.activations.collect import batches_by_length
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import LARGEST_PADDING, plan_layout, window_states
from pico import FAMILIES, pico_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(8))
def test_every_token_has_one_place_and_padding_is_rare(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 60) for _ in range(draw.randint(2, 12))]
    width = max(lengths) + draw.randint(0, 5)
    layout = plan_layout(lengths, width, CPU)
    fed = len(lengths) * width if layout is None else layout.position_ids_RW.numel()
    assert sum(lengths) >= (1 - LARGEST_PADDING) * fed
    if layout is not None:
        real = {row * width + column for row, length in enumerate(lengths) for column in range(length)}
        assert set(layout.sources_T.tolist()) == real
        assert len(set(layout.targets_T.tolist())) == len(real)


def test_full_rows_and_rows_that_count_nowhere_stay_as_they_are():
    assert plan_layout([16, 16, 16], 16, CPU) is None
    assert plan_layout([0], 16, CPU) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_states_and_gradients_of_single_ones(family):
    engine = BlockEngine(pico_model(family).requires_grad_(False))
    lengths = [13, 5, 9, 3]
    generator = torch.Generator().manual_seed(1)
    states_BLD = torch.randn((4, 14, 32), generator=generator)
    weight = next(p for n, p in engine.block(3).named_parameters() if "down" in n or "4h_to_h" in n)
    weight.requires_grad_(True)
    assert plan_layout(lengths, 14, CPU) is not None
    with engine.window(2, 3):
        packed_BLD = window_states(engine, states_BLD, lengths)
        single = [engine.forward(states_BLD[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    for row, (expected_LD, length) in enumerate(zip(single, lengths, strict=True)):
        assert torch.allclose(packed_BLD[row, :length], expected_LD, atol=2e-5)
    loss = sum(packed_BLD[i, :n].square().sum() for i, n in enumerate(lengths))
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(sum(s.square().sum() for s in single), weight)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_batches_of_the_caching_pass_hold_little_padding():
    draw = random.Random(0)
    lengths = [draw.randint(20, 200) for _ in range(400)]
    batches = list(batches_by_length(lengths, 2048))
    fed = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert sum(lengths) >= (1 - LARGEST_PADDING) * fed
    assert sorted(i for batch in batches for i in batch) == list(range(400))
