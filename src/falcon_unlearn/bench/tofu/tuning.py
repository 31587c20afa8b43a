"""Tune a method on authors that no reported number comes from.

The target also knows the last retain authors. Forgetting some of those, and comparing with authors that no
model was trained on, shows how a setting does without touching the reported forget set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from falcon_unlearn.bench.tofu.data import TofuData, TofuRow, author_rows
from falcon_unlearn.bench.tofu.encoding import MAXIMUM_TOKENS, encode_rows
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.bench.tuning import Knowledge
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.models.scoring import completion_log_probabilities
from falcon_unlearn.models.text import TextEncoder

MAXIMUM_AUTHORS = 5
"""Authors in each part of the tuning data, at most: enough to rank settings, few enough to be cheap."""


@dataclass(frozen=True)
class TuningAuthors:
    """Hold the rows that tuning forgets, keeps, checks, and compares with."""

    forget: tuple[TofuRow, ...]
    retain: tuple[TofuRow, ...]
    checked: tuple[TofuRow, ...]
    """Retained rows that are looked at; no table reports them either."""
    unseen: tuple[TofuRow, ...]

    @classmethod
    def of(cls, data: TofuData, setting: TofuSetting) -> TuningAuthors:
        """Take the last retain authors to forget, as many as the table forgets up to five, and the last
        holdout authors as unseen ones.

        Raises:
            UsageError: The setting has too few authors.
        """
        kept, unseen = setting.retain_authors, setting.holdout_authors
        num_forget = min(MAXIMUM_AUTHORS, len(setting.forget_authors))
        # The checked authors are some of the retained ones; at least one more is kept beside them.
        if len(kept) < num_forget + 2 or not unseen:
            raise UsageError(f"setting {setting.tier}: no unseen authors to tune on; use T-S, T-M or T-L")
        left = kept[:-num_forget]
        num_checked = min(MAXIMUM_AUTHORS, len(left) - 1)
        return cls(
            author_rows(data.full, kept[-num_forget:]),
            author_rows(data.full, left),
            author_rows(data.full, left[-num_checked:]),
            author_rows(data.full, unseen[-MAXIMUM_AUTHORS:]),
        )


def answer_probabilities(loaded: LoadedModel, authors: TuningAuthors) -> Knowledge:
    """Measure a model on the tuning data; nothing else of it is evaluated."""
    encoder = TextEncoder(loaded.tokenizer, chat_template=False, maximum_tokens=MAXIMUM_TOKENS)
    with evaluation_mode(loaded.model):
        parts = [
            _mean_probability(loaded, encoder, rows)
            for rows in (authors.forget, authors.checked, authors.unseen)
        ]
    return Knowledge(*parts)


def _mean_probability(loaded: LoadedModel, encoder: TextEncoder, rows: Sequence[TofuRow]) -> float:
    pairs = [(question.prompt, question.answer) for question in encode_rows(encoder, rows, "tuning")]
    scores = completion_log_probabilities(loaded.model, pairs, pad_id=0, batch_tokens=2048)
    return sum(exp(score.mean_log_probability) for score in scores) / len(scores)
