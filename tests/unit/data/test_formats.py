"""Every malformed file gives one message with file and line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.data.formats import decode_text, parse_json_rows, split_text
from falcon_unlearn.errors import DataError


def values(text):
    return [row.value for row in parse_json_rows(text, "f.json")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)


@given(st.lists(json_objects, min_size=1, max_size=5), st.sampled_from(["array", "pretty", "lines", "crlf"]))
def test_every_json_layout_gives_the_same_rows(objects, layout):
    if layout == "array":
        text = json.dumps(objects)
    elif layout == "pretty":
        text = json.dumps(objects, indent=2, ensure_ascii=False)
    else:
        text = ("\r\n" if layout == "crlf" else "\n").join(json.dumps(value) for value in objects)
    assert values(text) == objects


def test_rows_know_their_lines():
    rows = parse_json_rows('\n{"a": 1}\n\n{"a": 2}\n', "f.jsonl")
    assert [row.place for row in rows] == ["f.jsonl, line 2", "f.jsonl, line 4"]
    rows = parse_json_rows('[\n  {"a": 1},\n  {"a": 2}\n]\n', "f.json")
    assert [row.place for row in rows] == ["f.json, line 2", "f.json, line 3"]


def test_line_separators_inside_strings_do_not_split_rows():
    assert values('{"a": "x\u2028y\x85z"}\n{"a": "b"}') == [{"a": "x\u2028y\x85z"}, {"a": "b"}]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": "b"}\n{"a": "c', 2, "incomplete"),
        ('{"a": "b"}\n{"a": "c\n{"a": "d"}\n', 2, "not valid JSON"),
        ('{"a": 1}\nnot json\n{"a": 2}', 2, "not valid JSON"),
        ('[{"a": 1},\n{"a": 2}', 2, "not closed"),
        ('[{"a": 1},\n', 2, "not closed"),
        ('[{"a": 1}]\n{"a": 2}', 2, "after the end"),
        ('[{"a": 1}\n{"a": 2}]', 2, "not closed"),
        ("[]", None, "empty list"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", 1, "digits"),
    ],
)
def test_malformed_json_names_file_and_line(text, line, words):
    with pytest.raises(DataError) as caught:
        parse_json_rows(text, "facts.jsonl")
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.message.startswith("facts.jsonl" + (f", line {line}" if line else ""))


def test_utf8_with_and_without_mark_and_any_line_end():
    assert decode_text("\ufeffa\r\nb\rc\n".encode(), "f") == "a\nb\nc\n"
    assert decode_text("na\u00efve \U0001f600 \u05d0".encode(), "f") == "na\u00efve \U0001f600 \u05d0"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \r\n\t ", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"fine\ncaf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        ("text".encode("utf-16"), "is UTF-16"),
        ("text".encode("utf-32"), "is UTF-32"),
        (b"a\nb\0c", "line 2: contains a NUL byte"),
    ],
)
def test_unusable_bytes_are_named(content, words):
    with pytest.raises(DataError, match=words):
        decode_text(content, "facts.txt")


def test_text_split():
    text = "one\ntwo\n \nthree\n\n\nfour\n"
    assert split_text(text, "auto") == ["one\ntwo", "three", "four"]
    assert split_text(text, "paragraph") == ["one\ntwo", "three", "four"]
    assert split_text(text, "line") == ["one", "two", "three", "four"]
    assert split_text(text, "file") == ["one\ntwo\n \nthree\n\n\nfour"]
    assert split_text("one\ntwo\n\n", "auto") == ["one", "two"]
