"""Take everything out of retain and holdout articles that also stands in the forget set.

The folds of MUSE-News overlap: retain text that repeats forget articles trains the forget set back in, and
holdout text that repeats them makes members look like non-members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from falcon_unlearn.data.overlap import OverlapIndex, ngram_hashes, normalise

NGRAM = 8
"""Words of a shingle."""
LARGEST_SHARE = 0.2
COMMON_LINE = 5
"""A line of that many different articles is boilerplate: contact lines, cookie notices, signatures."""


@dataclass(frozen=True)
class DedupeCounts:
    """Count what became of the articles, in the order of the steps."""

    read: int
    empty: int
    repeats: int
    """Equal to an earlier article of the same list, up to case and white space."""
    forget_copies: int
    """Equal to an article of the forget set."""
    near_forget: int
    """More than the allowed share of 8-word shingles stands in the forget set."""
    near_repeats: int
    """The same, against the articles kept so far."""
    lines_removed: int
    """Lines removed from the articles that stay."""
    nothing_left: int
    """Articles of which nothing else was left."""
    kept: int

    @property
    def after_exact(self) -> int:
        """Articles left after removing empty and equal ones."""
        return self.read - self.empty - self.repeats - self.forget_copies

    def describe(self) -> str:
        """Return one sentence for a result file."""
        return (
            f"{self.kept} of {self.read} articles kept: {self.empty} empty, {self.repeats} repeated, "
            f"{self.forget_copies} equal to a forget article, {self.near_forget} near it, "
            f"{self.near_repeats} near another; {self.lines_removed} shared lines removed"
        )


@dataclass(frozen=True)
class Deduplicated:
    """Hold the articles that are left, in their old order."""

    articles: tuple[str, ...]
    positions: tuple[int, ...]
    """Where each stood in the list that came in."""
    counts: DedupeCounts


def deduplicate(
    articles: Sequence[str],
    forget: Sequence[str],
    *,
    ngram: int = NGRAM,
    largest_share: float = LARGEST_SHARE,
) -> Deduplicated:
    """Remove copies and near copies of forget articles, repeats, and lines shared with the forget set.

    Args:
        articles: Candidates for retain and holdout text.
        forget: The forget set; it is not changed.
        ngram: Words of a shingle.
        largest_share: An article, or a line, with a larger share of its shingles elsewhere is dropped.
    """
    unique, empty, repeats = _unique(articles)
    forget_keys = {normalise(text) for text in forget}
    other = [(at, text) for at, text in unique if normalise(text) not in forget_keys]
    forget_index = OverlapIndex(forget, ngram=ngram)
    distinct = [(at, text) for at, text in other if forget_index.share(text) <= largest_share]
    fresh = _without_near_repeats(distinct, ngram, largest_share)
    unwanted = _unwanted_lines([text for _, text in fresh], forget_index, largest_share)
    stripped = [(at, *_without_lines(text, unwanted)) for at, text in fresh]
    kept = [(at, text) for at, text, _ in stripped if text]
    counts = DedupeCounts(
        read=len(articles),
        empty=empty,
        repeats=repeats,
        forget_copies=len(unique) - len(other),
        near_forget=len(other) - len(distinct),
        near_repeats=len(distinct) - len(fresh),
        lines_removed=sum(removed for _, _, removed in stripped),
        nothing_left=len(fresh) - len(kept),
        kept=len(kept),
    )
    return Deduplicated(tuple(text for _, text in kept), tuple(at for at, _ in kept), counts)


def _unique(articles: Sequence[str]) -> tuple[list[tuple[int, str]], int, int]:
    """Return the first occurrence of each article, and the numbers of empty and repeated ones."""
    seen: set[str] = set()
    kept, empty = [], 0
    for at, text in enumerate(articles):
        key = normalise(text)
        if not key:
            empty += 1
        elif key not in seen:
            seen.add(key)
            kept.append((at, text))
    return kept, empty, len(articles) - empty - len(kept)


def _without_near_repeats(
    articles: Sequence[tuple[int, str]], ngram: int, largest_share: float
) -> list[tuple[int, str]]:
    # An article that grew over the day would otherwise be trained on in one part and held out in another.
    seen: set[int] = set()
    kept = []
    for at, text in articles:
        shingles = ngram_hashes(text, ngram)
        if len(shingles & seen) <= largest_share * len(shingles):
            seen |= shingles
            kept.append((at, text))
    return kept


def _unwanted_lines(articles: Iterable[str], forget: OverlapIndex, largest_share: float) -> set[str]:
    """Return the lines, normalised, that many articles share or that stand in the forget set in part.

    A paragraph that both sides quote would teach that part of the forget set again.
    """
    counts: Counter[str] = Counter()
    for text in articles:
        counts.update({normalise(line) for line in text.splitlines()})
    return {
        line
        for line, count in counts.items()
        if line and (count >= COMMON_LINE or forget.share(line) > largest_share)
    }


def _without_lines(text: str, unwanted: set[str]) -> tuple[str, int]:
    lines = text.splitlines()
    kept = [line for line in lines if normalise(line) not in unwanted]
    return "\n".join(kept).strip(), len(lines) - len(kept)
