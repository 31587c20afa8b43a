"""Texts to tune on that no reported number comes from.

The target also knows retain1, which is kept while the reported texts are forgotten and is never scored. Half
of it is forgotten while tuning, the other half is kept and checked; holdout articles outside the membership
sample show how likely unseen text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.bench.muse.criteria import text_probabilities
from falcon_unlearn.bench.muse.data import MuseData
from falcon_unlearn.bench.muse.privacy import membership_texts
from falcon_unlearn.bench.muse.small import training_chunks
from falcon_unlearn.bench.tuning import Knowledge
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject

MAXIMUM_UNSEEN = 15
"""Unseen articles, at most."""


@dataclass(frozen=True)
class TuningTexts:
    """Hold the articles that tuning forgets, keeps and checks, and compares with."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    unseen: tuple[str, ...]

    @classmethod
    def of(cls, subject: Subject, data: MuseData, *, seed: int = 0) -> TuningTexts:
        """Split retain1 in halves, and take the last holdout articles that PrivLeak leaves alone.

        Raises:
            DataError: Too few articles.
        """
        known, holdout = data.require("raw/retain1"), data.require("raw/holdout")
        reported = set(membership_texts(subject, data, seed=seed).holdout_owners)
        free = [text for at, text in enumerate(holdout) if at not in reported]
        if len(known) < 2 or not free:
            raise DataError(
                f"tuning needs two retain1 articles and an unreported holdout article, got {len(known)} "
                f"and {len(free)}",
                hint="give more articles that are not in the forget set",
            )
        half = len(known) // 2
        return cls(known[half:], known[:half], tuple(free[-MAXIMUM_UNSEEN:]))


def text_knowledge(subject: Subject, texts: TuningTexts) -> Knowledge:
    """Measure mean token probabilities on the three parts; nothing else of the model is evaluated."""
    return Knowledge(*(_mean(subject, part) for part in (texts.forget, texts.retain, texts.unseen)))


def _mean(subject: Subject, articles: Sequence[str]) -> float:
    values = text_probabilities(subject, [chunk.input_ids for chunk in training_chunks(subject, articles)])
    return sum(values) / len(values)
