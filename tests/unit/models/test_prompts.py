"""A common beginning that is computed once changes no number, in any family."""

from __future__ import annotations

import pytest
import torch

from falcon_unlearn.evaluation.choice import token_completion_scores
from falcon_unlearn.evaluation.generation import chosen_and_greedy, greedy_completions
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models import prompts as module
from falcon_unlearn.models.decoding import greedy_tokens, nucleus_tokens
from falcon_unlearn.models.prompts import common_beginning, read_prompts
from falcon_unlearn.models.scoring import completion_log_probabilities
from pico import FAMILIES, SLIDING_WINDOW, pico_model, pico_tokenizer, random_tokens

BEGINNING = random_tokens(11, seed=1)


def texts(lengths, seed=0):
    return [[*BEGINNING, *random_tokens(length, seed=seed + n)] for n, length in enumerate(lengths)]


def alone(model, ids):
    """Return the logits after one text, from one plain pass."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def fed(model, monkeypatch):
    """Count the tokens of every pass."""
    counts = []
    plain = module.cached_forward

    def counting(model, cache, **inputs):
        counts.append(inputs["input_ids"].numel())
        return plain(model, cache, **inputs)

    monkeypatch.setattr(module, "cached_forward", counting)
    return counts


# A window of 8 is shorter than these texts, one of 64 longer.
@pytest.mark.parametrize("window", [SLIDING_WINDOW, 64])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [(3, 5, 4, 7), (5, 5, 5)])
def test_shared_beginnings_give_the_logits_of_plain_passes(family, window, lengths, monkeypatch):
    windowed = family not in ("llama", "gpt_neox")
    model = pico_model(family, **({"sliding_window": window} if windowed else {}))
    asked = texts(lengths)
    counts = fed(model, monkeypatch)
    with torch.inference_mode():
        read = read_prompts(model, asked, pad_id=0, following=4)
    for ids, logits in zip(asked, read.logits_BV, strict=True):
        torch.testing.assert_close(logits, alone(model, ids), rtol=2e-4, atol=2e-4)
    shared = len(counts) == 2
    padded_in_window = len(set(lengths)) > 1 and windowed and window == SLIDING_WINDOW
    assert shared == (not padded_in_window)
    if shared:
        assert counts == [len(BEGINNING), len(lengths) * max(lengths)]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "gpt_neox"])
def test_scores_and_greedy_answers_are_those_of_single_prompts(family):
    model = pico_model(family, **({} if family in ("llama", "gpt_neox") else {"sliding_window": 64}))
    asked = texts((2, 6, 4))
    options = [random_tokens(length, seed=40 + length) for length in (1, 2, 3)]
    pairs = [(prompt, option) for prompt in asked for option in options]
    together = completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=4096)
    for pair, score in zip(pairs, together, strict=True):
        (single,) = completion_log_probabilities(model, [pair], pad_id=0, batch_tokens=4096)
        assert score.token_log_probabilities == pytest.approx(
            single.token_log_probabilities, rel=1e-3, abs=1e-3
        )
    answers = greedy_tokens(model, asked, [6, 6, 6], end_ids=(), pad_id=0)
    for prompt, answer in zip(asked, answers, strict=True):
        expected = list(prompt)
        for _ in range(6):
            expected.append(int(alone(model, expected).argmax()))
        assert answer == expected[len(prompt) :]


def test_every_prompt_keeps_a_token_of_its_own():
    assert common_beginning([[1, 2, 3], [1, 2], [1, 2, 4]]) == (1,)
    assert common_beginning([[5, 6, 7]] * 3) == (5, 6)
    assert common_beginning([[1], [1, 2]]) == () == common_beginning([[3, 1], [4, 1]])
    assert common_beginning([[9, 8, 1], [9, 8, 2, 2], [9, 8, 1, 1]]) == (9, 8)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("window", [SLIDING_WINDOW, 64])
def test_choosing_and_answering_from_one_pass_give_the_numbers_of_two(family, window):
    model = pico_model(family, **({} if family in ("llama", "gpt_neox") else {"sliding_window": window}))
    subject = Subject(model, pico_tokenizer(), batch_tokens=200)
    options = [random_tokens(length, seed=40 + length) for length in (1, 2, 3)]
    choices = [(prompt, options) for prompt in texts((2, 6, 4, 4, 9))]
    scores, answers = chosen_and_greedy(subject, choices, maximum_new_tokens=5)
    apart = token_completion_scores(subject, choices)
    for several, others in zip(scores, apart, strict=True):
        for one, other in zip(several, others, strict=True):
            assert one.token_log_probabilities == pytest.approx(
                other.token_log_probabilities, rel=1e-3, abs=1e-3
            )
            assert one.argmax_matches == other.argmax_matches
    prompts = [prompt for prompt, _ in choices]
    assert answers == greedy_completions(subject, prompts, maximum_new_tokens=5, first_line=True)


def test_a_nucleus_holds_the_likeliest_tokens_that_reach_its_probability():
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    generator = torch.Generator().manual_seed(0)

    def drawn(top_p):
        rows = probabilities.log().expand(4000, 4)
        return torch.bincount(
            nucleus_tokens(rows, temperature=1.0, top_p=top_p, generator=generator), minlength=4
        )

    assert drawn(0.4).tolist() == [0, 4000, 0, 0]
    two = drawn(0.7)
    assert two[0] == two[2] == 0 and int(two[1]) / 4000 == pytest.approx(2 / 3, abs=0.03)
    assert (drawn(1.0) / 4000).tolist() == pytest.approx(probabilities.tolist(), abs=0.03)
