"""Guess which article a KnowMem question is about, by rare shared words.

MUSE does not say it. The guess is unreliable: the answer of many questions is not literally in the article.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

from falcon_unlearn.bench.muse.data import QuestionAnswer

_WORD = re.compile(r"[^\W_]+")


def matching_article(item: QuestionAnswer, articles: Sequence[set[str]]) -> int | None:
    """Return the position of the article that shares the rarest words with question and answer.

    Args:
        item: The question.
        articles: The words of each article, as `words_of` returns them.

    Returns:
        The first best position; None if no article shares a word.
    """
    wanted = words_of(f"{item.question} {item.answer}")
    holders = {word: [at for at, words in enumerate(articles) if word in words] for word in sorted(wanted)}
    weights: dict[int, float] = defaultdict(float)
    for found in holders.values():
        for at in found:
            weights[at] += _rarity(len(found), len(articles))
    if not weights:
        return None
    return min(weights, key=lambda at: (-weights[at], at))


def included_questions(
    questions: Sequence[QuestionAnswer], articles: Sequence[str], chosen: Sequence[int]
) -> tuple[QuestionAnswer, ...]:
    """Keep the questions whose article, among all of them, is one of the chosen positions.

    Equal articles count as one: a question matches whichever copy is chosen.
    """
    words = [words_of(article) for article in articles]
    texts = {articles[at] for at in chosen}
    kept = []
    for item in questions:
        at = matching_article(item, words)
        if at is not None and articles[at] in texts:
            kept.append(item)
    return tuple(kept)


def words_of(text: str) -> set[str]:
    """Return the distinct words of a text, without case."""
    return set(_WORD.findall(text.casefold()))


def _rarity(num_holders: int, num_articles: int) -> float:
    return math.log((1 + num_articles) / (1 + num_holders))
