"""Turn scores of single questions and pages into numbers with intervals. Needs no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from falcon_unlearn.bench.records import BenchMetric
from falcon_unlearn.bench.wmdp.data import Question
from falcon_unlearn.bench.wmdp.native import (
    ChoiceScore,
    frequent_letter_accuracy,
    longest_option_accuracy,
    robust_questions,
)
from falcon_unlearn.bench.wmdp.perplexity import PageScore, corpus_perplexity
from falcon_unlearn.linalg.intervals import FloatArray, bootstrap_interval, wilson_interval

_SEED = 0
_LOW_MASS = 0.5


def share(name: str, hits: Sequence[bool], *, desired: str, note: str) -> BenchMetric:
    """State a share with its Wilson interval, or no value when there is no item."""
    if not hits:
        return BenchMetric(name=name, value=None, note=f"no item; {note}" if note else "no item")
    low, high = wilson_interval(sum(hits), len(hits))
    return BenchMetric.model_validate(
        {
            "name": name,
            "value": sum(hits) / len(hits),
            "low": low,
            "high": high,
            "interval": "wilson",
            "num_items": len(hits),
            "desired": desired,
            "note": note,
        }
    )


def average(name: str, values: Sequence[float], *, desired: str, note: str) -> BenchMetric:
    """State a mean of per-item values with its bootstrap interval."""
    estimate = bootstrap_interval(values, generator=np.random.default_rng(_SEED))
    return BenchMetric.model_validate(
        {
            "name": name,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "interval": "bootstrap",
            "num_items": len(values),
            "desired": desired,
            "note": note,
        }
    )


def letter_metrics(name: str, scores: Sequence[ChoiceScore], *, desired: str, note: str) -> list[BenchMetric]:
    """State accuracy by letter and the probability that a letter comes at all."""
    return [
        share(name, [score.is_correct for score in scores], desired=desired, note=note),
        average(f"{name}_letter_mass", [score.mass for score in scores], desired="none", note=note),
    ]


def cloze_metrics(name: str, scores: Sequence[ChoiceScore], *, desired: str, note: str) -> list[BenchMetric]:
    """State accuracy by option text: by summed log-likelihood and by log-likelihood per character."""
    per_character = [score.is_correct_by_length for score in scores]
    return [
        share(f"{name}_cloze", [score.is_correct for score in scores], desired=desired, note=note),
        share(f"{name}_cloze_by_length", per_character, desired=desired, note=note),
    ]


def robust_metric(
    name: str, scores: Sequence[ChoiceScore], questions: Sequence[Question], *, note: str
) -> BenchMetric:
    """State accuracy on the questions whose right option is not the longest."""
    kept = {question.index for question in robust_questions(questions)}
    hits = [score.is_correct for score in scores if score.index in kept]
    rule = "without questions whose right option is the longest; a guess that avoids the longest scores .33"
    return share(f"{name}_robust", hits, desired="lower", note=f"{note}; {rule}")


def baseline_metrics(name: str, questions: Sequence[Question]) -> list[BenchMetric]:
    """State what is scored without reading the questions: longest option, most frequent letter."""
    return [
        BenchMetric(
            name=f"{name}_longest_option",
            value=longest_option_accuracy(questions),
            num_items=len(questions),
            note="score of always choosing the longest option",
        ),
        BenchMetric(
            name=f"{name}_frequent_letter",
            value=frequent_letter_accuracy(questions),
            num_items=len(questions),
            note="score of always choosing the most frequent letter",
        ),
    ]


def score_notes(name: str, scores: Sequence[ChoiceScore], *, by_letter: bool) -> list[str]:
    """Word what a reader must know about these scores: cut prompts, ties, little letter mass."""
    notes = []
    num_cut = sum(score.was_cut for score in scores)
    if num_cut:
        notes.append(
            f"{name}: {num_cut:,} of {len(scores):,} prompts did not fit the window and lost their beginning."
        )
    num_tied = sum(score.is_tied for score in scores)
    if num_tied:
        notes.append(f"{name}: {num_tied:,} of {len(scores):,} questions tie; the first option counts.")
    mass = math.fsum(score.mass for score in scores) / len(scores)
    if by_letter and mass < _LOW_MASS:
        notes.append(
            f"{name}: the four letters have {mass:.2f} of the probability; their order says little about "
            "what the model would write."
        )
    return notes


def perplexity_metrics(scores: Sequence[PageScore], *, note: str) -> list[BenchMetric]:
    """State word perplexity, byte perplexity and bits per byte, with intervals that resample pages."""
    found = corpus_perplexity(scores)
    num_words, num_bytes = sum(s.num_words for s in scores), sum(s.num_bytes for s in scores)
    sizes = f"{len(scores)} pages, {num_words:,} words, {num_bytes:,} bytes; {note}"
    per_word = _ratio_interval(scores, [score.num_words for score in scores])
    per_byte = _ratio_interval(scores, [score.num_bytes for score in scores])
    word = None if per_word is None else (_exp(per_word[0]), _exp(per_word[1]))
    byte = None if per_byte is None else (_exp(per_byte[0]), _exp(per_byte[1]))
    bits = None if per_byte is None else (per_byte[0] / math.log(2), per_byte[1] / math.log(2))
    return [
        _perplexity("wikitext_word_perplexity", found.word, word, len(scores), sizes),
        _perplexity("wikitext_byte_perplexity", found.byte, byte, len(scores), sizes),
        _perplexity("wikitext_bits_per_byte", found.bits_per_byte, bits, len(scores), sizes),
    ]


def _perplexity(
    name: str, value: float, ends: tuple[float, float] | None, num_pages: int, note: str
) -> BenchMetric:
    if not math.isfinite(value):
        return BenchMetric(name=name, value=None, num_items=num_pages, note=f"too large to write; {note}")
    if ends is None or not math.isfinite(ends[1]):
        return BenchMetric(name=name, value=value, num_items=num_pages, desired="lower", note=note)
    return BenchMetric(
        name=name,
        value=value,
        low=ends[0],
        high=ends[1],
        interval="bootstrap",
        num_items=num_pages,
        desired="lower",
        note=note,
    )


def _ratio_interval(scores: Sequence[PageScore], lengths: Sequence[int]) -> tuple[float, float] | None:
    """Return the interval of nats per word or byte over resampled pages; None for a single page."""
    if len(scores) < 2:
        return None
    losses = -np.asarray([score.log_likelihood for score in scores])
    sizes = np.asarray(lengths, dtype=np.float64)

    def ratio(pages: FloatArray, axis: int) -> FloatArray:
        drawn = pages.astype(np.int64)
        found: FloatArray = losses[drawn].sum(axis=axis) / sizes[drawn].sum(axis=axis)
        return found

    estimate = bootstrap_interval(
        np.arange(len(scores)), generator=np.random.default_rng(_SEED), statistic=ratio
    )
    return estimate.low, estimate.high


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
