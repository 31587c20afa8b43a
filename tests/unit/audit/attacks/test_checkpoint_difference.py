from __future__ import annotations

import pytest
import torch

from falcon_unlearn.audit.attacks.checkpoint_difference import CheckpointDifference, guided
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.engine import tensors_replaced
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens
from taught import assert_untouched, fingerprint, masked, taught

PROMPTS = [random_tokens(11, seed=1), random_tokens(4, seed=2), random_tokens(7, seed=3)]
OPTIONS = [[[5, 9], [7]], [[11], [12, 13, 14]], [[20], [21]]]


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_zero_is_the_unlearned_model_and_one_the_original(family):
    model, other = pico_model(family), pico_model(family, seed=1)
    original = {name: parameter.detach() for name, parameter in other.named_parameters()}
    subject = Subject(model, pico_tokenizer(), batch_tokens=60)
    context = AttackContext(subject, find_structure(model), AttackData((), ()), seed=0, original=original)
    before = fingerprint(model)
    decoders = [a.decoder for a in CheckpointDifference(weights=(0.0, 1.0)).attack(context)]
    answers = [decoder.samples(subject, PROMPTS, 6) for decoder in decoders]
    scores = [decoder.option_scores(subject, PROMPTS, OPTIONS) for decoder in decoders]
    assert_untouched(model, before)
    for own, said, scored in zip((model, other), answers, scores, strict=True):
        plain = Subject(own, pico_tokenizer(), batch_tokens=60)
        assert [row[0] for row in said] == greedy_completions(plain, PROMPTS, maximum_new_tokens=6)
        pairs = [(p, o) for p, several in zip(PROMPTS, OPTIONS, strict=True) for o in several]
        expected = [entry.mean_log_probability for entry in plain.score(pairs)]
        assert [v for row in scored for v in row] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert answers[0] != answers[1]


def test_discloses_removed_facts_and_says_that_it_is_a_disclosure():
    world = taught()
    names = [n for n, p in world.model.named_parameters() if n.startswith("model.layers.1") and p.ndim == 2]
    parameters = dict(world.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    damage = {n: parameters[n] + 0.25 * torch.randn(parameters[n].shape, generator=generator) for n in names}
    with masked(world, damage) as original:
        assert world.accuracy(world.forget) < 0.7
        found = list(CheckpointDifference().attack(world.context(original)))
        scores = [world.accuracy(world.forget, attacked) for attacked in found]
        (answers,) = (a.decoder.samples(world.subject, [world.subject.encode("f x:")], 3) for a in found)
    assert [attacked.disclosure for attacked in found] == [True]
    assert scores == [1.0] and isinstance(answers[0][0], str)


def test_guidance_moves_past_the_original():
    u, o = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0])
    assert guided(u, o, 2.0).tolist() == [4.0, 1.0]
    assert torch.equal(guided(u, o, 0.0), u) and torch.equal(guided(u, o, 1.0), o)


def test_swapping_weights_costs_no_copy():
    """The original's tensors are put in place as they are, so that swapping at every token is cheap."""
    model, other = pico_model("llama"), pico_model("llama", seed=1)
    original = {name: parameter.detach() for name, parameter in other.named_parameters()}
    with tensors_replaced(model, original):
        for name, parameter in model.named_parameters():
            assert parameter.data_ptr() == original[name].data_ptr()
