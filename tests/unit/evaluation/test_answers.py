from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.evaluation.answers import answer_scores, has_answer, split_answer
from falcon_unlearn.evaluation.memorisation import exact_memorisation, extraction_strength
from falcon_unlearn.evaluation.rouge import rouge_l_recall
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.examples import EncodedExample
from pico import pico_model, pico_tokenizer

WORDS = st.lists(st.sampled_from(["gold", "Au", "the", "Is", "5", "a-b", "x_y", "."]), max_size=12).map(
    " ".join
)


@pytest.mark.parametrize(
    ("matches", "strength", "exact"),
    [
        ([True, True, True, True], 1.0, 1.0),
        ([True, False, True, True], 0.5, 0.75),
        ([False, True, True, False], 0.0, 0.5),
        ([False, False, False, True], 0.25, 0.25),
        ([False], 0.0, 0.0),
    ],
)
def test_memorisation_by_hand(matches, strength, exact):
    assert extraction_strength(matches) == strength
    assert exact_memorisation(matches) == exact


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_extraction_strength_is_its_definition(matches):
    smallest = next(k for k in range(len(matches) + 1) if all(matches[k:]))
    assert extraction_strength(matches) == pytest.approx(1 - smallest / len(matches))
    assert extraction_strength(matches) <= exact_memorisation(matches)


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ("the symbol is Au", "Au", 1 / 4),
        ("the symbol is Au", "The symbol, surely, is: au!", 1.0),
        ("a b c d", "d c b a", 1 / 4),
        ("a b c d", "a x c y d", 3 / 4),
        ("a a a", "a a", 2 / 3),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("...", "a", 0.0),
        ("Ångström für Öl", "ångström öl", 2 / 3),
    ],
)
def test_rouge_l_recall_by_hand(reference, candidate, expected):
    assert rouge_l_recall(reference, candidate) == pytest.approx(expected)


@settings(deadline=None)  # the package is imported inside
@given(WORDS, WORDS)
def test_rouge_l_recall_equals_the_rouge_score_package(reference, candidate):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    expected = scorer.score(reference, candidate)["rougeL"].recall
    assert rouge_l_recall(reference, candidate) == pytest.approx(expected)


def _example(tokenizer, prompt, answer, end=(2,)):
    head, tail = tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], *end]
    mask = (False,) * len(head) + (True,) * len(tail)
    return EncodedExample(tuple(head + tail), mask, prompt + answer, False)


def test_the_first_answer_is_split_off():
    text = EncodedExample((5, 6, 7, 8, 9), (False, True, True, False, True), "", False)
    assert split_answer(text) == ((5,), (6, 7))
    assert has_answer(text)
    assert not has_answer(EncodedExample((5, 6), (True, True), "", False))
    assert not has_answer(EncodedExample((5, 6), (False, False), "", False))


def test_answer_scores_equal_their_definitions():
    model, tokenizer = pico_model("mistral"), pico_tokenizer()
    subject = Subject(model, tokenizer, 200)
    texts = [
        _example(tokenizer, "Symbol of gold?", " Au"),
        _example(tokenizer, "Iron?", " Fe, I think", end=()),
    ]
    for text, score in zip(texts, answer_scores(subject, texts, maximum_new_tokens=4), strict=True):
        prompt, answer = split_answer(text)
        with torch.no_grad():
            logits = model(torch.tensor([list(text.input_ids)])).logits[0].double()
        values = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        picked = [values[step, token].item() for step, token in enumerate(answer)]
        matches = [values[step].argmax().item() == token for step, token in enumerate(answer)]
        scored = matches[:-1] if answer[-1] == 2 else matches
        assert score.probability == pytest.approx(math.exp(sum(picked) / len(picked)), rel=1e-4)
        assert score.exact_memorisation == sum(scored) / len(scored)
        assert score.extraction_strength == extraction_strength(scored)
        assert score.rouge_l == rouge_l_recall(score.expected, score.completion)
    first = answer_scores(subject, texts, maximum_new_tokens=4)[0]
    assert (first.prompt, first.expected) == ("Symbol of gold?", "Au")


def test_an_answer_the_model_gives_by_itself_scores_full_marks():
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    ids = tokenizer("Symbol of gold?")["input_ids"]
    num_prompt = len(ids)
    with torch.no_grad():
        for _ in range(10):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert 2 not in ids
    mask = tuple(position >= num_prompt for position in range(len(ids)))
    (score,) = answer_scores(
        Subject(model, tokenizer, 200), [EncodedExample(tuple(ids), mask, "", False)], maximum_new_tokens=2
    )
    assert score.extraction_strength == score.exact_memorisation == 1.0
    assert score.completion.strip() == score.expected
