"""Turn item rows into the summaries of an audit: baselines, attacks, worst cases."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from falcon_unlearn.audit.base import Attack
from falcon_unlearn.audit.statistics import (
    RECOVERED,
    Ratio,
    Resampled,
    detectable_change,
    exact_mcnemar,
    holm,
    resample,
    sign_flip_p_value,
)
from falcon_unlearn.audit.tables import FloatArray, Questions, Table
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.linalg.intervals import wilson_interval
from falcon_unlearn.results_audit import (
    NO_ATTACK,
    AttackSummary,
    Baseline,
    ControlSummary,
    Estimate,
    FormatName,
    ModelRole,
    WorstCase,
)

ROLES: tuple[ModelRole, ...] = ("original", "unlearned", "null")
LOW_DISTINCT_2 = 0.5
HIGH_REPETITION = 0.3
_NO_NULL = "there is no null model, and this attack may teach what it recovers"


@dataclass(frozen=True)
class VariantInfo:
    """Describe one variant that an attack yielded."""

    variant: str
    control: str = ""
    equivalents: float = 0.0
    details: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackRun:
    """Hold what is known about one attack besides its rows."""

    attack: Attack
    chosen: Mapping[FormatName, str]
    """Variant of each format, chosen on the selection facts."""
    destroys: Mapping[FormatName, bool]
    variants: Mapping[str, VariantInfo]
    seeds: tuple[int, ...]
    seconds: float


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


def baseline(frame: Frame, format: FormatName) -> Baseline | None:
    """Summarise one format without attack; None if it was not measured."""
    tables = _plain_tables(frame, format)
    if tables is None:
        return None
    drawn = frame.resample(tables, frame.forget.clusters, "baseline", format)
    left = drawn.ratio(*RECOVERED["knowledge_left_unattacked"])
    known, spread = drawn.combination({"original": 1.0, "null": -1.0})
    discordant = float(np.mean(np.abs(tables["unlearned"] - tables["null"])))
    change = detectable_change(min(1.0, discordant), len(set(frame.forget.clusters)))
    return Baseline(
        format=format,
        num_items=len(frame.forget.facts),
        num_clusters=len(set(frame.forget.clusters)),
        accuracy=_accuracies(frame, format, frame.forget),
        retain_accuracy=_accuracies(frame, format, frame.retain),
        neighbour_accuracy=_accuracies(frame, format, frame.neighbour) if frame.neighbour else {},
        informative=known > 0.0 and known >= 2.0 * float(spread.std(ddof=1)) and left.value is not None,
        knowledge_left=as_estimate(left),
        removed_share=as_estimate(drawn.ratio(*RECOVERED["removed_share"])),
        utility_loss=_utility_loss(frame, format),
        letter_mass=_letter_mass(frame) if format == "letter" else {},
        degenerate=_degenerate(frame) if format == "generation" else {},
        detectable_change=change,
        detectable_share=change / known if known > 0.0 else None,
    )


def _plain_tables(frame: Frame, format: FormatName) -> dict[Hashable, FloatArray] | None:
    tables: dict[Hashable, FloatArray] = {}
    for role in frame.roles:
        values = frame.table.values(role, format, frame.forget)
        if values is None:
            return None
        tables[role] = values
    tables.setdefault("null", np.atleast_2d(frame.null_floor(format, frame.forget)))
    return tables


def _accuracies(
    frame: Frame,
    format: FormatName,
    questions: Questions,
    attack: str = NO_ATTACK,
    variant: str = "as it is",
    seeds: Sequence[int] = (0,),
) -> dict[ModelRole, Estimate]:
    found = {}
    for role in frame.roles:
        values = frame.table.values(role, format, questions, attack=attack, variant=variant, seeds=seeds)
        if values is not None:
            found[role] = share_estimate(frame, values, questions, role, format, attack, questions.set)
    return found


def _utility_loss(frame: Frame, format: FormatName) -> Estimate:
    before = frame.table.values("original", format, frame.retain)
    after = frame.table.values("unlearned", format, frame.retain)
    if before is None or after is None:
        return Estimate(value=None, note="not measured")
    drawn = frame.resample({"before": before, "after": after}, frame.retain.clusters, "utility", format)
    return as_estimate(drawn.ratio({"before": 1.0, "after": -1.0}, {"before": 1.0}))


def _letter_mass(frame: Frame) -> dict[ModelRole, float]:
    found: dict[ModelRole, float] = {}
    for role in frame.roles:
        masses = [row.letter_mass for row in frame.table.rows(role, "letter", frame.forget)]
        kept = [mass for mass in masses if mass is not None]
        if kept:
            found[role] = float(np.median(kept))
    return found


def _degenerate(frame: Frame) -> dict[ModelRole, float]:
    """Return the share of free answers that repeat themselves, over facts that should have stayed."""
    found: dict[ModelRole, float] = {}
    for role in frame.roles:
        rows = frame.table.rows(role, "generation", frame.retain)
        rows += frame.table.rows(role, "generation", frame.neighbour) if frame.neighbour else []
        if rows:
            found[role] = float(np.mean([is_degenerate(row.distinct_2, row.repetition) for row in rows]))
    return found


def is_degenerate(distinct_2: float | None, repetition: float | None) -> bool:
    """Tell whether a free answer repeats itself."""
    return (distinct_2 is not None and distinct_2 < LOW_DISTINCT_2) or (
        repetition is not None and repetition > HIGH_REPETITION
    )


def no_attack_summary(frame: Frame, entry: Baseline) -> AttackSummary | None:
    """Return the model as it is in the form of an attack, so that it takes part in the tests."""
    tables = _plain_tables(frame, entry.format)
    if tables is None:
        return None
    return AttackSummary(
        attack=NO_ATTACK,
        variant="as it is",
        format=entry.format,
        tier="quick",
        access="text",
        knowledge="none",
        seeds=[0],
        accuracy=entry.accuracy,
        retain_accuracy=entry.retain_accuracy,
        recovered=Estimate(value=None, note="no attack"),
        net_recovered=Estimate(value=None, note="no attack"),
        knowledge_left=entry.knowledge_left,
        reachable=entry.knowledge_left,
        p_reachable=_p_reachable(frame, tables["unlearned"], tables["null"], "none", entry.format),
    )


def attack_summary(frame: Frame, run: AttackRun, format: FormatName) -> AttackSummary | None:
    """Summarise an attack in its chosen variant; None if this format was not scored."""
    variant = run.chosen.get(format)
    plain = _plain_tables(frame, format)
    if variant is None or plain is None:
        return None
    tables = plain | _attacked_tables(frame, run, format, variant)
    if "unlearned^a" not in tables:
        return None
    attack = run.attack
    drawn = frame.resample(tables, frame.forget.clusters, attack.name, variant, format)
    compared = frame.has_null or not teaches(attack)
    attacked = tables["unlearned^a"]
    test = exact_mcnemar(tables["unlearned"].mean(axis=0), attacked.mean(axis=0))
    ratios = {name: _ratio(drawn, name, compared) for name in RECOVERED}
    destroyed = run.destroys.get(format, False)
    info = run.variants[variant]
    null = tables.get("null^a")
    return AttackSummary(
        attack=attack.name,
        variant=variant,
        format=format,
        tier=attack.tier,
        access=attack.access,
        knowledge=attack.knowledge,
        seeds=list(run.seeds),
        accuracy=_accuracies(frame, format, frame.forget, attack.name, variant, run.seeds),
        retain_accuracy=_accuracies(frame, format, frame.retain, attack.name, variant, run.seeds),
        recovered=ratios["recovered"],
        net_recovered=ratios["net_recovered"],
        knowledge_left=ratios["knowledge_left"],
        reachable=ratios["reachable"],
        p_reachable=None if null is None else _p_reachable(frame, attacked, null, attack.name, format),
        p_value=test.p_value,
        discordant=(test.gained, test.lost),
        destroys_model=destroyed,
        counts=not destroyed and compared,
        note=_note(destroyed, compared),
        retain_change=_retain_change(frame, run, format, variant),
        seed_deviation=float(attacked.mean(axis=1).std(ddof=1)) if len(attacked) > 1 else None,
        forward_equivalents=info.equivalents,
        seconds=run.seconds,
        details=dict(info.details),
    )


def teaches(attack: Attack) -> bool:
    """Tell whether an attack may itself teach the facts, so that only a null model shows what it recovers."""
    return attack.knowledge == "forget answers" or bool(getattr(attack, "trains", False))


def _note(destroyed: bool, compared: bool) -> str:
    if destroyed:
        return "destroys the model: retain accuracy falls by more than the limit"
    return "" if compared else _NO_NULL


def _attacked_tables(
    frame: Frame, run: AttackRun, format: FormatName, variant: str
) -> dict[Hashable, FloatArray]:
    tables: dict[Hashable, FloatArray] = {}
    for role in frame.roles:
        values = frame.table.values(
            role, format, frame.forget, attack=run.attack.name, variant=variant, seeds=run.seeds
        )
        if values is not None:
            tables[f"{role}^a"] = values
    if not frame.has_null and not teaches(run.attack):
        tables["null^a"] = np.atleast_2d(frame.null_floor(format, frame.forget))
    return tables


def _ratio(drawn: Resampled, name: str, compared: bool) -> Estimate:
    numerator, denominator = RECOVERED[name]
    missing = (set(numerator) | set(denominator)) - set(drawn.names)
    if missing:
        names = ", ".join(sorted(str(entry) for entry in missing)).replace("^a", " under this attack")
        return Estimate(value=None, note=_NO_NULL if not compared else f"not measured: {names}")
    return as_estimate(drawn.ratio(numerator, denominator))


def _p_reachable(
    frame: Frame, attacked: FloatArray, null: FloatArray, attack: str, format: FormatName
) -> float:
    return sign_flip_p_value(
        attacked.mean(axis=0) - null.mean(axis=0),
        frame.forget.clusters,
        generator=frame.generator("flip", attack, format),
        num_resamples=frame.settings.resamples,
    )


def _retain_change(frame: Frame, run: AttackRun, format: FormatName, variant: str) -> Estimate:
    before = frame.table.values("unlearned", format, frame.retain)
    after = frame.table.values(
        "unlearned", format, frame.retain, attack=run.attack.name, variant=variant, seeds=run.seeds
    )
    if before is None or after is None:
        return Estimate(value=None, note="not measured")
    drawn = frame.resample(
        {"before": before, "after": after}, frame.retain.clusters, "retain", run.attack.name, format
    )
    return as_estimate(drawn.ratio({"after": 1.0, "before": -1.0}, {"before": 1.0}))


def control_summaries(frame: Frame, run: AttackRun, formats: Sequence[FormatName]) -> list[ControlSummary]:
    """Summarise the controls of an attack on the unlearned model."""
    found = []
    for info in run.variants.values():
        for format in formats if info.control else ():
            values = frame.table.values(
                "unlearned", format, frame.forget, attack=run.attack.name, variant=info.variant,
                seeds=run.seeds,
            )  # fmt: skip
            if values is not None:
                found.append(
                    ControlSummary(
                        attack=run.attack.name,
                        variant=info.variant,
                        control=info.control,
                        format=format,
                        accuracy=share_estimate(frame, values, frame.forget, info.variant, format),
                    )
                )
    return found


def with_holm(summaries: Sequence[AttackSummary]) -> list[AttackSummary]:
    """Correct both p-values for the number of attacks and formats that count."""
    reachable = _adjusted([entry.p_reachable if entry.counts else None for entry in summaries])
    changed = _adjusted([entry.p_value if entry.counts else None for entry in summaries])
    return [
        entry.model_copy(update={"p_reachable_adjusted": first, "p_adjusted": second})
        for entry, first, second in zip(summaries, reachable, changed, strict=True)
    ]


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]


def worst_case(
    frame: Frame, runs: Sequence[AttackRun], summaries: Sequence[AttackSummary], format: FormatName,
    selection: Questions,
) -> WorstCase:  # fmt: skip
    """Choose the attack that does best on the selection facts, and state it on the report facts.

    Where there is a null model, its attacked accuracy on the same facts is subtracted before choosing.
    """
    scores: dict[str, float] = {}
    by_name = {entry.attack: entry for entry in summaries if entry.format == format and entry.counts}
    for run in runs:
        if run.attack.name not in by_name:
            continue
        variant, name = run.chosen[format], run.attack.name
        own = frame.table.values(
            "unlearned", format, selection, attack=name, variant=variant, seeds=run.seeds
        )
        null = frame.table.values("null", format, selection, attack=name, variant=variant, seeds=run.seeds)
        if own is not None:
            scores[name] = float(own.mean()) - (0.0 if null is None else float(null.mean()))
    if not scores:
        missing = Estimate(value=None, note="no attack counts in this format")
        return WorstCase(
            format=format,
            attack=NO_ATTACK,
            variant="as it is",
            net_recovered=missing,
            reachable=missing,
            recovered=missing,
        )
    best = by_name[max(scores, key=lambda name: scores[name])]
    return WorstCase(
        format=format,
        attack=best.attack,
        variant=best.variant,
        net_recovered=best.net_recovered,
        reachable=best.reachable,
        recovered=best.recovered,
    )
