"""Summarise what the models know without any attack."""

from __future__ import annotations

import numpy as np

from falcon_unlearn.audit.frame import Frame, accuracies, as_estimate, p_reachable, plain_tables
from falcon_unlearn.audit.statistics import RECOVERED, detectable_change
from falcon_unlearn.results_audit import (
    NO_ATTACK,
    AttackSummary,
    Baseline,
    Estimate,
    FormatName,
    ModelRole,
)

LOW_DISTINCT_2 = 0.5
HIGH_REPETITION = 0.3


def baseline(frame: Frame, format: FormatName) -> Baseline | None:
    """Summarise one format without attack; None if it was not measured."""
    tables = plain_tables(frame, format)
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
        accuracy=accuracies(frame, format, frame.forget),
        retain_accuracy=accuracies(frame, format, frame.retain),
        neighbour_accuracy=accuracies(frame, format, frame.neighbour) if frame.neighbour else {},
        informative=known > 0.0 and known >= 2.0 * float(spread.std(ddof=1)) and left.value is not None,
        knowledge_left=as_estimate(left),
        removed_share=as_estimate(drawn.ratio(*RECOVERED["removed_share"])),
        utility_loss=_utility_loss(frame, format),
        letter_mass=_letter_mass(frame) if format == "letter" else {},
        degenerate=_degenerate(frame) if format == "generation" else {},
        detectable_change=change,
        detectable_share=change / known if known > 0.0 else None,
    )


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
    tables = plain_tables(frame, entry.format)
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
        p_reachable=p_reachable(frame, tables["unlearned"], tables["null"], "none", entry.format),
    )
