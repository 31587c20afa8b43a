"""Check the per-sample values of an open-unlearning log against each other and against the stored texts.

An aggregate can agree with its samples although the samples themselves are wrong. Probabilities follow from
losses, truth ratios and option probabilities from both, ROUGE from ground truth and generation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from falcon_unlearn.metrics.open_unlearning import (
    derived_normalised_probabilities,
    derived_truth_ratios,
    rouge_field,
)
from falcon_unlearn.metrics.open_unlearning_log import Column, EvaluationLog
from falcon_unlearn.metrics.rouge import RougeScores, rouge_scores


@dataclass(frozen=True)
class SampleDisagreement:
    """Hold one per-sample value that does not follow from the rest of its log."""

    metric: str
    index: int
    stored: float
    recomputed: float


def recomputed_rouge(log: EvaluationLog, name: str) -> dict[int, RougeScores]:
    """Score the stored generations of a metric against the stored true texts, with the stemmer on.

    Raises:
        DataError: a text is missing or too long.
    """
    truths, generations = log.texts(name, "ground_truth"), log.texts(name, "generation")
    return {index: rouge_scores(truth, generations[index]) for index, truth in truths.items()}


def sample_disagreements(
    log: EvaluationLog, *, tolerance: float = 1e-6, include_rouge: bool = True
) -> list[SampleDisagreement]:
    """List the per-sample values that differ by more than `tolerance * max(1, |recomputed|)`.

    Args:
        log: from `read_log`.
        tolerance: the default allows for single precision.
        include_rouge: also score the texts again, about a millisecond each.

    Raises:
        DataError: a sample is malformed.
    """
    found = []
    for name in log.names:
        if not log.has_samples(name):
            continue
        folded = name.casefold()
        if log.has_field(name, "prob") and log.has_field(name, "avg_loss"):
            losses = log.column(name, "avg_loss")
            probabilities = Column(losses.indices, np.exp(-losses.values_NK))
            found += _differing(name, log.column(name, "prob"), probabilities, tolerance)
        if folded.endswith("_truth_ratio"):
            ratios = derived_truth_ratios(log, name[: -len("_truth_ratio")])
            found += _differing(name, log.column(name, "score"), ratios, tolerance)
        if folded.endswith("_q_a_prob_normalised"):
            shares = derived_normalised_probabilities(log, name[: -len("_q_a_prob_normalised")])
            found += _differing(name, log.column(name, "prob"), shares, tolerance)
        if include_rouge and rouge_field(name) is not None and log.has_field(name, "generation"):
            found += _differing_rouge(log, name, tolerance)
    return found


def _differing(
    name: str, stored: Column, recomputed: Column | None, tolerance: float
) -> list[SampleDisagreement]:
    if recomputed is None:
        return []
    expected = dict(zip(recomputed.indices.tolist(), recomputed.values_NK.tolist(), strict=True))
    differing = []
    for index, row in zip(stored.indices.tolist(), stored.values_NK.tolist(), strict=True):
        pairs = zip(row, expected.get(index, row), strict=False)
        for found, value in pairs:
            if abs(found - value) > tolerance * max(1.0, abs(value)):
                differing.append(SampleDisagreement(name, index, found, value))
                break
    return differing


def _differing_rouge(log: EvaluationLog, name: str, tolerance: float) -> list[SampleDisagreement]:
    again = recomputed_rouge(log, name)
    indices = np.asarray(list(again), dtype=np.int64)
    differing = []
    for field, attribute in (
        ("rouge1_recall", "rouge_1_recall"),
        ("rougeL_recall", "rouge_l_recall"),
        ("rougeL_f1", "rouge_l_f1"),
    ):
        if log.has_field(name, field):
            values = [[getattr(scores, attribute)] for scores in again.values()]
            column = Column(indices, np.asarray(values, dtype=np.float64))
            differing += _differing(f"{name}/{field}", log.column(name, field), column, tolerance)
    return differing
