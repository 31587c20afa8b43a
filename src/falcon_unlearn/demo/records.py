"""Hold the plain records of the demo content and the few rules that all sets share."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import TypedDict

NUM_OPTIONS = 4
PATTERN_LENGTH = 120
"""Characters of words in one pattern; evaluation files allow patterns of 200 characters."""


class ChoiceItem(TypedDict):
    """Describe one four-way question; `options[answer]` is right."""

    id: str
    cluster: str
    wording: str
    question: str
    letter_question: str
    options: list[str]
    answer: int
    seen_in_retain: bool


class GenerationItem(TypedDict):
    """Describe one open prompt with the patterns that decide whether a continuation is right."""

    id: str
    cluster: str
    prompt: str
    answer: str
    accept: list[str]
    reject: list[str]
    seen_in_retain: bool


def slug(text: str) -> str:
    """Return `text` in lower case with every run of other characters turned into one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def balanced_positions(count: int, seed: str) -> list[int]:
    """Return `count` answer positions in a seeded order; counts per position differ by at most one."""
    positions = [index % NUM_OPTIONS for index in range(count)]
    random.Random(seed).shuffle(positions)
    return positions


def place_answer(answer: str, distractors: Sequence[str], position: int) -> list[str]:
    """Return the options with `answer` at `position` and the distractors around it in their order."""
    options = list(distractors)
    options.insert(position, answer)
    return options


def pick_distractors(preferred: Iterable[str], others: Iterable[str], answer: str, seed: str) -> list[str]:
    """Pick three wrong options, from `preferred` while they last, then from `others`, by a seeded draw."""
    generator = random.Random(seed)
    first = sorted(set(preferred) - {answer})
    second = sorted(set(others) - set(first) - {answer})
    generator.shuffle(first)
    generator.shuffle(second)
    return (first + second)[: NUM_OPTIONS - 1]


def half_of(keys: Sequence[str], seed: str) -> frozenset[str]:
    """Return a seeded half of `keys` (rounded down)."""
    return frozenset(random.Random(seed).sample(sorted(keys), len(keys) // 2))


def word_pattern(words: Iterable[str]) -> str:
    """Return a case-sensitive pattern that finds any of `words` standing alone.

    Parts of abbreviations, formulas and compounds ("U.S", "O2", "X-ray", "it's") do not stand alone.
    """
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
    return rf"(?<![\w.'-])(?:{alternatives})(?![\w']|[.-][A-Za-z])"


def word_patterns(words: Iterable[str]) -> list[str]:
    """Return short patterns that together find what `word_pattern` finds."""
    groups: list[list[str]] = []
    size = PATTERN_LENGTH
    for word in sorted(words):
        size += len(re.escape(word)) + 1
        if size > PATTERN_LENGTH:
            groups.append([])
            size = len(re.escape(word))
        groups[-1].append(word)
    return [word_pattern(group) for group in groups]


def earliest_match(patterns: Iterable[str], text: str) -> int | None:
    """Return the offset of the first match of any pattern in `text`, or None."""
    matches = (re.search(pattern, text) for pattern in patterns)
    return min((match.start() for match in matches if match), default=None)


def is_correct_generation(continuation: str, item: GenerationItem) -> bool:
    """Tell whether the right answer occurs in the first line of `continuation` before any wrong one."""
    line = continuation.strip().partition("\n")[0]
    accepted = earliest_match(item["accept"], line)
    rejected = earliest_match(item["reject"], line)
    return accepted is not None and (rejected is None or accepted < rejected)
