"""Find texts that occur twice, within a set and between sets. Pure functions on strings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A script without spaces would make a whole sentence one word, so each of its characters counts as a word.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")


def normalise(text: str) -> str:
    """Return the text without differences of case and white space."""
    return " ".join(text.casefold().split())


def duplicate_positions(texts: Iterable[str]) -> list[int]:
    """Return the positions of texts that equal an earlier one after normalisation, ascending."""
    seen: set[str] = set()
    repeated = []
    for position, text in enumerate(texts):
        key = normalise(text)
        if key in seen:
            repeated.append(position)
        seen.add(key)
    return repeated


def ngram_hashes(text: str, ngram: int) -> set[int]:
    """Return the hashes of all runs of `ngram` words; empty if the text is shorter.

    Case and punctuation do not count. The hashes hold within one process only.
    """
    words = _WORD.findall(text.casefold())
    return {hash(window) for window in zip(*(words[start:] for start in range(ngram)), strict=False)}


class OverlapIndex:
    """Answer how much of a text occurs in a fixed set of texts."""

    def __init__(self, texts: Iterable[str], *, ngram: int) -> None:
        """Index all n-grams of `texts`, `ngram` words each."""
        self.ngram = ngram
        self._exact: set[str] = set()
        self._ngrams: set[int] = set()
        for text in texts:
            self._exact.add(normalise(text))
            self._ngrams |= ngram_hashes(text, ngram)

    def share(self, text: str) -> float:
        """Return the share of the text's distinct n-grams that occur in the set, between 0 and 1.

        A text that equals one of the set scores 1; a text of fewer than `ngram` words scores 1 or 0.
        """
        if normalise(text) in self._exact:
            return 1.0
        own = ngram_hashes(text, self.ngram)
        return len(own & self._ngrams) / len(own) if own else 0.0


def overlapping_positions(
    texts: Sequence[str], reference: Iterable[str] | OverlapIndex, *, ngram: int = 8, share: float = 0.5
) -> list[int]:
    """Return the positions of texts with at least `share` of their n-grams in the reference, ascending."""
    index = reference if isinstance(reference, OverlapIndex) else OverlapIndex(reference, ngram=ngram)
    return [position for position, text in enumerate(texts) if index.share(text) >= share]


def same_texts(first: Iterable[str], second: Iterable[str]) -> bool:
    """Return True when both sets hold the same texts after normalisation, in any order."""
    return {normalise(text) for text in first} == {normalise(text) for text in second}
