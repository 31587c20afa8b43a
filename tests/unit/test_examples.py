"""An example is exactly one kind of thing, and its identity includes the kind."""

from __future__ import annotations

import pytest

from falcon_unlearn.examples import EncodedExample, Example, Message


def test_plain_text():
    assert Example.of_text("a").plain_text == "a"
    assert Example.of_question("q", "a").plain_text == "q a"
    assert Example.of_completion("p ", "c").plain_text == "p c"
    turns = [Message("user", "x"), Message("assistant", "y")]
    assert Example.of_messages(turns).plain_text == "x\ny"


@pytest.mark.parametrize("fields", [{}, {"text": "a", "prompt": "b", "completion": "c"}, {"prompt": "b"}])
def test_exactly_one_kind(fields):
    with pytest.raises(ValueError, match="exactly one"):
        Example(**fields)


def test_blank():
    assert Example.of_text(" \n").is_blank
    assert Example.of_question("q", " ").is_blank
    assert Example.of_messages([Message("user", "x"), Message("assistant", "")]).is_blank
    assert not Example.of_question("", "a").is_blank


def test_canonical_form_tells_kinds_apart():
    examples = [
        Example.of_text("a"),
        Example.of_question("a", "b"),
        Example.of_completion("a", "b"),
        Example.of_messages([Message("user", "a"), Message("assistant", "b")]),
        Example.of_messages([Message("user", "a\nb")]),
    ]
    assert len({example.canonical for example in examples}) == len(examples)
    assert all("\n" not in example.canonical for example in examples)


def test_encoded_lengths_must_agree():
    with pytest.raises(ValueError, match="differ in length"):
        EncodedExample((1, 2), (True,), "x", False)
