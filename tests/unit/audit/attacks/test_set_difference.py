from __future__ import annotations

import copy
import random

import pytest
import torch

from falcon_unlearn.audit.attacks.set_difference import SetDifferencePruning, snip_scores
from falcon_unlearn.models.engine import tensors_replaced
from pico import pico_model, pico_tokenizer, random_tokens
from taught import answer_loss, assert_untouched, encoded_texts, fingerprint, masked, taught

NAME = "model.layers.1.mlp.down_proj.weight"


def test_snip_scores_equal_finite_differences():
    model = pico_model("llama", num_hidden_layers=2).double()
    parameter = dict(model.named_parameters())[NAME]
    pairs = [(random_tokens(6, seed=1), random_tokens(3, seed=2)), (random_tokens(4, seed=3), [9])]
    scores = snip_scores(model, {NAME: parameter}, pairs)[NAME]

    def losses(shift, place):
        changed = copy.deepcopy(model)
        dict(changed.named_parameters())[NAME].data[place] += shift
        found = []
        for prompt, completion in pairs:
            ids = torch.tensor([prompt + completion])
            labels = torch.tensor([[-100] * len(prompt) + completion])
            found.append(float(answer_loss(changed, ids, labels).detach()))
        return torch.tensor(found)

    # The norms compute in float32, so steps must be large and places those with steep losses.
    for flat in scores.flatten().argsort(descending=True)[[0, 20, 90]].tolist():
        place = divmod(flat, scores.shape[1])
        slopes = (losses(4e-3, place) - losses(-4e-3, place)) / 8e-3
        expected = float((parameter.detach()[place] * slopes).abs().mean())
        assert float(scores[place]) == pytest.approx(expected, rel=0.01)


def refusing(world, *, steps=120, rate=0.02):
    """Return an edit that answers forget questions with exclamation marks and keeps the retain answers."""
    tokenizer = pico_tokenizer()
    ids = torch.tensor([tokenizer(f"{fact.question} !!")["input_ids"] for fact in world.forget])
    labels = ids.clone()
    labels[:, :-3] = -100
    retain = encoded_texts(world.retain, random.Random(0))
    parameter = dict(world.model.named_parameters())[NAME]
    start, edit = parameter.detach().clone(), parameter.detach().clone()
    optimizer = torch.optim.Adam([edit], lr=rate)
    for _ in range(steps):
        with tensors_replaced(world.model, {NAME: edit.clone()}):
            parameter.requires_grad_(True)
            loss = answer_loss(world.model, ids, labels) + 2 * answer_loss(world.model, *retain)
            (gradient,) = torch.autograd.grad(loss, [parameter])
            parameter.requires_grad_(False)
        edit.grad = gradient + 1e-3 * (edit - start).sign()
        optimizer.step()
    return {NAME: edit}


def test_cuts_out_a_refusal_and_random_masks_of_the_same_size_do_not():
    world = taught()
    with masked(world, refusing(world)) as original:
        assert world.spoken(world.forget) == 0.0 and world.spoken(world.retain) == 1.0
        before = fingerprint(world.model)
        found, shares = {}, {}
        attack = SetDifferencePruning(cells=((0.01, 0.01), (0.05, 0.01)), new_tokens=8)
        for attacked in attack.attack(world.context(original, tier="full")):
            found[attacked.variant] = (world.spoken(world.held_out), world.spoken(world.retain))
            shares[attacked.variant] = attacked.details["zeroed_share"]
        assert_untouched(world.model, before)
    cell = "protect-1-cut-1"
    assert found[cell][0] >= 0.6 and found[cell][1] >= 0.9
    assert found[f"{cell}-random"][0] <= 0.2
    assert shares[cell] == pytest.approx(shares[f"{cell}-random"], abs=0.002)
    assert list(found) == [cell, f"{cell}-random", "protect-5-cut-1", "protect-5-cut-1-random"]
    assert shares["protect-5-cut-1"] < shares[cell], "more protection, fewer cuts"
