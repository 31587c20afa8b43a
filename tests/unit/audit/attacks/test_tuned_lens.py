from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from falcon_unlearn.audit.attacks.logit_lens import LogitLens
from falcon_unlearn.audit.attacks.tuned_lens import TunedLens
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.architectures import find_structure
from pico import pico_model, pico_tokenizer, random_tokens
from taught import LAST, answer_loss, assert_untouched, encoded_texts, fingerprint, masked, taught


def _letters(seeds):
    return tuple(" ".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=30)) for n in seeds)


TEXTS = _letters(range(60))


def test_comes_nearer_to_what_the_model_says_than_the_raw_lens_on_unseen_text():
    model = pico_model("llama")
    subject = Subject(model, pico_tokenizer(), batch_tokens=400)
    data = AttackData((), (), retain_texts=TEXTS)
    context = AttackContext(subject, find_structure(model), data, seed=0, tier="full")
    unseen = [subject.encode(text) for text in _letters(range(100, 108))]
    prompts = [ids[:40] for ids in unseen]
    options = [[ids[40:43], random_tokens(3, seed=n)] for n, ids in enumerate(unseen)]
    pairs = [(p, o) for p, several in zip(prompts, options, strict=True) for o in several]
    said = [scored.mean_log_probability for scored in subject.score(pairs)]

    def error(attacked):
        scores = attacked.decoder.option_scores(subject, prompts, options)
        pairs = zip([v for row in scores for v in row], said, strict=True)
        return sum((a - b) ** 2 for a, b in pairs)

    before = fingerprint(model)
    tuned = {a.variant: (error(a), a.details) for a in TunedLens().attack(context)}
    assert_untouched(model, before)
    raw = {a.variant: error(a) for a in LogitLens(components=("block",)).attack(context)}
    assert list(tuned) == [f"layer-{n}" for n in range(5)], "the last block needs no map"
    for layer in range(5):
        found, details = tuned[f"layer-{layer}"]
        assert found < 0.8 * raw[f"layer-{layer}-block"]
        assert 0.0 < details["explained_held_out"] <= 1.0


def test_reads_facts_below_a_trained_refusal():
    world = taught()
    name = f"model.layers.{LAST}.mlp.down_proj.weight"
    with masked(world, {name: _refusal(world, name)}):
        assert world.accuracy(world.forget) <= 0.5
        texts = tuple(f"{fact.question} {option}" for fact in world.retain for option in fact.options)
        context = world.context()
        context = replace(context, data=replace(context.data, retain_texts=texts))
        before = fingerprint(world.model)
        found = {a.variant: world.accuracy(world.held_out, a) for a in TunedLens().attack(context)}
        assert_untouched(world.model, before)
        masked_accuracy = world.accuracy(world.held_out)
    assert masked_accuracy <= 0.5 and max(found.values()) >= 0.75


def test_without_texts_the_retain_facts_serve_and_without_those_it_says_so():
    world, told = taught(), []
    context = world.context()
    bare = replace(context.data, retain_texts=())
    assert list(TunedLens().attack(replace(context, data=bare)))
    nothing = replace(context, data=AttackData((), ()), sink=told.append)
    assert not list(TunedLens().attack(nothing)) and "no texts" in told[0].message


def _refusal(world, name, steps=120):
    """Return a matrix of the last block under which wrong options of forget questions are likelier."""
    parameter = dict(world.model.named_parameters())[name]
    edit = parameter.detach().clone()
    chance = random.Random(0)
    forget, retain = encoded_texts(world.forget, chance), encoded_texts(world.retain, chance)
    optimizer = torch.optim.Adam([edit], lr=0.02)
    for _ in range(steps):
        with masked(world, {name: edit.clone()}):
            parameter.requires_grad_(True)
            loss = answer_loss(world.model, *retain) - answer_loss(world.model, *forget).clamp(max=20.0)
            (edit.grad,) = torch.autograd.grad(loss, [parameter])
            parameter.requires_grad_(False)
        optimizer.step()
    return edit


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_other_families_are_read_too(family):
    model = pico_model(family)
    data = AttackData((), (), retain_texts=TEXTS[:4])
    context = AttackContext(Subject(model, pico_tokenizer(), 400), find_structure(model), data, seed=0)
    assert all(
        len(a.decoder.option_scores(context.subject, [random_tokens(4, seed=1)], [[[5], [9]]])[0]) == 2
        for a in TunedLens().attack(context)
    )
