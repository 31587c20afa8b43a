"""Recompute every aggregate of an open-unlearning log from its per-sample values.

The aggregates are defined in Maini et al. 2024 (TOFU), Shi et al. 2024 (MUSE) and the open-unlearning code,
whose small constants in denominators are repeated, so that recomputed and published numbers can be compared
to the last digits. Shapes: N samples, K wrong answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.errors import DataError
from falcon_unlearn.metrics.auc import membership_auc
from falcon_unlearn.metrics.forget_quality import forget_quality
from falcon_unlearn.metrics.membership import privleak
from falcon_unlearn.metrics.model_utility import PARTS, harmonic_mean, normalised_probability
from falcon_unlearn.metrics.open_unlearning_log import Column, EvaluationLog, read_log
from falcon_unlearn.metrics.truth_ratio import retain_truth_ratio, truth_preference, truth_ratio

FloatArray = NDArray[np.float64]

EPSILON = 1e-10
"""What open-unlearning adds to denominators."""

_SETS = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}


@dataclass(frozen=True)
class Aggregate:
    """Hold one aggregate, recomputed and as published."""

    value: float | None
    """Recomputed; None if the log does not hold what it takes."""
    published: float | None
    """Written in the log; None if it is absent or null."""
    num_samples: int
    """Per-sample values behind `value`; 0 without one."""
    note: str = ""
    """Why there is no value, or what to know about the published one."""


@dataclass(frozen=True)
class Disagreement:
    """Hold an aggregate whose recomputed and published values differ."""

    metric: str
    value: float
    published: float

    @property
    def difference(self) -> float:
        """Return recomputed minus published."""
        return self.value - self.published


def aggregate_log(path: Path, retain_log: Path | None = None) -> dict[str, Aggregate]:
    """Recompute the aggregates of a TOFU or MUSE log.

    Args:
        path: a `*_EVAL.json` with per-sample values.
        retain_log: log of the model retrained without the forget set, on the same questions and with the same
            architecture. Forget quality needs its `*_EVAL.json`; for PrivLeak its `*_SUMMARY.json` is enough.

    Returns:
        metric -> aggregate, in the order of the log; forget quality, model utility and PrivLeak are added
        where they can be computed and the log does not name them.

    Raises:
        DataError: a log is malformed (file and metric are named), or the two logs hold different questions.
    """
    log = read_log(path)
    reference = read_log(retain_log) if retain_log is not None else None
    found = {name: _aggregate(log, name, reference) for name in log.names}
    for name in ("forget_quality", "model_utility", "privleak"):
        if log.find(name) is None:
            derived = _aggregate(log, name, reference)
            if derived.value is not None:
                found[name] = derived
    return found


def disagreements(
    aggregates: dict[str, Aggregate], *, relative: float = 1e-7, absolute: float = 1e-12
) -> list[Disagreement]:
    """List the aggregates whose two values differ by more than `absolute + relative * |published|`.

    The defaults are the precision of the single-precision numbers in the logs. `absolute` is without effect
    on p-values below it, so forget quality is compared by `relative` alone.
    """
    differing = []
    for name, found in aggregates.items():
        if found.value is None or found.published is None:
            continue
        allowed = relative * abs(found.published)
        if name.casefold() != "forget_quality":
            allowed += absolute
        if not abs(found.value - found.published) <= allowed:
            differing.append(Disagreement(name, found.value, found.published))
    return differing


def truth_ratios(log: EvaluationLog, questions: str) -> Column | None:
    """Return the truth ratios of `forget`, `retain`, `ra` or `wf`; None if the log lacks them.

    Stored ratios come first; without them they are computed from the losses of right and wrong answers.
    """
    stored = log.find(f"{questions}_truth_ratio")
    if stored is not None and log.has_samples(stored):
        return log.column(stored, "score")
    return derived_truth_ratios(log, questions)


def derived_truth_ratios(log: EvaluationLog, questions: str) -> Column | None:
    """Return the truth ratios computed from losses, or None if the log lacks the losses."""
    pair = _right_and_wrong(log, questions, "avg_loss")
    if pair is None:
        return None
    indices, right_NK, wrong_NK = pair
    ratios_N = truth_ratio(right_NK.mean(axis=1), wrong_NK, epsilon=EPSILON)
    return Column(indices, ratios_N[:, None])


def normalised_probabilities(log: EvaluationLog, questions: str) -> Column | None:
    """Return P(right) among the options of `ra` or `wf`, stored or computed; None if the log lacks them."""
    stored = log.find(f"{questions}_Q_A_Prob_normalised")
    if stored is not None and log.has_samples(stored):
        return log.column(stored, "prob")
    return derived_normalised_probabilities(log, questions)


def derived_normalised_probabilities(log: EvaluationLog, questions: str) -> Column | None:
    """Return P(right) among the options, computed from the single probabilities; None if they are missing."""
    pair = _right_and_wrong(log, questions, "prob")
    if pair is None:
        return None
    indices, right_NK, wrong_NK = pair
    values_N = normalised_probability(right_NK.mean(axis=1), wrong_NK, epsilon=EPSILON)
    return Column(indices, values_N[:, None])


def model_utility_samples(log: EvaluationLog) -> dict[str, FloatArray]:
    """Return the per-question values of those of the nine parts of model utility that the log holds.

    The names are those of `model_utility.PARTS`, so a complete result can be given to `model_utility`.
    """
    found: dict[str, FloatArray] = {}
    for questions, short in _SETS.items():
        if questions == "retain":
            name = log.find("retain_Q_A_Prob")
            probability = log.column(name, "prob") if name is not None and log.has_samples(name) else None
        else:
            probability = normalised_probabilities(log, short)
        rouge_name = log.find(f"{short}_Q_A_ROUGE")
        ratios = truth_ratios(log, short)
        if probability is not None:
            found[f"{questions}/probability"] = probability.values
        if rouge_name is not None and log.has_samples(rouge_name):
            found[f"{questions}/rouge_l_recall"] = log.column(rouge_name, "rougeL_recall").values
        if ratios is not None:
            found[f"{questions}/truth_ratio"] = truth_preference(ratios.values)
    return found


def rouge_field(name: str) -> str | None:
    """Return the ROUGE number that a metric averages: recall on TOFU, F1 on MUSE; None if unknown."""
    folded = name.casefold()
    if not folded.endswith("_rouge"):
        return None
    if "_q_a_" in folded:
        return "rougeL_recall"
    return "rougeL_f1" if folded.endswith(("verbmem_rouge", "knowmem_rouge")) else None


def _aggregate(log: EvaluationLog, name: str, reference: EvaluationLog | None) -> Aggregate:
    published = log.published(name) if name in log.entries else None
    folded = name.casefold()
    if folded == "forget_quality":
        return _forget_quality(log, reference, published)
    if folded == "model_utility":
        return _model_utility(log, published)
    if folded == "privleak":
        return _privleak(log, reference, published)
    if folded.startswith("mia_"):
        return _attack(log, name, published)
    if folded.endswith("truth_ratio"):
        return _truth_ratio(log, name, published)
    return _plain_mean(log, name, published)


def _plain_mean(log: EvaluationLog, name: str, published: float | None) -> Aggregate:
    folded = name.casefold()
    field = rouge_field(name)
    if field is None and folded.endswith(("_prob", "_prob_normalised")):
        field = "prob"
    if field is None and folded.endswith(("exact_memorization", "extraction_strength", "_gibberish")):
        field = "score"
    if field is None:
        return Aggregate(None, published, 0, "This metric is not known.")
    if not log.has_samples(name):
        return Aggregate(None, published, 0, "The log has no samples of this metric.")
    column = log.column(name, field)
    return Aggregate(float(column.values.mean()), published, len(column))


def _truth_ratio(log: EvaluationLog, name: str, published: float | None) -> Aggregate:
    questions = name[: -len("_truth_ratio")]
    ratios = truth_ratios(log, questions)
    if ratios is None:
        return Aggregate(None, published, 0, "The log has no samples of this metric.")
    values = ratios.values
    if (values < 0).any():
        raise log.error(name, "a truth ratio is negative")
    if questions.casefold() == "forget":
        # As min(R, 1/R), with the constant of open-unlearning.
        value = float(np.minimum(values, 1.0 / (values + EPSILON)).mean())
    else:
        value = retain_truth_ratio(values)
    return Aggregate(value, published, len(ratios))


def _attack(log: EvaluationLog, name: str, published: float | None) -> Aggregate:
    if not (log.has_samples(name, "forget") and log.has_samples(name, "holdout")):
        return Aggregate(None, published, 0, "The log has no samples of this attack.")
    forget, holdout = (log.column(name, "score", side) for side in ("forget", "holdout"))
    return Aggregate(membership_auc(forget.values, holdout.values), published, len(forget) + len(holdout))


def _model_utility(log: EvaluationLog, published: float | None) -> Aggregate:
    samples = model_utility_samples(log)
    missing = [part for part in PARTS if part not in samples]
    if missing:
        return Aggregate(None, published, 0, f"The log lacks {', '.join(missing)}.")
    value = harmonic_mean([samples[part].mean() for part in PARTS])
    return Aggregate(value, published, sum(len(samples[f"{questions}/truth_ratio"]) for questions in _SETS))


def _forget_quality(
    log: EvaluationLog, reference: EvaluationLog | None, published: float | None
) -> Aggregate:
    ratios = truth_ratios(log, "forget")
    if ratios is None:
        return Aggregate(None, published, 0, "The log has no truth ratios of the forget set.")
    if reference is None:
        return Aggregate(None, published, 0, "Needs the per-sample log of the retrained model.")
    expected = truth_ratios(reference, "forget")
    if expected is None:
        return Aggregate(None, published, 0, "The log of the retrained model has no truth ratios.")
    _check_same_questions(log, reference, ratios, expected, "forget_truth_ratio")
    # The reciprocal of open-unlearning: the test only sees ranks, but the constant ties vanishing ratios.
    result = forget_quality(1.0 / (ratios.values + EPSILON), 1.0 / (expected.values + EPSILON))
    return Aggregate(result.p_value, published, len(ratios))


def _privleak(log: EvaluationLog, reference: EvaluationLog | None, published: float | None) -> Aggregate:
    name = log.find("mia_min_k")
    own = _attack(log, name, log.published(name)) if name is not None else None
    if name is None or own is None or own.value is None:
        return Aggregate(None, published, 0, "The log has no samples of mia_min_k.")
    if reference is None:
        note = "Needs the log of the retrained model."
        default = privleak(own.value, 0.5)
        if published is not None and abs(published - default) <= 1e-6:
            note += " The published value is measured against an AUC of .5: a default, not a result."
        return Aggregate(None, published, 0, note)
    reference_name = reference.find("mia_min_k")
    if reference_name is None:
        return Aggregate(None, published, 0, "The log of the retrained model has no mia_min_k.")
    expected = _attack(reference, reference_name, reference.published(reference_name))
    if expected.num_samples:
        for side in ("forget", "holdout"):
            pair = (log.column(name, "score", side), reference.column(reference_name, "score", side))
            _check_same_questions(log, reference, *pair, f"mia_min_k/{side}")
    auc_reference = expected.value if expected.value is not None else expected.published
    if auc_reference is None or not 0.0 <= auc_reference < 1.0:
        raise reference.error(reference_name, f"PrivLeak needs an AUC from 0 to below 1, got {auc_reference}")
    return Aggregate(privleak(own.value, auc_reference), published, own.num_samples)


def _check_same_questions(
    log: EvaluationLog, reference: EvaluationLog, own: Column, expected: Column, what: str
) -> None:
    if not np.array_equal(own.indices, expected.indices):
        raise DataError(
            f"{log.path} and {reference.path} hold different samples of {what}: "
            f"{len(own)} and {len(expected)} of them.",
            hint="Give the log of the model that was retrained without this forget set, on the same split.",
        )


def _right_and_wrong(
    log: EvaluationLog, questions: str, field: str
) -> tuple[NDArray[np.int64], FloatArray, FloatArray] | None:
    """Return the common indices and the numbers of right (N, K') and wrong (N, K) answers."""
    # Truth ratios compare with the paraphrased answer where there is one.
    right_names = [f"{questions}_Q_A_Prob"]
    if field == "avg_loss" and questions.casefold() in ("forget", "retain"):
        right_names = [f"{questions}_Q_A_PARA_Prob"]
    right_name, wrong_name = log.find(*right_names), log.find(f"{questions}_Q_A_PERT_Prob")
    if right_name is None or wrong_name is None:
        return None
    if not (log.has_samples(right_name) and log.has_samples(wrong_name)):
        return None
    right, wrong = log.column(right_name, field), log.column(wrong_name, field)
    indices, right_rows, wrong_rows = np.intersect1d(
        right.indices, wrong.indices, assume_unique=True, return_indices=True
    )
    if indices.size == 0:
        raise log.error(wrong_name, f"no sample has the index of one in {right_name}")
    return indices, right.values_NK[right_rows], wrong.values_NK[wrong_rows]
