from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.bench.wmdp.perplexity import (
    PageScore,
    corpus_perplexity,
    count_words,
    default_prefix_token,
    detokenise,
    rolling_windows,
    score_pages,
)
from falcon_unlearn.bench.wmdp.summary import perplexity_metrics
from falcon_unlearn.errors import ModelError
from falcon_unlearn.evaluation.subject import Subject


def test_windows_of_ten_tokens_and_length_four():
    assert rolling_windows(list(range(10)), 99, 4) == [
        ([99], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]


@given(number=st.integers(0, 60), size=st.integers(1, 20))
def test_every_token_is_predicted_once_from_what_stands_before_it(number, size):
    tokens = list(range(number))
    windows = rolling_windows(tokens, -1, size)
    assert [token for _, predicted in windows for token in predicted] == tokens
    for context, predicted in windows:
        assert len(context) + len(predicted) - 1 <= size
        assert context + predicted == list(range(context[0], context[0] + len(context) + len(predicted)))


def test_spacing_is_undone():
    page = ' = Moss = \n The " old " one @-@ off ( a test ) , 1 @,@ 000 @.@ 5 ; it \'s here . \n'
    assert detokenise(page) == ' = Moss =\nThe "old" one-off (a test), 1,000.5; it\'s here.\n'


def test_words_and_bytes_are_those_of_the_page(loaded, pages):
    found = score_pages(
        Subject(loaded.model, loaded.tokenizer), pages.pages, max_length=64, prefix_token_id=2
    )
    for page, score in zip(pages.pages, found, strict=True):
        assert score.num_bytes == len(page.text.encode())
        assert score.num_words == len(page.text.split()) + 2  # white space at both ends
    assert count_words("a b") == 2


def test_short_page_matches_a_plain_forward_pass(loaded, pages):
    page = pages.pages[1]
    ids = [2, *loaded.tokenizer(detokenise(page.text))["input_ids"]]
    with torch.no_grad():
        values = torch.log_softmax(loaded.model(torch.tensor([ids[:-1]])).logits[0].double(), dim=-1)
    expected = values.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    subject = Subject(loaded.model, loaded.tokenizer)
    found = score_pages(subject, [page], max_length=500, prefix_token_id=2)[0]
    assert found.log_likelihood == pytest.approx(expected, rel=1e-5)


def test_one_bit_per_byte():
    scores = [PageScore(0, -300 * math.log(2), 50, 300), PageScore(1, -100 * math.log(2), 30, 100)]
    found = corpus_perplexity(scores)
    assert found.bits_per_byte == pytest.approx(1.0)
    assert found.byte == pytest.approx(2.0)
    assert found.word == pytest.approx(2.0**5)  # 400 bits for 80 words


def test_intervals_hold_the_value_and_agree_between_units():
    scores = [PageScore(i, -100.0 - 7 * i, 20 + i, 110 + i) for i in range(12)]
    word, byte, bits = perplexity_metrics(scores, note="")
    for metric in (word, byte, bits):
        assert metric.low < metric.value < metric.high
    assert byte.low == pytest.approx(2**bits.low)
    assert byte.value == pytest.approx(2**bits.value)
    assert word.num_items == 12


def test_destroyed_model_gives_no_value_but_bits():
    word, byte, bits = perplexity_metrics([PageScore(0, -1e6, 10, 60), PageScore(1, -1e6, 10, 60)], note="")
    assert (word.value, byte.value) == (None, None)
    assert bits.value == pytest.approx(1e6 / 60 / math.log(2))


class Tokenizer:
    def __init__(self, vocabulary, bos, eos):
        self.get_vocab, self.bos_token_id, self.eos_token_id = lambda: vocabulary, bos, eos


def test_prefix_is_end_of_text_before_begin_of_turn():
    assert default_prefix_token(Tokenizer({"<|endoftext|>": 0}, 1, 2)) == 0
    assert default_prefix_token(Tokenizer({}, 1, 2)) == 1
    assert default_prefix_token(Tokenizer({}, None, 2)) == 2
    with pytest.raises(ModelError):
        default_prefix_token(Tokenizer({}, None, None))
