"""Find out where in the forget set a VerbMem sample stands, and what joins its two halves.

A sample is a window over the articles joined by blank lines, so it may run over several of them. White space
of the samples does not always agree with that of the articles; the search ignores it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.bench.muse.data import VerbatimSample

SEPARATOR = "\n\n"
"""Between articles, in the samples and in training text."""
_PROBE = 60


@dataclass(frozen=True)
class Place:
    """State the articles that a sample quotes."""

    first: int
    last: int
    """Both included."""
    joint: str
    """What stands between prompt and continuation: a space, or nothing where one of them carries it."""


class Locator:
    """Search samples in one list of articles."""

    def __init__(self, articles: Sequence[str]) -> None:
        self._text = SEPARATOR.join(articles)
        # Millions of positions: an array takes a tenth of the memory of a list.
        self._positions = array("I", (i for i, letter in enumerate(self._text) if not letter.isspace()))
        self._dense = "".join(self._text[i] for i in self._positions)
        self._starts: list[int] = []
        start = 0
        for article in articles:
            self._starts.append(start)
            start += len(article) + len(SEPARATOR)

    def find(self, sample: VerbatimSample) -> Place | None:
        """Return the place of a whole sample; None if the articles do not hold it."""
        prompt, continuation = _dense(sample.prompt), _dense(sample.continuation)
        if not prompt or not continuation:
            return None
        start = self._dense.find(prompt + continuation)
        if start < 0:
            return None
        border = start + len(prompt)
        end = border + len(continuation) - 1
        between = self._text[self._positions[border - 1] + 1 : self._positions[border]]
        return Place(
            first=self._article(self._positions[start]),
            last=self._article(self._positions[end]),
            joint=" " if between and not _carries_space(sample) else "",
        )

    def joint(self, sample: VerbatimSample) -> str:
        """Return what joins prompt and continuation.

        Falls back on the surroundings of the border, then on a space between words: samples of other
        releases need not be quoted whole.
        """
        place = self.find(sample)
        if place is not None:
            return place.joint
        if _carries_space(sample):
            return ""
        tail, head = sample.prompt[-_PROBE:], sample.continuation[:_PROBE]
        return "" if tail + head in self._text else " "

    def _article(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1


def _dense(text: str) -> str:
    return "".join(text.split())


def _carries_space(sample: VerbatimSample) -> bool:
    return sample.prompt[-1:].isspace() or sample.continuation[:1].isspace()
