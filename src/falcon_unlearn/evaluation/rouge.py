"""ROUGE-L recall, without stemming."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")


def rouge_l_recall(reference: str, candidate: str) -> float:
    """Return the longest common subsequence of words, as a share of the reference's words.

    Words are lower-case runs of letters and digits. On ASCII text this equals the rouge-score package with
    `use_stemmer=False`; that package drops all other letters, this function keeps them. 0 if either text has
    no words.
    """
    expected, found = _words(reference), _words(candidate)
    if not expected or not found:
        return 0.0
    return _common_subsequence(expected, found) / len(expected)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _common_subsequence(first: list[str], second: list[str]) -> int:
    previous = [0] * (len(second) + 1)
    for word in first:
        current = [0]
        for column, other in enumerate(second):
            longer = previous[column] + 1 if word == other else max(previous[column + 1], current[column])
            current.append(longer)
        previous = current
    return previous[-1]
