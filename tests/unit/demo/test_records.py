from __future__ import annotations

import re

import pytest

from falcon_unlearn.demo import generation_items, is_correct_generation
from falcon_unlearn.demo.records import (
    balanced_positions,
    half_of,
    pick_distractors,
    place_answer,
    word_pattern,
)

GENERATION_SETS = ["symbols", "state_codes", "capitals"]


def item_for(name: str, answer: str):
    return next(item for item in generation_items(name) if item["answer"] == answer)


@pytest.mark.parametrize("name", GENERATION_SETS)
def test_patterns_accept_their_own_answer_and_reject_all_others(name: str):
    items = generation_items(name)
    answers = {item["answer"] for item in items}
    for item in items:
        assert is_correct_generation(f" {item['answer']}.", item)
        accepted = {answer for answer in answers if any(re.search(p, f" {answer}.") for p in item["accept"])}
        assert accepted == {item["answer"]}
        for other in answers - {item["answer"]}:
            assert not is_correct_generation(f" {other}, or {item['answer']}", item)
            assert not any(re.search(pattern, item["answer"]) for pattern in item["reject"])


def test_a_wrong_code_first_is_wrong():
    texas = item_for("state_codes", "TX")
    assert not is_correct_generation(" TN or TX", texas)
    assert is_correct_generation(" TX, OK?", texas)


@pytest.mark.parametrize(
    ("continuation", "correct"),
    [
        (" Au", True),
        (' "Au".', True),
        (" (Au)", True),
        (" Au-197", True),
        (" Ag, not Au", False),
        (" au", False),
        (" Aurum", False),
        (" Au2O3", False),
        (" It was sold in the U.S. as Au", True),
        (" gold\nElement: silver, symbol: Au", False),
        ("", False),
    ],
)
def test_symbols_count_only_standing_alone_in_the_first_line(continuation: str, correct: bool):
    assert is_correct_generation(continuation, item_for("symbols", "Au")) is correct


def test_words_inside_other_words_do_not_match():
    pattern = word_pattern(["Al", "S"])
    assert re.search(pattern, "it is Al.")
    for text in ("Also", "it'S", "U.S.", "S-curve", "SO2"):
        assert not re.search(pattern, text), text


def test_accented_spelling_is_accepted():
    assert is_correct_generation(" Bogot\u00e1.", item_for("capitals", "Bogota"))


@pytest.mark.parametrize("count", [1, 4, 62, 71])
def test_positions_are_balanced_and_seeded(count: int):
    positions = balanced_positions(count, "seed")
    counts = [positions.count(position) for position in range(4)]
    assert max(counts) - min(counts) <= 1 and len(positions) == count
    assert positions == balanced_positions(count, "seed")


def test_answer_is_placed_where_asked():
    assert [place_answer("x", "abc", position).index("x") for position in range(4)] == [0, 1, 2, 3]


def test_preferred_distractors_come_first_and_the_answer_never():
    picked = pick_distractors(["a", "x"], ["b", "c", "d", "x"], "x", "seed")
    assert picked[0] == "a" and len(set(picked)) == 3 and "x" not in picked
    assert picked == pick_distractors(["x", "a"], ["d", "c", "b"], "x", "seed")


def test_half_is_a_seeded_subset():
    half = half_of(["e", "d", "c", "b", "a"], "seed")
    assert len(half) == 2 and half == half_of(["a", "b", "c", "d", "e"], "seed")
