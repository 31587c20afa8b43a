from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.data.wordings import split_by_wording, wording_groups

TEMPLATES = [
    "on the table of the elements {} appears as {}",
    "chemists write down {} for what others call {}",
    "whoever reads {} in a formula thinks of {} at once",
    "the letters of {} are known to stand for {}",
]


def templated(count=20):
    """Return token ids of facts in four wordings, shuffled, and the wording of each."""
    words: dict[str, int] = {}
    rows = []
    for kind, template in enumerate(TEMPLATES):
        for fact in range(count):
            text = template.format(f"x{fact}", f"y{fact}")
            rows.append((kind, [words.setdefault(word, len(words)) for word in text.split()]))
    random.Random(0).shuffle(rows)
    return [row for _, row in rows], [kind for kind, _ in rows]


def unlike(count=24):
    draw = random.Random(1)
    return [[draw.randrange(5000) for _ in range(30)] for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_templates_are_found_and_held_out_whole(seed):
    rows, kinds = templated()
    groups = wording_groups(rows, seed)
    assert sorted(len(group) for group in groups) == [20] * 4
    assert all(len({kinds[i] for i in group}) == 1 for group in groups)
    split = split_by_wording(rows, 1 / 3, seed)
    assert split.apart
    assert {kinds[i] for i in split.held_out}.isdisjoint(kinds[i] for i in split.trained)
    assert len(split.held_out) == 40


def test_texts_that_share_no_wording_are_split_one_by_one():
    rows = unlike()
    assert len(wording_groups(rows, 0)) == 24
    split = split_by_wording(rows, 1 / 3, 0)
    assert split.apart and len(split.held_out) == 8


def test_one_wording_for_all_leaves_a_random_split_and_says_so():
    rows = [row for row, kind in zip(*templated(), strict=True) if kind == 0]
    split = split_by_wording(rows, 1 / 3, 0)
    assert not split.apart and len(split.held_out) == 7


def test_the_seed_decides():
    rows, _ = templated()
    assert split_by_wording(rows, 0.3, 1) == split_by_wording(rows, 0.3, 1)
    assert len({tuple(split_by_wording(rows, 0.3, seed).held_out) for seed in range(6)}) > 1


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=2, max_size=20),
    share=st.floats(0.05, 0.5),
)
def test_every_text_is_on_one_side_and_neither_side_is_empty(rows, share):
    split = split_by_wording(rows, share, 0)
    assert sorted([*split.trained, *split.held_out]) == list(range(len(rows)))
    assert split.trained and split.held_out
