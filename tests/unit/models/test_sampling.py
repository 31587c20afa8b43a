from __future__ import annotations

import pytest
import torch

from falcon_unlearn.models.sampling import OPENERS, sample_texts
from pico import pico_model, pico_tokenizer


@pytest.fixture(scope="module")
def model():
    return pico_model("llama")


def sample(model, count=5, num_tokens=12, seed=3, **kwargs):
    return sample_texts(model, pico_tokenizer(), count, num_tokens, seed, **kwargs)


def test_texts_depend_on_the_seed_only(model):
    first = sample(model)
    torch.manual_seed(99)
    torch.rand(7)
    assert sample(model) == first
    assert sample(model, seed=4) != first


def test_global_random_state_is_left_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample(model)
    assert torch.equal(torch.rand(3), expected)


def test_every_text_continues_an_opener_and_holds_no_special_token(model):
    texts = sample(model, count=2 * len(OPENERS) + 1, num_tokens=8, batch_size=16)
    assert len(texts) == 2 * len(OPENERS) + 1
    for number, text in enumerate(texts):
        assert text.startswith(OPENERS[number % len(OPENERS)])
        assert not any(mark in text for mark in ("<pad>", "<s>", "</s>", "<unk>"))
    assert len(set(texts)) == len(texts), "equal openers must go on differently"


def test_length_is_counted_in_new_tokens(model):
    tokenizer = pico_tokenizer()
    for text, opener in zip(sample(model, count=8, num_tokens=10), OPENERS, strict=False):
        assert len(tokenizer(text)["input_ids"]) <= len(opener) + 10


def test_sampled_tokens_follow_the_models_distribution(model):
    """The first new character of one opener, against the nucleus of the model's own distribution."""
    tokenizer = pico_tokenizer()
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(OPENERS[0])["input_ids"]])).logits[0, -1].double()
    probabilities, order = logits.softmax(-1).sort(descending=True)
    inside = order[probabilities.cumsum(0) - probabilities < 0.95].tolist()
    allowed = {tokenizer.decode([token]) for token in inside if token > 3}
    texts = sample_texts(model, tokenizer, 10 * len(OPENERS), 1, 0)[:: len(OPENERS)]
    continued = [text.removeprefix(OPENERS[0]) for text in texts]
    assert {text for text in continued if text} <= allowed
    assert len(set(continued)) > 1
