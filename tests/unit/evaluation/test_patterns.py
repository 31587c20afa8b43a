from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.patterns import MAXIMUM_TEXT, answer_pattern, safe_pattern


@pytest.mark.parametrize(
    "source",
    [
        r"\bAu\b",
        r"(?i)gold|aurum",
        r"colou?r",
        r"a[+*?]{2}b\+\*\?\(\)",
        r"(?:Na|K)\s*\+",
        r"^\s*Fe",
        r"[]ab]+",
        r"a{2,3}",
    ],
)
def test_everyday_patterns_compile(source):
    assert safe_pattern(source, "f.jsonl, line 1").pattern == source


@pytest.mark.parametrize(
    "source",
    [
        r"(a+)+$",
        r"(a|a)*b",
        r"(a*)*",
        r"(?:a|aa){5,}",
        r".*.*.*x",
        r"a?" * 9,
        "",
        "x" * 201,
        "(",
        "[a",
        r"\1",
        "a{99999999999}",
    ],
)
def test_slow_or_broken_patterns_are_refused_with_their_place(source):
    with pytest.raises(DataError, match=r"f\.jsonl, line 7"):
        safe_pattern(source, "f.jsonl, line 7")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "b", ".", "*", "+", "?", "|", "(", ")", "{2,}", "[ab]", r"\w", "$", "^"]),
        max_size=24,
    )
)
def test_no_accepted_pattern_takes_long(parts):
    try:
        pattern = safe_pattern("".join(parts), "here")
    except DataError:
        return
    started = time.perf_counter()
    pattern.search("a" * (MAXIMUM_TEXT - 1) + "c")
    assert time.perf_counter() - started < 5.0


@given(st.text(min_size=1, max_size=12))
def test_the_default_pattern_finds_the_answer_literally(answer):
    assert answer_pattern(answer).search(f"({answer})") is not None
    if re.fullmatch(r"\w+", answer):
        assert answer_pattern(answer).search(f"x{answer}") is None
        assert answer_pattern(answer).search(f"{answer}x") is None
