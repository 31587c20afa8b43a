from __future__ import annotations

import pytest
import torch

from falcon_unlearn.bench.muse.prefix import continue_prompts, shared_beginning
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens


def _greedy(model, prompt, num_tokens):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] == 2:
                return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_equal_a_plain_greedy_loop_without_cache(family):
    model, tokenizer = pico_model(family), pico_tokenizer()
    beginning = random_tokens(20, seed=1)
    prompts = [beginning + random_tokens(size, seed=size + 10) for size in (3, 7, 3, 12, 1, 7)]
    expected = [tokenizer.decode(_greedy(model, prompt, 10), skip_special_tokens=True) for prompt in prompts]
    for batch_tokens in (40, 4096):
        subject = Subject(model, tokenizer, batch_tokens)
        assert continue_prompts(subject, prompts, maximum_new_tokens=10, stops=()) == expected


def test_prompts_that_share_nothing_and_equal_prompts_work():
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    subject = Subject(model, tokenizer, 4096)
    for prompts in ([[5, 6], [7, 8, 9]], [[5, 6, 7], [5, 6, 7]], [[5], [5, 6]]):
        expected = [
            tokenizer.decode(_greedy(model, prompt, 6), skip_special_tokens=True) for prompt in prompts
        ]
        assert continue_prompts(subject, prompts, maximum_new_tokens=6, stops=()) == expected
    assert continue_prompts(subject, [], maximum_new_tokens=6, stops=()) == []


def test_generation_ends_once_every_row_has_a_stop_text(monkeypatch):
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    subject = Subject(model, tokenizer, 4096)
    prompts = [[5, *random_tokens(4, seed=seed)] for seed in (1, 2)]
    full = continue_prompts(subject, prompts, maximum_new_tokens=12, stops=())
    stops = [text[2:4] for text in full]
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    stopped = continue_prompts(subject, prompts, maximum_new_tokens=12, stops=stops)
    assert len(calls) <= 5
    for text, whole in zip(stopped, full, strict=True):
        assert whole.startswith(text) and any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1, 2]], 1),
        ([[1], [2]], 0),
        ([[1, 2], [1, 2]], 1),
    ],
)
def test_every_prompt_keeps_a_token_of_its_own(prompts, shared):
    assert shared_beginning(prompts) == shared


def test_prompts_beyond_the_model_are_refused():
    subject = Subject(pico_model("llama"), pico_tokenizer(), 4096)
    with pytest.raises(DataError, match="prompt 1 has 250 tokens"):
        continue_prompts(subject, [[5], random_tokens(250)], maximum_new_tokens=8, stops=())
