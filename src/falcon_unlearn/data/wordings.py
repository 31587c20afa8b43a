"""Tell texts of like wording apart from others, so that a held-out part is worded differently.

Texts made from templates come in groups that share most of their words. What is measured on the wording that
was trained on says little about the knowledge in other words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

NGRAM = 3
ALIKE = 0.25
"""Two texts are worded alike when they share this part of the n-grams of the shorter one."""
LARGEST_GROUP = 0.5
"""A group of more texts than this share of all is no template but the style of the whole set."""


class WordingSplit(NamedTuple):
    """Hold positions of texts to train on and of texts held out."""

    trained: list[int]
    held_out: list[int]
    apart: bool
    """False where wordings could not be separated, and the split is a random one."""


def wording_groups(rows: Sequence[Sequence[int]], seed: int | str) -> list[list[int]]:
    """Group texts of like wording: each text joins the first group whose first member it resembles.

    Args:
        rows: Token ids of each text.
        seed: Of the order in which texts found groups.
    """
    grams = [{tuple(row[i : i + NGRAM]) for i in range(len(row) - NGRAM + 1)} for row in rows]
    groups: list[list[int]] = []
    order = random.Random(f"{seed}:wordings").sample(range(len(rows)), len(rows))
    for index in order:
        for group in groups:
            first = grams[group[0]]
            if len(first & grams[index]) > ALIKE * min(len(first), len(grams[index])):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def split_by_wording(rows: Sequence[Sequence[int]], share: float, seed: int | str) -> WordingSplit:
    """Hold out about `share` of the texts, in whole groups of like wording.

    Where one group holds most texts, or all groups together would have to be held out, the split is random.
    """
    wanted = max(1, round(share * len(rows)))
    groups = wording_groups(rows, seed)
    held_out: list[int] = []
    for group in groups:
        if len(held_out) >= wanted:
            break
        if len(group) <= LARGEST_GROUP * len(rows) and len(held_out) + len(group) <= LARGEST_GROUP * len(
            rows
        ):
            held_out += group
    apart = bool(held_out)
    if not apart:
        held_out = random.Random(f"{seed}:split").sample(range(len(rows)), wanted)
    chosen = set(held_out)
    return WordingSplit([i for i in range(len(rows)) if i not in chosen], held_out, apart)
