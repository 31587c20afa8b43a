"""Turn item rows into the summaries of attacks, their controls and worst cases."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from falcon_unlearn.audit.base import Attack
from falcon_unlearn.audit.frame import (
    Frame,
    accuracies,
    as_estimate,
    p_reachable,
    plain_tables,
    share_estimate,
)
from falcon_unlearn.audit.statistics import RECOVERED, Resampled, exact_mcnemar, holm
from falcon_unlearn.audit.tables import FloatArray, Questions
from falcon_unlearn.results_audit import (
    NO_ATTACK,
    AttackSummary,
    ControlSummary,
    Estimate,
    FormatName,
    WorstCase,
)

DISCLOSURE = "disclosure"
"""Detail of a variant that the original helps to answer."""
_DISCLOSES = "reads the original as well: it shows what was removed, not what is left"
GATE = "gate"
"""Detail of a variant that only means something where the original still answers under it."""
GATE_MARGIN = 0.10
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


def attack_summary(frame: Frame, run: AttackRun, format: FormatName) -> AttackSummary | None:
    """Summarise an attack in its chosen variant; None if this format was not scored."""
    variant = run.chosen.get(format)
    plain = plain_tables(frame, format)
    if variant is None or plain is None:
        return None
    tables = plain | _attacked_tables(frame, run, format, variant)
    if "unlearned^a" not in tables:
        return None
    attack = run.attack
    drawn = frame.resample(tables, frame.forget.clusters, attack.name, variant, format)
    compared = frame.has_null or not teaches(attack)
    info = run.variants[variant]
    understood = GATE not in info.details or _original_answers(frame, tables, format)
    attacked = tables["unlearned^a"]
    test = exact_mcnemar(tables["unlearned"].mean(axis=0), attacked.mean(axis=0))
    ratios = {name: _ratio(drawn, name, compared) for name in RECOVERED}
    destroyed = run.destroys.get(format, False)
    discloses = DISCLOSURE in info.details
    null = tables.get("null^a")
    return AttackSummary(
        attack=attack.name,
        variant=variant,
        format=format,
        tier=attack.tier,
        access=attack.access,
        knowledge=attack.knowledge,
        seeds=list(run.seeds),
        accuracy=accuracies(frame, format, frame.forget, attack.name, variant, run.seeds),
        retain_accuracy=accuracies(frame, format, frame.retain, attack.name, variant, run.seeds),
        recovered=ratios["recovered"],
        net_recovered=ratios["net_recovered"],
        knowledge_left=ratios["knowledge_left"],
        reachable=ratios["reachable"],
        p_reachable=None if null is None else p_reachable(frame, attacked, null, attack.name, format),
        p_value=test.p_value,
        discordant=(test.gained, test.lost),
        destroys_model=destroyed,
        counts=not destroyed and compared and understood and not discloses,
        note=_DISCLOSES if discloses else _note(destroyed, compared, understood),
        retain_change=_retain_change(frame, run, format, variant),
        seed_deviation=float(attacked.mean(axis=1).std(ddof=1)) if len(attacked) > 1 else None,
        forward_equivalents=info.equivalents,
        seconds=run.seconds,
        details=dict(info.details),
    )


def teaches(attack: Attack) -> bool:
    """Tell whether an attack may itself teach the facts, so that only a null model shows what it recovers."""
    return attack.knowledge == "forget answers" or bool(getattr(attack, "trains", False))


def _note(destroyed: bool, compared: bool, understood: bool) -> str:
    if destroyed:
        return "destroys the model: retain accuracy falls by more than the limit"
    if not understood:
        return "not even the original answers when asked in this way"
    return "" if compared else _NO_NULL


def _original_answers(frame: Frame, tables: Mapping[Hashable, FloatArray], format: FormatName) -> bool:
    """Tell whether the original under the attack beats guessing by `GATE_MARGIN`."""
    attacked = tables.get("original^a")
    return attacked is None or attacked.mean() >= frame.null_floor(format, frame.forget).mean() + GATE_MARGIN


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
