"""Overlap is measured as documented: a share of distinct n-grams, exact for short texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.data.overlap import (
    OverlapIndex,
    bare_words,
    duplicate_positions,
    find_passages,
    ngram_hashes,
    overlapping_positions,
    same_texts,
)

words = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=20).map(" ".join)


def naive_share(text, reference, ngram):
    def grams(one):
        parts = one.split()
        return {tuple(parts[i : i + ngram]) for i in range(len(parts) - ngram + 1)}

    if text in reference:
        return 1.0
    known = set().union(*map(grams, reference))
    own = grams(text)
    return sum(gram in known for gram in own) / len(own) if own else 0.0


@given(words, st.lists(words, min_size=1, max_size=5), st.integers(3, 6))
def test_share_equals_the_definition(text, reference, ngram):
    assert OverlapIndex(reference, ngram=ngram).share(text) == naive_share(text, reference, ngram)


def test_case_space_and_punctuation_do_not_hide_a_copy():
    original = "The quick brown fox jumps over the lazy dog, every day of the week."
    copy = "the QUICK  brown fox\njumps over the lazy dog every day of the week"
    assert OverlapIndex([original], ngram=8).share(copy) == 1.0


def test_one_changed_word_touches_exactly_n_windows():
    base = [f"w{i}" for i in range(40)]
    changed = [*base[:20], "other", *base[21:]]
    assert OverlapIndex([" ".join(base)], ngram=8).share(" ".join(changed)) == (33 - 8) / 33


def test_short_texts_need_an_exact_match():
    index = OverlapIndex(["The symbol for gold is Au.", "a b c d e f g h i j k l"], ngram=8)
    assert index.share("the symbol  for gold is au.") == 1.0
    assert index.share("The symbol for gold is Ag.") == 0.0
    assert index.share("a b c d") == 0.0


def test_scripts_without_spaces_are_compared_by_character():
    assert len(ngram_hashes("\u91d1\u7684\u5316\u5b66\u7b26\u53f7\u662f\u4ec0\u4e48", 8)) == 2


def test_positions():
    assert duplicate_positions(["A b", "c", "a  B", "C\n", "d"]) == [2, 3]
    forget = ["one two three four five six"]
    retain = ["one two three four x y", "one two x y z w", "ONE two three four five six"]
    assert overlapping_positions(retain, forget, ngram=3, share=0.5) == [0, 2]
    assert overlapping_positions(retain, forget, ngram=3, share=0.51) == [2]
    assert same_texts(["a", "B", "b"], ["b ", "A"])
    assert not same_texts(["a"], ["a", "b"])


def test_ten_thousand_texts_take_seconds_at_most():
    texts = [" ".join(f"{(i * 7919 + j * j) % 5000}" for j in range(60)) for i in range(5000)]
    start = time.perf_counter()
    overlapping_positions(texts[2500:], texts[:2500])
    assert time.perf_counter() - start < 5


@given(st.lists(words, max_size=6), st.lists(words, max_size=5), st.integers(1, 5))
def test_passages_are_found_where_a_plain_search_finds_them(passages, texts, fewest):
    expected = {}
    for number, passage in enumerate(passages):
        whole = len(passage.split()) < fewest
        hits = [text == passage if whole else f" {passage} " in f" {text} " for text in texts]
        if any(hits):
            expected[number] = hits.index(True)
    assert find_passages(passages, texts, fewest_words=fewest) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("caf\u00e9", "CAFE\u0301"),
        ("Stra\u00dfe", "STRASSE"),
        ("\uff21\uff22\uff23", "abc"),
        ("for\u00adget\u200b me", "Forget  me!"),
        ("\u201cWell\u201d \u2014 he said\u2026", "well, he said..."),
        ("\ufb01nd", "find"),
    ],
)
def test_ways_to_write_one_word_are_one(first, second):
    assert bare_words(first) == bare_words(second)


@pytest.mark.parametrize(
    ("first", "second"), [("5 + 3", "5 * 3"), ("\u0915\u093f", "\u0915\u093e"), ("C++", "C"), ("a b", "ab")]
)
def test_other_words_stay_other_words(first, second):
    assert bare_words(first) != bare_words(second)


def test_passages_stand_at_word_boundaries_also_without_spaces():
    assert find_passages(["cat sat on the"], ["the cat sat on them"], fewest_words=3) == {}
    capital = "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd"
    assert find_passages([capital], [f"\u4f17\u6240\u5468\u77e5\uff0c{capital}\u3002"], fewest_words=4) == {
        0: 0
    }


def test_nothing_but_punctuation_is_no_passage():
    assert find_passages(["...", ""], ["...", "", "a b c d e"], fewest_words=4) == {}
