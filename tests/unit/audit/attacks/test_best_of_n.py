"""Sampling: an answer below the most likely one leaks, an absent one does not, nothing is left behind."""

import random

import pytest
import torch

from falcon_unlearn.audit.attacks.sampling import Sampling
from falcon_unlearn.audit.scoring import ScoringSettings, score
from falcon_unlearn.evaluation.generation import greedy_completions, sampled_completions
from knowing import (
    FORGET,
    HELD_OUT,
    RETAIN,
    Text,
    context,
    filler,
    generated,
    knowing,
    masked,
    untouched,
)


def usually_no(chance: random.Random):
    texts = []
    for fact in (*FORGET, *RETAIN):
        hide = fact in FORGET and chance.random() < 0.65
        words = filler(chance)
        texts.append(Text(f"{words} {fact.question}".strip(), "no" if hide else fact.answer))
    return texts


def leaks(model, **settings):
    found = context(model)
    with untouched(model):
        (attacked,) = Sampling(num_samples=16, **settings).attack(found)
        return score(
            found.subject, HELD_OUT, attacked, ("generation",), ScoringSettings(maximum_new_tokens=3)
        )


def test_answers_below_the_likeliest_one_leak():
    model = masked(usually_no, steps=60)
    assert generated(context(model).subject) <= 0.2
    found = leaks(model)
    at_8 = sum(dict(one.leaks)[8] for one in found) / len(found)
    null = leaks(knowing(knows=False))
    null_at_8 = sum(dict(one.leaks)[8] for one in null) / len(null)
    assert at_8 >= 0.5
    # A null model names 40 values by chance: 1 - (39/40)^8 = .18 of the questions.
    assert null_at_8 <= 0.4


def test_draws_repeat_with_the_seed_and_differ_between_seeds():
    model = knowing(knows=False)
    subject = context(model).subject
    prompts = [subject.encode(fact.question) for fact in HELD_OUT]
    settings = {"maximum_new_tokens": 3, "num_samples": 4, "temperature": 1.0, "top_p": 1.0}
    first = sampled_completions(subject, prompts, seed=1, **settings)
    assert first == sampled_completions(subject, prompts, seed=1, **settings)
    assert first != sampled_completions(subject, prompts, seed=2, **settings)
    assert [len(several) for several in first] == [4] * len(prompts)


def test_frequencies_are_those_of_the_tempered_distribution():
    model = knowing(knows=False)
    subject = context(model).subject
    prompt = subject.encode(HELD_OUT[0].question)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / 0.7, dim=-1)
    (drawn,) = sampled_completions(
        subject, [prompt], maximum_new_tokens=1, num_samples=3000, temperature=0.7, top_p=1.0, seed=0
    )
    likeliest = int(expected.argmax())
    share = drawn.count(subject.tokenizer.decode([likeliest])) / len(drawn)
    error = (float(expected[likeliest]) * (1 - float(expected[likeliest])) / len(drawn)) ** 0.5
    assert share == pytest.approx(float(expected[likeliest]), abs=4 * error)


def test_samples_belong_to_their_prompt_and_a_cold_draw_is_greedy():
    subject = context(knowing()).subject
    prompts = [subject.encode(fact.question) for fact in (*HELD_OUT, *RETAIN)]
    prompts[3] = [*prompts[3][:1], *subject.encode("so then")[1:], *prompts[3][1:]]
    greedy = greedy_completions(subject, prompts, maximum_new_tokens=3)
    small = type(subject)(subject.model, subject.tokenizer, 40)
    drawn = sampled_completions(
        small, prompts, maximum_new_tokens=3, num_samples=2, temperature=0.01, top_p=1.0, seed=0
    )
    assert drawn == [[text, text] for text in greedy]


def test_tiers_and_the_bound_for_clean_questions():
    quick = list(Sampling().attack(context(knowing())))
    full = list(Sampling().attack(context(knowing(), tier="full")))
    assert [one.details["samples"] for one in quick] == [8]
    assert [one.details["samples"] for one in full] == [64] * 4
    assert quick[0].details["zero_leak_bound"] == pytest.approx(1 - 0.05 ** (1 / 8))
    assert all(one.formats == ("generation",) for one in (*quick, *full))
    assert len({one.variant for one in full}) == 4
