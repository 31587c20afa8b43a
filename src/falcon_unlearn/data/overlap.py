"""Find texts that occur twice, within a set and between sets. Pure functions on strings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# A script without spaces would make a whole sentence one word, so each of its characters counts as a word.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")
_WORD_OF_ITS_OWN = re.compile(rf"[{_IDEOGRAPH}]")


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


class _BareCharacters(dict[int, str]):
    """Say what becomes of a character: letters, marks and digits stay, invisible ones go, others separate."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] == "S" or _WORD_OF_ITS_OWN.fullmatch(character):
            kept = f" {character} "
        elif category[0] in "LMN":
            kept = character
        else:
            kept = "" if category == "Cf" else " "
        return self.setdefault(code, kept)


_BARE = _BareCharacters()


def bare_words(text: str) -> str:
    """Return the words with single spaces between, without case, punctuation and compatibility forms.

    Symbols and ideographs count as words. Stricter than `normalise`, and marks of a letter are part of it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_BARE).split())


def find_passages(passages: Sequence[str], texts: Iterable[str], *, fewest_words: int) -> dict[int, int]:
    """Find passages that equal a text or stand in one from their first word to their last.

    Args:
        passages: What to look for, by its bare words.
        texts: Where to look; each is read once.
        fewest_words: A shorter passage may stand in a text by chance: only whole texts count for it.

    Returns:
        Position of the first text by position of the passage, for every passage that was found.
    """
    wanted = [tuple(bare_words(passage).split()) for passage in passages]
    by_start: dict[tuple[str, ...], list[int]] = {}
    for number, words in enumerate(wanted):
        if words:
            by_start.setdefault(words[:fewest_words], []).append(number)
    found: dict[int, int] = {}
    for place, text in enumerate(texts):
        own = tuple(bare_words(text).split())
        shifted = [own[shift:] for shift in range(fewest_words)]
        windows = [own] if len(own) < fewest_words else zip(*shifted, strict=False)
        for start, window in enumerate(windows):
            for number in by_start.get(window, ()):
                words = wanted[number]
                if own[start : start + len(words)] == words:
                    found.setdefault(number, place)
    return found
