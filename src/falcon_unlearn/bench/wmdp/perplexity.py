"""Word and byte perplexity as lm-evaluation-harness counts them for its task `wikitext`.

The log-likelihood is that of the page after undoing WikiText's spacing; the words and bytes to divide by are
those of the original page. Windows of `max_length` predictions follow each other; a window starts with the
token before it as context, the last one with as many tokens as fit. The first token follows a prefix token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from falcon_unlearn.bench.wmdp.native import Report
from falcon_unlearn.bench.wmdp.pages import Page
from falcon_unlearn.errors import DataError, ModelError
from falcon_unlearn.evaluation.subject import Subject

# Order matters. The second entry and ` N ` look odd; scores are comparable only when they stay.
_SPACING: tuple[tuple[str, str], ...] = (
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    (r" : ", ": "),
    (r" ; ", "; "),
    (r" \. ", ". "),
    (r" ! ", "! "),
    (r" \? ", "? "),
    (r" , ", ", "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
_RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in _SPACING)


@dataclass(frozen=True)
class PageScore:
    """Hold the log-likelihood of one page and the lengths to divide it by."""

    index: int
    log_likelihood: float
    """Sum over the tokens of the page without WikiText's spacing, in nats."""
    num_words: int
    """Pieces between white space of the original page, empty ones at its ends included."""
    num_bytes: int
    """UTF-8 bytes of the original page."""


@dataclass(frozen=True)
class PagePerplexity:
    """Hold the three ways to state one log-likelihood."""

    word: float
    byte: float
    bits_per_byte: float


def detokenise(page: str) -> str:
    """Undo WikiText's spacing (` , `, ` @-@ `, `( x )` ...) as the task `wikitext` does."""
    for pattern, replacement in _RULES:
        page = pattern.sub(replacement, page)
    return page


def count_words(page: str) -> int:
    """Count the pieces between white space; white space at either end adds an empty one."""
    return len(re.split(r"\s+", page))


def default_prefix_token(tokenizer: Any) -> int:
    """Return the token in front of a page: `<|endoftext|>`, else the begin token, else the end token.

    Chat tokenizers often name the start of a turn as their begin token, which no text follows in training.

    Raises:
        ModelError: the tokenizer has none of them.
    """
    end_of_text = tokenizer.get_vocab().get("<|endoftext|>")
    for candidate in (end_of_text, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    raise ModelError(
        "the tokenizer has no token to put in front of a text", hint="give prefix_token_id explicitly"
    )


def rolling_windows(
    tokens: Sequence[int], prefix_token_id: int, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """Cut a text into (context, predicted) windows that feed at most `max_length` tokens.

    Every token is predicted once. A window has one token of context, except the last, which has as many as
    fit.
    """
    padded = [prefix_token_id, *tokens]
    windows = []
    for start in range(0, len(tokens), max_length):
        stop = min(start + max_length, len(tokens))
        # `padded` is one ahead: predicting tokens[start:stop] feeds padded[...:stop].
        first_fed = max(0, stop - max_length) if start else 0
        windows.append((padded[first_fed : start + 1], list(tokens[start:stop])))
    return windows


def score_pages(
    subject: Subject,
    pages: Sequence[Page],
    *,
    max_length: int,
    prefix_token_id: int,
    report: Report | None = None,
) -> list[PageScore]:
    """Return the log-likelihood of every page with its original lengths.

    Raises:
        DataError: a page without tokens.
    """
    scores = []
    for page in pages:
        # What the tokenizer adds by itself is predicted too, as in lm-evaluation-harness.
        tokens = list(subject.tokenizer.encode(detokenise(page.text)))
        if not tokens:
            raise DataError(f"page {page.index} has no tokens", hint="remove it")
        found = subject.score(rolling_windows(tokens, prefix_token_id, max_length))
        total = math.fsum(score.sum_log_probability for score in found)
        scores.append(PageScore(page.index, total, count_words(page.text), len(page.text.encode())))
        if report is not None:
            report(len(scores), len(pages))
    return scores


def corpus_perplexity(scores: Sequence[PageScore]) -> PagePerplexity:
    """Divide the summed log-likelihood by the summed words and bytes: exp(-LL/W), exp(-LL/B), -LL/(B ln 2).

    A value too large for a float is infinite.
    """
    total = -math.fsum(score.log_likelihood for score in scores)
    per_byte = total / sum(score.num_bytes for score in scores)
    return PagePerplexity(
        word=_exp(total / sum(score.num_words for score in scores)),
        byte=_exp(per_byte),
        bits_per_byte=per_byte / math.log(2),
    )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
