"""Build the per-question log in open-unlearning's format, so that its tools and ours read it alike.

`{metric: {"agg_value": number, "value_by_index": {"0": {...}}}}`. open-unlearning leaves out the last scored
token (the end token) for exact memorisation, extraction strength and Min-K, and adds 1e-10 to denominators;
the log does the same, so that its numbers can stand beside published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.bench.tofu.data import TofuRow
from falcon_unlearn.bench.tofu.statistics import AnswerLosses
from falcon_unlearn.metrics.auc import membership_auc
from falcon_unlearn.metrics.membership import (
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    zlib_score,
)
from falcon_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from falcon_unlearn.metrics.model_utility import normalised_probability
from falcon_unlearn.metrics.open_unlearning import EPSILON
from falcon_unlearn.metrics.open_unlearning_log import EvaluationLog
from falcon_unlearn.metrics.rouge import rouge_scores
from falcon_unlearn.metrics.truth_ratio import retain_truth_ratio, truth_ratio
from falcon_unlearn.models.token_statistics import TokenStatistics
from falcon_unlearn.runs import write_json_atomic

Entries = dict[str, Any]
Short = Literal["forget", "retain", "ra", "wf"]
"""Names of the question sets in a log; ra: real authors, wf: world facts."""

ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")


def write_log(path: Path, log: EvaluationLog) -> None:
    """Write a log as JSON, atomically.

    Raises:
        NumericalError: it holds a number that is not finite.
        PrerequisiteError: the disk refuses.
    """
    write_json_atomic(path, log.entries)


def probability_entries(short: Short, losses: Sequence[AnswerLosses]) -> Entries:
    """Return probabilities of all answers, options probability where it is used, and truth ratios."""
    answers = np.array([item.answer for item in losses])
    wrong = np.array([item.perturbed for item in losses])
    entries: Entries = {
        f"{short}_Q_A_Prob": _probabilities(answers),
        f"{short}_Q_A_PERT_Prob": _probabilities(wrong),
    }
    right = answers
    paraphrased = [item.paraphrased for item in losses if item.paraphrased is not None]
    if paraphrased:
        right = np.array(paraphrased)
        entries[f"{short}_Q_A_PARA_Prob"] = _probabilities(right)
    else:
        shares = normalised_probability(np.exp(-answers), np.exp(-wrong), epsilon=EPSILON)
        entries[f"{short}_Q_A_Prob_normalised"] = _entry("prob", shares.tolist())
    ratios = truth_ratio(right, wrong, epsilon=EPSILON)
    if short == "forget":
        # As min(R, 1/R), with the constant of open-unlearning.
        aggregate = float(np.minimum(ratios, 1.0 / (ratios + EPSILON)).mean())
    else:
        aggregate = retain_truth_ratio(ratios)
    name = "forget_truth_ratio" if short == "forget" else f"{short}_Truth_Ratio"
    entries[name] = _entry("score", ratios.tolist(), aggregate)
    return entries


def memorisation_entries(answers: Sequence[TokenStatistics]) -> Entries:
    """Return exact memorisation and extraction strength of the forget answers."""
    matches = [answer.argmax_matches for answer in answers]
    exact = [exact_memorisation(found, drop_last=True) for found in matches]
    strength = [extraction_strength(found, drop_last=True, floor_of_one_token=True) for found in matches]
    return {
        "exact_memorization": _entry("score", exact),
        "extraction_strength": _entry("score", strength),
    }


def rouge_entry(rows: Sequence[TofuRow], prompts: Sequence[str], generations: Sequence[str]) -> Entries:
    """Return ROUGE of greedy answers, with the texts."""
    samples: list[dict[str, Any]] = []
    for row, prompt, generation in zip(rows, prompts, generations, strict=True):
        scores = rouge_scores(row.answer, generation)
        samples.append(
            {
                "rouge1_recall": scores.rouge_1_recall,
                "rougeL_f1": scores.rouge_l_f1,
                "rougeL_recall": scores.rouge_l_recall,
                "input": prompt,
                "ground_truth": row.answer,
                "generation": generation,
            }
        )
    return _indexed(samples, float(np.mean([sample["rougeL_recall"] for sample in samples])))


def attack_entries(
    forget: tuple[Sequence[TokenStatistics], Sequence[TofuRow]],
    holdout: tuple[Sequence[TokenStatistics], Sequence[TofuRow]],
) -> Entries:
    """Return the membership scores of both sides and their AUC, for each of `ATTACKS`."""
    sides = [
        [_attack_scores(answer, row.answer) for answer, row in zip(*side, strict=True)]
        for side in (forget, holdout)
    ]
    return {
        name: attack_entry([scores[name] for scores in sides[0]], [scores[name] for scores in sides[1]])
        for name in ATTACKS
    }


def attack_entry(forget_scores: Sequence[float], holdout_scores: Sequence[float]) -> Entries:
    """Return the scores of one attack on both sides and their AUC."""
    auc = membership_auc(forget_scores, holdout_scores)
    return {
        "forget": _entry("score", forget_scores),
        "holdout": _entry("score", holdout_scores),
        "auc": auc,
        "agg_value": auc,
    }


def _attack_scores(answer: TokenStatistics, text: str) -> dict[str, float]:
    values = answer.token_log_probabilities
    loss = loss_score(values)
    return {
        "mia_loss": loss,
        "mia_zlib": zlib_score(loss, text),
        "mia_min_k": min_k_score(values, drop_last=True),
        "mia_min_k_plus_plus": min_k_plus_plus_score(values, answer.means, answer.variances, drop_last=True),
    }


def _probabilities(losses: NDArray[np.float64]) -> Entries:
    values = np.exp(-losses)
    samples = [
        {"prob": value, "avg_loss": loss}
        for value, loss in zip(values.tolist(), losses.tolist(), strict=True)
    ]
    return _indexed(samples, float(values.mean()))


def _entry(field: str, values: Sequence[float], aggregate: float | None = None) -> Entries:
    mean = float(np.mean(values)) if aggregate is None else aggregate
    return _indexed([{field: value} for value in values], mean)


def _indexed(samples: Sequence[dict[str, Any]], aggregate: float) -> Entries:
    return {
        "agg_value": aggregate,
        "value_by_index": {str(index): sample for index, sample in enumerate(samples)},
    }
