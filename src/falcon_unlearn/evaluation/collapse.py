"""See in two evaluations whether a model broke where it should have stayed.

Signs are repetition, lost letter mass and perplexity. Only sets that are to be kept count: on forget sets
such a change may be the purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from falcon_unlearn.results import EvaluationResult, GenerationSample, SetResult

MINIMUM_WORDS = 4
"""Shorter answers cannot be told from terse ones."""
LEAST_DISTINCT = 0.5
"""Share of different word pairs below which an answer repeats itself; ordinary prose has above 0.9."""
LARGEST_SHARE = 0.5
"""Share of repetitive or empty answers in a set that counts as collapse."""
LEAST_LETTER_MASS = 0.1
"""Letter mass after, relative to before, below which the format of questions is lost."""
LARGEST_PERPLEXITY = 10.0
"""Perplexity after, relative to before, above which a text is no longer modelled."""


def distinct_2(text: str) -> float:
    """Return the share of different pairs of neighbouring words (Li et al. 2016, arXiv 1510.03055)."""
    words = re.findall(r"\w+|[^\w\s]", text)
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def repetitive_share(samples: Sequence[GenerationSample]) -> float:
    """Return the share of answers that are empty or repeat themselves."""
    if not samples:
        return 0.0
    return sum(_is_degenerate(sample.completion) for sample in samples) / len(samples)


def _is_degenerate(text: str) -> bool:
    words = re.findall(r"\w+|[^\w\s]", text)
    return not words or (len(words) >= MINIMUM_WORDS and distinct_2(text) < LEAST_DISTINCT)


def find_collapse(before: EvaluationResult, after: EvaluationResult) -> list[str]:
    """Describe every kept set on which the model broke; empty when none did."""
    earlier = {entry.name: entry for entry in before.sets}
    pairs = [(earlier[e.name], e) for e in after.sets if e.role != "forget" and e.name in earlier]
    return [line for old, new in pairs for line in _lines(old, new)]


def _lines(before: SetResult, after: SetResult) -> Iterable[str]:
    was, now = repetitive_share(before.samples), repetitive_share(after.samples)
    if now >= LARGEST_SHARE and was < LARGEST_SHARE / 2:
        yield f"{after.name}: {now:.0%} of the free answers are empty or repeat themselves, {was:.0%} before"
    for metric in after.metrics:
        old = next((m.value for m in before.metrics if m.name == metric.name), None)
        if old is None or old <= 0:
            continue
        if metric.name == "letter_mass" and metric.value < LEAST_LETTER_MASS * old:
            yield f"{after.name}: option letters have {metric.value:.1%} of the probability, {old:.1%} before"
        if metric.name == "perplexity" and metric.value > LARGEST_PERPLEXITY * old:
            yield f"{after.name}: perplexity {metric.value:.3g}, {old:.3g} before"
