"""From the per-question log of one model to the numbers of a table, each with its interval.

Everything is computed from the log, so that a stored log gives the same table again. A number that cannot be
computed appears with the value None and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.bench.records import BenchMetric
from falcon_unlearn.bench.tofu.generating import distinct_share, repeated_share
from falcon_unlearn.errors import DataError
from falcon_unlearn.linalg.intervals import Interval, bootstrap_interval
from falcon_unlearn.metrics.auc import auc_interval, membership_auc, privleak_estimate
from falcon_unlearn.metrics.forget_quality import forget_quality, smallest_p_value
from falcon_unlearn.metrics.membership import privleak
from falcon_unlearn.metrics.model_utility import PARTS, model_utility
from falcon_unlearn.metrics.open_unlearning import EPSILON, model_utility_samples, truth_ratios
from falcon_unlearn.metrics.open_unlearning_log import EvaluationLog

FloatArray = NDArray[np.float64]
Desired = Literal["lower", "higher", "retain model", "none"]

NO_RETAIN_LOG = "needs the log of the retain model"
NO_GENERATIONS = "needs generations, which were switched off"
NO_HOLDOUT = "needs holdout questions, which the data lack"
_RESAMPLES = 2000
_AUC_NOTE = "Interval by inversion of the Hanley-McNeil error."


@dataclass(frozen=True)
class _Mean:
    metric: str
    entry: str
    field: str
    note: str = ""


_FORGET_MEANS = (
    _Mean("forget_probability", "forget_Q_A_Prob", "prob"),
    _Mean("forget_paraphrased_probability", "forget_Q_A_PARA_Prob", "prob"),
    _Mean("forget_rouge_l", "forget_Q_A_ROUGE", "rougeL_recall"),
    _Mean("exact_memorisation", "exact_memorization", "score"),
    _Mean(
        "extraction_strength",
        "extraction_strength",
        "score",
        "As open-unlearning: an answer of n tokens scores at least 1/n.",
    ),
)
_ATTACKS = {
    "mia_loss_auc": "mia_loss",
    "mia_zlib_auc": "mia_zlib",
    "mia_min_k_auc": "mia_min_k",
    "mia_min_k_plus_plus_auc": "mia_min_k_plus_plus",
    "mia_gradnorm_auc": "mia_gradnorm",
    "mia_reference_auc": "mia_reference",
}
_FLUENCY: dict[str, tuple[Callable[[str], float], Desired]] = {
    "forget_distinct_2": (lambda text: distinct_share(text, 2), "retain model"),
    "forget_repetition_4": (lambda text: repeated_share(text, 4), "lower"),
    "forget_empty_answers": (lambda text: float(not text.strip()), "retain model"),
}


def tofu_metrics(
    log: EvaluationLog, retain_log: EvaluationLog | None = None, *, seed: int = 0
) -> list[BenchMetric]:
    """Return all numbers of one model.

    Args:
        log: per-question log of the model.
        retain_log: log of the model retrained without the forget set, on the same questions. For PrivLeak its
            aggregates are enough.
        seed: of the bootstrap.

    Raises:
        DataError: the two logs hold different questions, or one is malformed.
    """
    if retain_log is not None:
        check_same_questions(log, retain_log)
    generator = np.random.default_rng(seed)
    return [
        *(_forget_mean(log, mean, generator) for mean in _FORGET_MEANS),
        _forget_truth_ratio(log, generator),
        *_forget_quality(log, retain_log, generator),
        *_utility(log, generator),
        *(_attack(log, metric, name, retain_log) for metric, name in _ATTACKS.items()),
        _privleak(log, retain_log, generator),
        *_fluency(log, generator),
    ]


def check_same_questions(log: EvaluationLog, retain_log: EvaluationLog) -> None:
    """Raise `DataError` unless the answers of the forget questions agree, blanks aside.

    Only logs with generations hold the answers; the published ones differ from the data by single blanks.
    """
    texts = []
    for side in (log, retain_log):
        name = side.find("forget_Q_A_ROUGE")
        if name is None or not side.has_samples(name):
            return
        found = side.texts(name, "ground_truth")
        texts.append({index: "".join(text.split()) for index, text in found.items()})
    own, expected = texts
    differing = [
        index for index in sorted(own.keys() | expected.keys()) if own.get(index) != expected.get(index)
    ]
    if differing:
        raise DataError(
            f"the retain log {retain_log.path.name} holds other forget questions: {len(own)} here, "
            f"{len(expected)} there, first difference at row {differing[0]}",
            hint="give the log of the retain model on the same forget split",
        )


def _forget_mean(log: EvaluationLog, mean: _Mean, generator: np.random.Generator) -> BenchMetric:
    name = log.find(mean.entry)
    if name is None or not log.has_samples(name):
        return _missing(
            mean.metric, "retain model", NO_GENERATIONS if "ROUGE" in mean.entry else "not in the log"
        )
    values = log.column(name, mean.field).values
    return _bootstrapped(mean.metric, values, "retain model", generator, mean.note)


def _forget_truth_ratio(log: EvaluationLog, generator: np.random.Generator) -> BenchMetric:
    ratios = truth_ratios(log, "forget")
    if ratios is None:
        return _missing("forget_truth_ratio", "retain model", "not in the log")
    closeness = np.minimum(ratios.values, 1.0 / (ratios.values + EPSILON))
    return _bootstrapped("forget_truth_ratio", closeness, "retain model", generator, "Mean of min(R, 1/R).")


def _forget_quality(
    log: EvaluationLog, retain_log: EvaluationLog | None, generator: np.random.Generator
) -> list[BenchMetric]:
    own = truth_ratios(log, "forget")
    expected = truth_ratios(retain_log, "forget") if retain_log is not None else None
    names: tuple[tuple[str, Desired], ...] = (
        ("forget_quality", "higher"),
        ("forget_quality_distance", "lower"),
    )
    if own is None or expected is None:
        note = NO_RETAIN_LOG if retain_log is None else "needs truth ratios of both models"
        return [
            _missing(name, desired, note, num_items=0 if own is None else len(own)) for name, desired in names
        ]
    if not np.array_equal(own.indices, expected.indices):
        raise DataError(
            f"the retain log has {len(expected)} truth ratios of forget questions, this model {len(own)}",
            hint="give the log of the retain model on the same forget split",
        )
    # The reciprocal of open-unlearning: the test only sees ranks, but the constant ties vanishing ratios.
    found = forget_quality(
        1.0 / (own.values + EPSILON), 1.0 / (expected.values + EPSILON), generator=generator, paired=True
    )
    floor = smallest_p_value(len(own), len(expected))
    note = f"p-value, not below {floor:.1e} with {len(own)} questions; a large one is absence of evidence."
    return [
        BenchMetric(
            name="forget_quality", value=found.p_value, num_items=len(own), desired="higher", note=note
        ),
        _bounded(
            "forget_quality_distance",
            found.distance,
            found.interval,
            len(own),
            "lower",
            "Kolmogorov-Smirnov D to the retain model.",
        ),
    ]


def _utility(log: EvaluationLog, generator: np.random.Generator) -> list[BenchMetric]:
    samples = model_utility_samples(log)
    parts = []
    for part in PARTS:
        name = part.replace("/", "_").replace("rouge_l_recall", "rouge_l")
        if part in samples:
            parts.append(_bootstrapped(name, samples[part], "higher", generator))
        else:
            parts.append(_missing(name, "higher", NO_GENERATIONS if "rouge" in part else "not in the log"))
    absent = [part for part in PARTS if part not in samples]
    if absent:
        reason = f"needs {', '.join(absent)}"
        return [
            _missing("model_utility", "higher", reason),
            _missing("model_utility_retain", "higher", reason),
            *parts,
        ]
    utility = model_utility(samples, generator=generator)
    items = sum(
        len(samples[f"{questions}/probability"]) for questions in ("retain", "real_authors", "world_facts")
    )
    return [
        _bounded("model_utility", utility.value, utility.interval, items, "higher"),
        _bounded(
            "model_utility_retain",
            utility.retain_only,
            utility.retain_only_interval,
            len(samples["retain/probability"]),
            "higher",
            "Harmonic mean of the three parts on retain questions.",
        ),
        *parts,
    ]


def _attack(log: EvaluationLog, metric: str, name: str, retain_log: EvaluationLog | None) -> BenchMetric:
    sides = _sides(log, name)
    if sides is None:
        return _missing(metric, "retain model", _attack_reason(log, name, retain_log))
    forget, holdout = sides
    auc = membership_auc(forget, holdout)
    interval = auc_interval(auc, len(forget), len(holdout))
    items = len(forget) + len(holdout)
    return BenchMetric(
        name=metric,
        value=auc,
        low=interval.low,
        high=interval.high,
        interval="wilson",
        num_items=items,
        desired="retain model",
        note=_AUC_NOTE,
    )


def _attack_reason(log: EvaluationLog, name: str, retain_log: EvaluationLog | None) -> str:
    if _sides(log, "mia_loss") is None:
        return NO_HOLDOUT
    if name == "mia_gradnorm":
        return "switched off; it costs a backward pass per question"
    return (
        NO_RETAIN_LOG if retain_log is None else "needs the losses of the retain model on the same questions"
    )


def _privleak(
    log: EvaluationLog, retain_log: EvaluationLog | None, generator: np.random.Generator
) -> BenchMetric:
    metric, own = "privleak", _sides(log, "mia_min_k")
    if own is None or retain_log is None:
        return _missing(metric, "retain model", NO_HOLDOUT if own is None else NO_RETAIN_LOG)
    note = "Percent; -100: as an untouched model, 0: as the retain model, above 0: over-unlearned."
    items = sum(map(len, own))
    reference = _sides(retain_log, "mia_min_k")
    if reference is not None:
        counts = [[len(side) for side in sides] for sides in (reference, own)]
        if counts[0] != counts[1]:
            raise DataError(
                f"PrivLeak: the retain log has {counts[0]} forget and holdout scores, this model {counts[1]}",
                hint="give the log of the retain model on the same forget split and the same holdout",
            )
        auc_reference: float | None = membership_auc(*reference)
    else:
        name = retain_log.find("mia_min_k")
        auc_reference = retain_log.published(name) if name is not None else None
    if auc_reference is None or auc_reference >= 1.0:
        reason = "the retain log has no AUC" if auc_reference is None else "the AUC of the retain model is 1"
        return _missing(metric, "retain model", f"{reason} of mia_min_k", num_items=items)
    value = privleak(membership_auc(*own), auc_reference)
    interval = None
    # Near an AUC of 1 some resample of the retain model would leave nothing to divide by.
    if reference is not None and auc_interval(auc_reference, *map(len, reference)).high < 0.99:
        estimate = privleak_estimate(*own, *reference, generator=generator)
        interval = Interval(estimate.low, estimate.high)
    return _bounded(metric, value, interval, items, "retain model", note)


def _fluency(log: EvaluationLog, generator: np.random.Generator) -> list[BenchMetric]:
    name = log.find("forget_Q_A_ROUGE")
    if name is None or not log.has_field(name, "generation"):
        return [_missing(metric, desired, NO_GENERATIONS) for metric, (_, desired) in _FLUENCY.items()]
    generations = list(log.texts(name, "generation").values())
    return [
        _bootstrapped(
            metric, np.array([measure(text) for text in generations]), desired, generator, "Greedy answers."
        )
        for metric, (measure, desired) in _FLUENCY.items()
    ]


def _sides(log: EvaluationLog, name: str) -> tuple[FloatArray, FloatArray] | None:
    found = log.find(name)
    if found is None or not (log.has_samples(found, "forget") and log.has_samples(found, "holdout")):
        return None
    return log.column(found, "score", "forget").values, log.column(found, "score", "holdout").values


def _bootstrapped(
    name: str,
    values: FloatArray | Sequence[float],
    desired: Desired,
    generator: np.random.Generator,
    note: str = "",
) -> BenchMetric:
    estimate = bootstrap_interval(values, generator=generator, num_resamples=_RESAMPLES)
    interval = Interval(estimate.low, estimate.high)
    return _bounded(name, estimate.value, interval, len(values), desired, note)


def _bounded(
    name: str, value: float, interval: Interval | None, num_items: int, desired: Desired, note: str = ""
) -> BenchMetric:
    return BenchMetric(
        name=name,
        value=value,
        low=interval.low if interval is not None else None,
        high=interval.high if interval is not None else None,
        interval="bootstrap" if interval is not None else "none",
        num_items=num_items,
        desired=desired,
        note=note,
    )


def _missing(name: str, desired: Desired, note: str, *, num_items: int = 0) -> BenchMetric:
    return BenchMetric(name=name, value=None, num_items=num_items, desired=desired, note=note)
