"""Perplexity of texts per token, per word and per byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject

MAXIMUM_WINDOW = 1024


@dataclass(frozen=True)
class TextScore:
    """Hold the surprise of one text and the lengths to divide it by.

    The first token has no prediction; it is neither in the sum nor in the counts.
    """

    negative_log_likelihood: float
    """Sum over the text, in nats."""
    num_tokens: int
    num_words: int
    """Separated by white space; at least 1."""
    num_bytes: int
    """In UTF-8; at least 1."""


def text_scores(subject: Subject, texts: Sequence[Sequence[int]]) -> list[TextScore]:
    """Score whole texts given as token ids.

    Long texts are read in windows that repeat one token as context, so that every token but the first is
    scored exactly once.

    Raises:
        DataError: a text of fewer than two tokens.
    """
    size = min(MAXIMUM_WINDOW, subject.maximum_tokens)
    owners: list[int] = []
    pairs: list[tuple[Sequence[int], Sequence[int]]] = []
    for index, text in enumerate(texts):
        for window in windows(text, size):
            owners.append(index)
            pairs.append((window[:1], window[1:]))
    totals = [0.0] * len(texts)
    for owner, score in zip(owners, subject.score(pairs), strict=True):
        totals[owner] -= score.sum_log_probability
    return [_with_lengths(subject, text, total) for text, total in zip(texts, totals, strict=True)]


def windows(text: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut `text` into windows of at most `size` tokens, each starting with the last token of the one before.

    Raises:
        DataError: fewer than two tokens.
    """
    if len(text) < 2:
        raise DataError(f"a text of {len(text)} token has no token to predict; two are needed.")
    return [text[start : start + size] for start in range(0, len(text) - 1, size - 1)]


def _with_lengths(subject: Subject, text: Sequence[int], total: float) -> TextScore:
    scored = subject.tokenizer.decode(list(text[1:]))
    return TextScore(total, len(text) - 1, max(1, len(scored.split())), max(1, len(scored.encode())))
