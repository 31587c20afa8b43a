from __future__ import annotations

import random

import pytest
import torch

from falcon_unlearn.audit.attacks.direction_ablation import (
    DirectionAblation,
    directions_ablated,
    writers_without,
)
from falcon_unlearn.audit.attacks.states import block_outputs
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.linalg.directions import random_directions
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens
from taught import assert_untouched, encoded_texts, fingerprint, masked, taught

LAYER = 1


def states_of(world, facts):
    ids, _ = encoded_texts(facts, random.Random(0))
    found = {}
    with BlockEngine(world.model).observe(found.__setitem__):
        world.model(input_ids=ids, use_cache=False)
    return found[LAYER]


@pytest.fixture(scope="module")
def steered():
    """Return an edit that adds a constant vector to forget states and holds retain states, as RMU steers."""
    world = taught()
    name = f"model.layers.{LAYER}.mlp.down_proj.weight"
    parameter = dict(world.model.named_parameters())[name]
    direction = random_directions(1, 32, torch.Generator().manual_seed(5))[0]
    with torch.no_grad():
        held = states_of(world, world.retain)
        forget = states_of(world, world.forget)
    target = forget + 8.0 * forget.norm(dim=-1).mean() * direction
    edit = parameter.detach().clone()
    optimizer = torch.optim.Adam([edit], lr=0.1)
    for _ in range(120):
        with tensors_replaced(world.model, {name: edit.clone()}):
            parameter.requires_grad_(True)
            loss = (states_of(world, world.forget) - target).square().mean()
            loss = loss + 0.3 * (states_of(world, world.retain) - held).square().mean()
            (edit.grad,) = torch.autograd.grad(loss, [parameter])
            parameter.requires_grad_(False)
        optimizer.step()
    return world, {name: edit}


@pytest.mark.parametrize("against", ["original", "retain"])
def test_reverts_constant_steering_and_random_directions_do_not(steered, against):
    world, edits = steered
    with masked(world, edits) as original:
        assert world.accuracy(world.held_out) <= 0.5, "the steering hides the facts"
        before = fingerprint(world.model)
        scores, controls, details = {}, {}, {}
        for attacked in DirectionAblation(against, ranks=(1,)).attack(world.context(original)):
            (controls if attacked.control else scores)[attacked.variant] = world.accuracy(world.held_out)
            details[attacked.variant] = attacked.details
        assert_untouched(world.model, before)
    assert len(scores) == 1 and min(scores.values()) >= 0.85
    random_scores = [value for name, value in controls.items() if "random" in name]
    assert len(random_scores) == 1 and random_scores[0] <= 0.5
    assert all(entry["largest_logit_change"] > 1e-3 for entry in details.values()), "hooks act"


def test_the_full_tier_reverts_it_in_the_weights_too(steered):
    world, edits = steered
    scores, controls = {}, {}
    with masked(world, edits) as original:
        before = fingerprint(world.model)
        for attacked in DirectionAblation(ranks=(1, 4)).attack(world.context(original, tier="full")):
            group = controls if attacked.control else scores
            group.setdefault(attacked.control or attacked.variant, []).append(world.accuracy(world.held_out))
        assert_untouched(world.model, before)
    expected = {f"rank-{rank}-{site}" for rank in (1, 4) for site in ("window", "all", "weights")}
    assert set(scores) == expected
    assert {name: len(found) for name, found in controls.items()} == {"rank-1-window": 9, "rank-4-window": 9}
    assert scores["rank-1-weights"][0] >= 0.9


def test_leaves_the_original_as_it_is():
    world = taught()
    plain = world.accuracy(world.forget)
    for attacked in DirectionAblation().attack(world.context({})):
        assert attacked.details["blocks"] == attacked.details["largest_logit_change"] == 0.0
        assert world.accuracy(world.forget) == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_leave_nothing_along_the_directions(family):
    engine = BlockEngine(pico_model(family))
    ids = torch.tensor([random_tokens(12)])
    rows = {n: random_directions(2, 32, torch.Generator().manual_seed(n)) for n in (1, 4)}
    states, plain = {}, {}
    with torch.no_grad():
        with engine.observe(plain.__setitem__):
            engine.base(input_ids=ids, use_cache=False)
        with directions_ablated(engine, rows), engine.observe(states.__setitem__):
            engine.base(input_ids=ids, use_cache=False)
    for layer, found in rows.items():
        assert float((states[layer] @ found.T).abs().max()) < 1e-4 * float(plain[layer].abs().max())
        assert float((plain[layer] @ found.T).abs().max()) > 1e-2
    assert torch.equal(states[0], plain[0]) and not torch.allclose(states[5], plain[5])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "phi3"])
def test_weights_write_nothing_along_the_directions(family):
    model = pico_model(family)
    context = AttackContext(
        Subject(model, pico_tokenizer()), find_structure(model), AttackData((), ()), seed=0
    )
    rows = random_directions(3, 32, torch.Generator().manual_seed(0))
    found = {}
    engine = BlockEngine(model)
    with (
        torch.no_grad(),
        tensors_replaced(model, writers_without(context, rows)),
        engine.observe(found.__setitem__),
    ):
        engine.base(input_ids=torch.tensor([random_tokens(12)]), use_cache=False)
    for states in found.values():
        assert float((states @ rows.T).abs().max()) < 1e-4 * float(states.abs().max())


def test_states_are_those_of_the_model_at_the_same_tokens():
    model = pico_model("gemma3")
    engine = BlockEngine(model)
    texts = [random_tokens(9, seed=1), random_tokens(4, seed=2), random_tokens(14, seed=3)]
    found = block_outputs(engine, texts, maximum_states=1000, batch_tokens=20, seed=0)
    whole = {}
    for text in texts:
        with torch.no_grad(), engine.observe(lambda n, s: whole.setdefault(n, []).append(s[0, 1:])):
            engine.base(input_ids=torch.tensor([text]), use_cache=False)
    for layer, states in enumerate(found):
        expected = torch.cat(whole[layer])
        assert len(states) == len(expected) == 8 + 3 + 13
        assert float(torch.cdist(expected, states).min(dim=1).values.max()) < 1e-4, "every state once"
    fewer = [block_outputs(engine, texts, maximum_states=10, batch_tokens=n, seed=0) for n in (14, 99)]
    assert all(len(states) == 10 for states in fewer[0])
    first, second = (torch.stack(states) for states in fewer)
    order = [states[0, :, 0].argsort() for states in (first, second)]
    torch.testing.assert_close(first[:, order[0]], second[:, order[1]], rtol=1e-4, atol=1e-4)
