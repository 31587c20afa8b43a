"""Find evaluation items that should stay known but stand in the text to forget. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from falcon_unlearn.data.overlap import OverlapIndex, bare_words, find_passages
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.sets import AnyItem, ChoiceItem, EvaluationSet, TextItem

FEWEST_WORDS = 4
"""A shorter item may occur inside a text by chance; it overlaps only with a whole example."""
NEAR_NGRAM = 8
"""Words per n-gram of the near overlap."""
NEAR_SHARE = 0.8
"""An item is a near overlap when this share of its n-grams occurs in the text to forget."""

_EXCERPT = 80
_LABELS = ("", "answer ", "a ")
"""What may stand between a question and its answer, once case and punctuation are gone."""
_OUTER_LABELS = re.compile(r"^(?:question|q) | (?:answer|a)$")


@dataclass(frozen=True)
class _Found:
    """Point to an item that should stay, and to where it is to be forgotten."""

    entry: EvaluationSet
    position: int
    place: str
    """Where it is to be forgotten; empty for a near overlap."""

    @property
    def words(self) -> str:
        """Name the item and quote it."""
        excerpt = " ".join(item_text(self.entry.items[self.position]).split())[:_EXCERPT]
        return f"{self.entry.places[self.position]}: {excerpt!r}"


def check_kept_sets(sets: Sequence[EvaluationSet], forget: Mapping[str, Sequence[str]]) -> list[str]:
    """Refuse kept evaluation items that stand in the text to forget, and return warnings of near overlaps.

    An item of a set whose role is not `forget` stands there when its question with its right answer, or its
    text, is an example to forget, an item of a forget set, or a passage of either. Case, white space and
    punctuation do not count. A near overlap shares `NEAR_SHARE` of its `NEAR_NGRAM`-grams with them.

    Args:
        sets: All evaluation sets.
        forget: Plain text of every example, by the name of its domain.

    Raises:
        DataError: An item overlaps; names set, row and the row to forget.
    """
    kept = [entry for entry in sets if entry.settings.role != "forget"]
    if not kept:
        return []
    texts = {
        f"{name}, example {number}": text
        for name, domain in forget.items()
        for number, text in enumerate(domain, 1)
    }
    for entry in sets:
        if entry.settings.role == "forget":
            rows = zip(entry.items, entry.places, strict=True)
            texts |= {f"{entry.settings.name}, {place}": item_text(item) for item, place in rows}
    _refuse(_exact(kept, texts))
    index = OverlapIndex(texts.values(), ngram=NEAR_NGRAM)
    near = [_near(entry, index) for entry in kept]
    return [_warning(found) for found in near if found]


def item_text(item: AnyItem) -> str:
    """Return an item as one text: the question with its right answer, or the text."""
    return " ".join(_questions(item)[0])


def _questions(item: AnyItem) -> list[tuple[str, str]]:
    """Return the ways in which an item asks, each with its right answer."""
    if isinstance(item, TextItem):
        return [(item.text, "")]
    if isinstance(item, ChoiceItem):
        answer = item.options[item.answer]
        return [(item.question, answer), (item.letter_question, answer)]
    return [(item.prompt, item.answer)]


def _passages(item: AnyItem) -> list[str]:
    """Return the wordings of an item that count as the same."""
    passages = []
    for question, answer in dict.fromkeys(_questions(item)):
        asked = bare_words(question)
        if not answer:
            return [asked]
        plain = _OUTER_LABELS.sub("", asked)
        passages += [f"{plain} {label}{bare_words(answer)}" for label in _LABELS]
    return passages


def _exact(kept: Sequence[EvaluationSet], texts: Mapping[str, str]) -> list[_Found]:
    owners, passages = [], []
    for entry in kept:
        for position, item in enumerate(entry.items):
            wordings = _passages(item)
            owners += [(entry, position)] * len(wordings)
            passages += wordings
    places = list(texts)
    hits = find_passages(passages, texts.values(), fewest_words=FEWEST_WORDS)
    first: dict[tuple[str, int], _Found] = {}
    for number, (entry, position) in enumerate(owners):
        if number in hits:
            key = (entry.settings.name, position)
            first.setdefault(key, _Found(entry, position, places[hits[number]]))
    return list(first.values())


def _near(entry: EvaluationSet, index: OverlapIndex) -> list[_Found]:
    shares = [index.share(item_text(item)) for item in entry.items]
    return [_Found(entry, position, "") for position, share in enumerate(shares) if share >= NEAR_SHARE]


def _refuse(found: Sequence[_Found]) -> None:
    if not found:
        return
    first, more = found[0], len(found) - 1
    settings = first.entry.settings
    others = f", and {more} more like it" if more else ""
    raise DataError(
        f"evaluation.sets: {settings.name} has the role {settings.role}, so it should stay known, but "
        f"{first.words} is to be forgotten: it stands in {first.place}{others}",
        hint="remove it from the set or from the text to forget, or give the set the role `forget`",
    )


def _warning(found: Sequence[_Found]) -> str:
    entry, share = found[0].entry, f"{NEAR_SHARE:.0%} of their runs of {NEAR_NGRAM} words"
    return (
        f"{entry.settings.name}: {len(found)} of {len(entry.items)} items that should stay known "
        f"nearly repeat text to forget ({share}); the first is {found[0].words}"
    )
