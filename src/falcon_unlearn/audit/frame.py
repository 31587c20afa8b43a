"""What all summaries of an audit share: aligned tables, seeded draws, estimates."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from falcon_unlearn.audit.statistics import Ratio, Resampled, resample, sign_flip_p_value
from falcon_unlearn.audit.tables import FloatArray, Questions, Table
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.linalg.intervals import wilson_interval
from falcon_unlearn.results_audit import NO_ATTACK, Estimate, FormatName, ModelRole

ROLES: tuple[ModelRole, ...] = ("original", "unlearned", "null")


@dataclass(frozen=True)
class Frame:
    """Hold what all summaries share."""

    table: Table
    forget: Questions
    """Report facts."""
    retain: Questions
    neighbour: Questions | None
    settings: AuditSettings
    has_null: bool

    @property
    def roles(self) -> tuple[ModelRole, ...]:
        """Return the models at hand."""
        return ROLES if self.has_null else ROLES[:2]

    def generator(self, *key: str) -> np.random.Generator:
        """Return the source of draws for one summary; it depends on its name only."""
        return np.random.default_rng(zlib.crc32("/".join(key).encode()))

    def resample(self, tables: Mapping[Hashable, FloatArray], clusters: list[str], *key: str) -> Resampled:
        """Draw clusters for some quantities."""
        return resample(
            tables,
            clusters,
            generator=self.generator(*key),
            num_resamples=self.settings.resamples,
            confidence=1.0 - self.settings.alpha,
        )

    def null_floor(self, format: FormatName, questions: Questions) -> FloatArray:
        """Return what guessing gives, where there is no null model."""
        return np.zeros(len(questions.facts)) if format == "generation" else questions.chance


def share_estimate(frame: Frame, values_SN: FloatArray | None, questions: Questions, *key: str) -> Estimate:
    """Return a mean accuracy: Wilson's interval where items are independent and 0 or 1, else a bootstrap."""
    if values_SN is None or values_SN.size == 0:
        return Estimate(value=None, note="not measured")
    confidence = 1.0 - frame.settings.alpha
    mean = float(values_SN.mean())
    independent = len(set(questions.clusters)) == len(questions.facts)
    if len(values_SN) == 1 and independent and bool(np.isin(values_SN, (0.0, 1.0)).all()):
        interval = wilson_interval(round(float(values_SN.sum())), values_SN.shape[1], confidence)
        return Estimate(value=mean, low=interval.low, high=interval.high)
    drawn = frame.resample({"value": values_SN}, questions.clusters, "share", *key)
    _, interval = drawn.difference({"value": 1.0})
    return Estimate(value=mean, low=max(0.0, interval.low), high=min(1.0, interval.high))


def as_estimate(ratio: Ratio) -> Estimate:
    """Turn a ratio into its record; where it is refused, the note holds the difference."""
    if ratio.value is None:
        difference = (
            f"; the difference is {ratio.difference:.3f} "
            f"[{ratio.difference_low:.3f}, {ratio.difference_high:.3f}]"
        )
        return Estimate(value=None, note=ratio.note + difference)
    return Estimate(value=ratio.value, low=_finite(ratio.low), high=_finite(ratio.high), note=ratio.note)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def plain_tables(frame: Frame, format: FormatName) -> dict[Hashable, FloatArray] | None:
    """Return the forget accuracies of all models without attack; None if one is missing."""
    tables: dict[Hashable, FloatArray] = {}
    for role in frame.roles:
        values = frame.table.values(role, format, frame.forget)
        if values is None:
            return None
        tables[role] = values
    tables.setdefault("null", np.atleast_2d(frame.null_floor(format, frame.forget)))
    return tables


def accuracies(
    frame: Frame,
    format: FormatName,
    questions: Questions,
    attack: str = NO_ATTACK,
    variant: str = "as it is",
    seeds: Sequence[int] = (0,),
) -> dict[ModelRole, Estimate]:
    """Return the mean accuracy of every model that was asked these questions under an attack."""
    found = {}
    for role in frame.roles:
        values = frame.table.values(role, format, questions, attack=attack, variant=variant, seeds=seeds)
        if values is not None:
            found[role] = share_estimate(frame, values, questions, role, format, attack, questions.set)
    return found


def p_reachable(
    frame: Frame, attacked: FloatArray, null: FloatArray, attack: str, format: FormatName
) -> float:
    """Test whether the attacked unlearned model knows more than the equally attacked null."""
    return sign_flip_p_value(
        attacked.mean(axis=0) - null.mean(axis=0),
        frame.forget.clusters,
        generator=frame.generator("flip", attack, format),
        num_resamples=frame.settings.resamples,
    )
