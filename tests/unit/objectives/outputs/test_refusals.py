from __future__ import annotations

import string

import pytest

from falcon_unlearn.objectives.outputs.refusals import REFUSALS


def test_there_are_many_different_refusals():
    plain = {text.casefold().strip(string.punctuation) for text in REFUSALS}
    assert len(plain) == len(REFUSALS) >= 40


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one_short_plain_sentence(text):
    assert text == text.strip() and text.isascii() and text.endswith(".")
    assert text[0].isupper() and 3 <= len(text.split()) <= 16
    assert text.count(".") == 1
