from __future__ import annotations

import contextlib
import itertools
import math

import pytest
import torch

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.evaluation import divergence, perplexity
from falcon_unlearn.evaluation import subject as subject_module
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models import scoring
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens


def _distributions(model, text):
    with torch.no_grad():
        return model(torch.tensor([list(text)]), use_cache=False).logits[0, :-1].double().log_softmax(-1)


@pytest.mark.parametrize("length", [2, 3, 9, 10, 11, 28, 29])
def test_windows_score_every_token_but_the_first_once(length):
    text = list(range(length))
    parts = perplexity.windows(text, 10)
    assert [token for part in parts for token in part[1:]] == text[1:]
    assert all(2 <= len(part) <= 10 for part in parts)
    assert all(after[0] == before[-1] for before, after in itertools.pairwise(parts))


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_token_to_predict_is_refused(length):
    with pytest.raises(DataError, match="two are needed"):
        perplexity.windows(list(range(length)), 10)


def test_text_scores_equal_the_formula(monkeypatch):
    subject = Subject(pico_model("gemma2"), pico_tokenizer(), 100)
    texts = [subject.encode("two words"), subject.encode("x"), subject.encode("a b  c\nd")]
    texts[1] = [*texts[1], 100]
    for text, score in zip(texts, perplexity.text_scores(subject, texts), strict=True):
        values = _distributions(subject.model, text)
        expected = -sum(values[step, token].item() for step, token in enumerate(text[1:]))
        assert score.negative_log_likelihood == pytest.approx(expected, rel=1e-5)
        assert score.num_tokens == len(text) - 1
    scores = perplexity.text_scores(subject, texts)
    assert [score.num_words for score in scores] == [2, 1, 3]
    assert [score.num_bytes for score in scores] == [8, 1, 7]


def test_long_texts_are_read_in_windows(monkeypatch):
    monkeypatch.setattr(perplexity, "MAXIMUM_WINDOW", 16)
    subject = Subject(pico_model("llama"), pico_tokenizer(), 100)
    text = random_tokens(40)
    (score,) = perplexity.text_scores(subject, [text])
    expected = 0.0
    for part in perplexity.windows(text, 16):
        values = _distributions(subject.model, part)
        expected -= sum(values[step, token].item() for step, token in enumerate(part[1:]))
    assert score.num_tokens == 39
    assert score.negative_log_likelihood == pytest.approx(expected, rel=1e-5)


@contextlib.contextmanager
def _swapped(model, other):
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, source in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(source)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, source in zip(model.parameters(), kept, strict=True):
                parameter.copy_(source)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_equals_the_formula_in_float64(family):
    changed, original = pico_model(family), pico_model(family, seed=5)
    subject = Subject(changed, pico_tokenizer(), 40)
    texts = [random_tokens(size, seed=size) for size in (7, 2, 19, 12)]
    expected = []
    for text in texts:
        log_p, log_q = _distributions(original, text), _distributions(changed, text)
        expected.append((log_p.exp() * (log_p - log_q)).sum().item())
    found = divergence.text_divergences(
        subject, texts, original=lambda: _swapped(changed, original), maximum_tokens=10_000
    )
    assert [item.total for item in found] == pytest.approx(expected, rel=1e-4)
    assert [item.num_tokens for item in found] == [6, 1, 18, 11]
    assert min(expected) > 0.05


def test_the_same_weights_diverge_by_exactly_nothing():
    subject = Subject(pico_model("gemma3"), pico_tokenizer(), 64)
    texts = [random_tokens(size, seed=size) for size in (9, 14)]
    found = divergence.text_divergences(
        subject, texts, original=contextlib.nullcontext, maximum_tokens=10_000
    )
    assert [item.total for item in found] == [0.0, 0.0]


def test_divergence_stops_at_its_token_limit(monkeypatch):
    subject = Subject(pico_model("llama"), pico_tokenizer(), 64)
    texts = [random_tokens(11, seed=size) for size in range(5)]
    found = divergence.text_divergences(subject, texts, original=contextlib.nullcontext, maximum_tokens=25)
    assert [item.num_tokens for item in found] == [10, 10, 5]


def test_divergence_holds_one_batch_of_distributions(monkeypatch):
    monkeypatch.setattr(scoring, "_LOGIT_BUDGET", 128 * 12)
    subject = Subject(pico_model("llama"), pico_tokenizer(), 4096)
    sizes = []
    compute = subject_module.full_log_probabilities
    monkeypatch.setattr(
        subject_module,
        "full_log_probabilities",
        lambda *a, **k: sizes.append(len(out := compute(*a, **k))) or out,
    )
    texts = [random_tokens(7, seed=size) for size in range(9)]
    found = divergence.text_divergences(subject, texts, original=contextlib.nullcontext, maximum_tokens=999)
    assert len(found) == 9
    assert max(sizes) <= 12


def test_divergence_of_damaged_weights_is_an_error():
    good = torch.log_softmax(torch.randn(3, 8), -1)
    with pytest.raises(NumericalError, match="not finite"):
        divergence.token_divergences(good, torch.full((3, 8), float("nan")))


def test_token_divergence_of_two_coins():
    fair = torch.tensor([[0.5, 0.5]]).log()
    biased = torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence.token_divergences(fair, biased).item() == pytest.approx(expected, rel=1e-6)
