"""Model utility of TOFU: the harmonic mean of nine averages over retained and general knowledge.

Shapes: N questions, K wrong options, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.intervals import Estimate, Interval, percentile_interval

FloatArray = NDArray[np.float64]

QUESTION_SETS = ("retain", "real_authors", "world_facts")
MEASURES = ("probability", "rouge_l_recall", "truth_ratio")
PARTS = tuple(f"{questions}/{measure}" for questions in QUESTION_SETS for measure in MEASURES)
"""Names of the nine parts, `<question set>/<measure>`."""

_CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class ModelUtility:
    """Hold the utility, its nine parts and, if asked for, bootstrap intervals."""

    value: float
    parts: dict[str, float]
    interval: Interval | None
    retain_only: float
    """Harmonic mean of the three parts on retained questions."""
    retain_only_interval: Interval | None


def harmonic_mean(values: ArrayLike) -> float:
    """Return n / sum(1/x); 0 as soon as one value is 0.

    Raises:
        DataError: no values, or a negative one.
        NumericalError: a value is not finite.
    """
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or (vector < 0).any():
        raise DataError("a harmonic mean needs a non-empty list of numbers of at least 0.")
    if not np.isfinite(vector).all():
        raise NumericalError("a harmonic mean got a value that is not finite.")
    return float(_harmonic(vector))


def normalised_probability(
    probability_right: ArrayLike, probabilities_wrong: ArrayLike, *, epsilon: float = 1e-10
) -> FloatArray:
    """Return P(right) / (P(right) + sum of P(wrong) + epsilon) per question, from (N,) and (N, K).

    This is the probability on real authors and world facts; `epsilon` is that of open-unlearning.

    Raises:
        DataError: shapes do not fit.
    """
    right_N = np.asarray(probability_right, dtype=np.float64)
    wrong_NK = np.asarray(probabilities_wrong, dtype=np.float64)
    if right_N.ndim != 1 or wrong_NK.shape[:-1] != right_N.shape:
        raise DataError(
            f"options need N right and N x K wrong probabilities, got {right_N.shape} and {wrong_NK.shape}."
        )
    return np.asarray(right_N / (right_N + wrong_NK.sum(axis=1) + epsilon))


def model_utility(
    samples: Mapping[str, ArrayLike],
    *,
    generator: np.random.Generator | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> ModelUtility:
    """Return the utility from per-question values of the nine parts (Maini et al. 2024, section 2.2.2).

    Args:
        samples: `PARTS` -> per-question values from 0 to 1. Truth ratios enter as max(0, 1 - R).
        generator: source of the resamples; without it no intervals are computed. The three measures of one
            question set are resampled together.
        num_resamples: number of bootstrap resamples.
        confidence: coverage of the intervals.

    Raises:
        DataError: a part is missing, unknown, empty, or of another length than its question set.
        NumericalError: a value is not finite.
    """
    groups = [_question_set(samples, questions) for questions in QUESTION_SETS]
    _reject_unknown(samples)
    means = np.concatenate([values.mean(axis=0) for values in groups])
    interval = retain_interval = None
    if generator is not None:
        replicates = np.concatenate(list(_replicated_means(groups, generator, num_resamples)))
        interval = percentile_interval(_harmonic(replicates), confidence)
        retain_interval = percentile_interval(_harmonic(replicates[:, : len(MEASURES)]), confidence)
    return ModelUtility(
        value=harmonic_mean(means),
        parts=dict(zip(PARTS, means.tolist(), strict=True)),
        interval=interval,
        retain_only=harmonic_mean(means[: len(MEASURES)]),
        retain_only_interval=retain_interval,
    )


def model_utility_difference(
    before: Mapping[str, ArrayLike],
    after: Mapping[str, ArrayLike],
    *,
    generator: np.random.Generator,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return the utility after minus before with a paired bootstrap interval over questions.

    Both models answered the same questions in the same order; what makes a question hard for both cancels.

    Raises:
        DataError: as `model_utility`, or different numbers of questions.
    """
    groups = []
    for questions in QUESTION_SETS:
        first, second = _question_set(before, questions), _question_set(after, questions)
        if len(first) != len(second):
            raise DataError(f"{questions}: {len(first)} questions before, {len(second)} after.")
        groups.append(np.concatenate([first, second], axis=1))
    means = np.concatenate([values.mean(axis=0) for values in groups])
    replicates = np.concatenate(list(_replicated_means(groups, generator, num_resamples)))
    low, high = percentile_interval(_difference(replicates), confidence)
    return Estimate(float(_difference(means[None])[0]), low, high)


def _difference(means_BP: FloatArray) -> FloatArray:
    by_model = means_BP.reshape(len(means_BP), len(QUESTION_SETS), 2, len(MEASURES))
    before, after = (by_model[:, :, model].reshape(len(means_BP), -1) for model in (0, 1))
    return np.asarray(_harmonic(after) - _harmonic(before))


def _harmonic(values: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.asarray(values.shape[-1] / (1.0 / values).sum(axis=-1))


def _replicated_means(
    groups: list[FloatArray], generator: np.random.Generator, num_resamples: int
) -> Iterator[FloatArray]:
    if num_resamples < 1:
        raise UsageError(f"num_resamples must be at least 1, got {num_resamples}.")
    rows = max(1, _CHUNK_ELEMENTS // max(len(values) for values in groups))
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        means = []
        for values in groups:
            share = np.full(len(values), 1.0 / len(values))
            counts = generator.multinomial(len(values), share, size=size)
            means.append(counts @ values / len(values))
        yield np.concatenate(means, axis=1)


def _question_set(samples: Mapping[str, ArrayLike], questions: str) -> FloatArray:
    columns = []
    for measure in MEASURES:
        name = f"{questions}/{measure}"
        if name not in samples:
            raise DataError(
                f"model utility needs the part {name!r}.", hint=f"The nine parts: {', '.join(PARTS)}."
            )
        values = np.asarray(samples[name], dtype=np.float64)
        if values.ndim != 1 or values.size == 0 or (values < 0).any():
            raise DataError(f"{name} must be a non-empty list of numbers of at least 0.")
        if not np.isfinite(values).all():
            raise NumericalError(f"{name} holds {int((~np.isfinite(values)).sum())} non-finite values.")
        columns.append(values)
    if len({len(values) for values in columns}) > 1:
        raise DataError(
            f"the three measures of {questions} need one value per question, "
            f"got {[len(values) for values in columns]}."
        )
    return np.stack(columns, axis=1)


def _reject_unknown(samples: Mapping[str, ArrayLike]) -> None:
    unknown = sorted(set(samples) - set(PARTS))
    if unknown:
        raise DataError(
            f"unknown parts of model utility: {unknown}.", hint=f"The nine parts: {', '.join(PARTS)}."
        )
