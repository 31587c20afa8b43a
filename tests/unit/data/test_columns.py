"""Columns are chosen by what is there, and every doubt is an error that says how to settle it."""

from __future__ import annotations

import pytest

from falcon_unlearn.data.columns import rows_to_examples
from falcon_unlearn.data.formats import Row
from falcon_unlearn.errors import DataError
from falcon_unlearn.examples import Example, Message


def read(*values, **options):
    rows = [Row(f"f.jsonl, line {number}", value) for number, value in enumerate(values, 1)]
    return rows_to_examples(rows, name="f.jsonl", **options)


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a", "id": 3}, Example.of_text("a")),
        ("a", Example.of_text("a")),
        ({"question": "q", "answer": "a", "perturbed_answer": ["x"]}, Example.of_question("q", "a")),
        ({"prompt": "p", "completion": "c"}, Example.of_completion("p", "c")),
        ({"messages": TURNS}, Example.of_messages([Message("user", "Hi"), Message("assistant", "Hello")])),
    ],
)
def test_automatic_layout(row, expected):
    assert read(row) == [expected]


def test_renamed_columns_and_explicit_layout():
    row = {"q": "1", "reply": "2", "text": "t", "answer": "no"}
    assert read(row, columns={"question": "q", "answer": "reply"}) == [Example.of_question("1", "2")]
    assert read(row, columns={"question": "q"}) == [Example.of_question("1", "no")]
    assert read(row, columns={"text": "reply"}) == [Example.of_text("2")]
    assert read(row, layout="text") == [Example.of_text("t")]


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (
            {"body": "x", "id": 1},
            {},
            ["`body`", "`id`", "`text`", "`question` and `answer`", "set `columns`"],
        ),
        ({"txt": "x"}, {}, ["`txt` is close to `text`"]),
        ({"Question": "q", "Answer": "a"}, {}, ["`Question` is close to `question`"]),
        (
            {"text": "x", "question": "q", "answer": "a"},
            {},
            ["several formats: text, question_answer", "format:"],
        ),
        ({"text": "x"}, {"columns": {"txet": "x"}}, ["no role `txet`", "did you mean `text`?"]),
        ({"text": "x"}, {"columns": {"text": "x", "answer": "y"}}, ["roles of different formats"]),
        ({"text": "x"}, {"columns": {"text": "body"}}, ["the columns are `text`; needed: `body`"]),
        ({"text": "x"}, {"layout": "messages"}, ["needed: `messages`"]),
        (
            {"text": "x"},
            {"layout": "text", "columns": {"question": "x"}},
            ["no role `question`; allowed: text"],
        ),
        (["x"], {}, ["expected an object or a string, found a list"]),
        (7, {}, ["found a number"]),
        ("x", {"layout": "messages"}, ["bare string has no columns"]),
    ],
)
def test_unclear_columns_say_what_is_there_and_what_to_do(row, options, words):
    with pytest.raises(DataError) as caught:
        read(row, **options)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said
    assert "line 1" in said


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"text": 3}, "`text` must be a string, found a number"),
        ({"text": None}, "found null"),
        ({"text": ["a"]}, "found a list"),
        ({"text": "a\0b"}, "NUL"),
        ({"text": "\ud800"}, "surrogate"),
        ({"txt": "a"}, "column `text` is missing; this row has `txt`"),
        ("a", "expected an object as in the first row, found a string"),
    ],
)
def test_bad_values_name_the_line(bad, words):
    with pytest.raises(DataError, match="line 2") as caught:
        read({"text": "good"}, bad)
    assert words in caught.value.message


def test_mixed_strings_and_objects_name_the_line():
    with pytest.raises(DataError, match="line 2: the row must be a string, found an object"):
        read("good", {"text": "bad"})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "must be a list"),
        ("hello", "must be a list"),
        ([{"from": "human", "value": "x"}], "needs `role` and `content`"),
        ([{"role": "asistant", "content": "x"}], "did you mean `assistant`?"),
        ([{"role": "user", "content": ["part"]}], "content of message 1 must be a string, found a list"),
        ([{"role": "user", "content": "x"}], "no assistant message"),
    ],
)
def test_bad_conversations(messages, words):
    with pytest.raises(DataError) as caught:
        read({"messages": messages})
    assert words in caught.value.message
    assert "line 1" in caught.value.message


def test_no_rows():
    with pytest.raises(DataError, match="has no rows"):
        read()
