"""Arrange the record of a recovery audit as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from falcon_unlearn.report.audit_charts import attack_name, estimate_words, recovery, recovery_chart
from falcon_unlearn.report.charts import Chart
from falcon_unlearn.report.facts import Fact
from falcon_unlearn.report.format import duration, plural, quantity, share
from falcon_unlearn.results_audit import (
    NO_ATTACK,
    AttackSummary,
    AuditResult,
    Baseline,
    ControlSummary,
    Estimate,
    FormatName,
    ModelRole,
    Verdict,
)

Tone = Literal["good", "mixed", "bad", "unknown"]
FORMAT_NAMES: dict[FormatName, str] = {
    "letter": "letters",
    "text": "option text",
    "generation": "free answers",
}
_TONES: dict[Verdict, Tone] = {
    "removed (bounded)": "good",
    "suppressed": "bad",
    "not removed": "bad",
    "damaged": "bad",
    "inconclusive": "unknown",
}
_MEANINGS: dict[Verdict, str] = {
    "removed (bounded)": "No attack that was run recovers a notable share, and the data suffice to say "
    "so. That bounds these attacks only; it is no proof that nothing else works.",
    "suppressed": "The model answers worse, but the knowledge is still in it: an attack brings it out.",
    "not removed": "The model still gives the answers, without any attack.",
    "damaged": "The model lost what it was to keep, so what it forgot says little.",
    "inconclusive": "The data or the controls do not suffice for another word.",
}
_SCORE_NAMES = {
    "loss": "loss",
    "zlib": "zlib",
    "min_k": "Min-K",
    "min_k_plus_plus": "Min-K++",
    "reference": "loss less the null's",
}
_ROLES: tuple[ModelRole, ...] = ("original", "unlearned", "null")


@dataclass(frozen=True)
class BaselineRow:
    """Show what the models know in one format without attack."""

    name: str
    num_items: int
    forget: dict[ModelRole, str]
    retain: dict[ModelRole, str]
    left: str
    utility_loss: str
    verdict: str


@dataclass(frozen=True)
class AttackRow:
    """Show one attack in one format."""

    name: str
    variant: str
    format: str
    accuracy: dict[ModelRole, str]
    recovered: str
    reached: str
    p_value: str
    retain: str
    cost: tuple[str, str]
    """Time, and forward-equivalents."""
    note: str
    counts: bool


@dataclass(frozen=True)
class MemorisationRow:
    """Show what one model reproduces of the forget answers, and what its losses betray."""

    model: str
    extraction: str
    exact: str
    scores: list[tuple[str, str]]
    """Score and AUC."""


@dataclass(frozen=True)
class AuditView:
    """Hold everything the audit section needs."""

    verdict: Verdict
    tone: Tone
    meaning: str
    reasons: list[str]
    facts: list[Fact]
    charts: list[Chart]
    baselines: list[BaselineRow]
    attacks: list[AttackRow]
    controls: list[tuple[str, str, str, str]]
    """Attack, control, format, accuracy."""
    warnings: list[str]
    skipped: list[str]
    gates: list[tuple[str, str, bool]]
    """Expression, value, passed."""
    recovered_name: str
    memorisation: list[MemorisationRow]
    blind: str


def build_audit_view(audit: AuditResult) -> AuditView:
    """Derive words, tables and charts from the record."""
    has_null = audit.null_source == "model"
    return AuditView(
        verdict=audit.verdict,
        tone=_TONES[audit.verdict],
        meaning=_MEANINGS[audit.verdict],
        reasons=list(audit.reasons),
        facts=_facts(audit),
        charts=_charts(audit, has_null=has_null),
        baselines=[_baseline_row(audit, entry) for entry in audit.baselines],
        attacks=[_attack_row(row, has_null=has_null) for row in audit.attacks],
        controls=[_control_row(row) for row in audit.controls],
        warnings=[f"{warning.name}: {warning.message}" for warning in audit.warnings],
        skipped=list(audit.skipped),
        gates=[(gate.expression, _gate_value(gate.value), gate.passed) for gate in audit.gates],
        recovered_name="Recovered, net of the null" if has_null else "Recovered, no null at hand",
        memorisation=_memorisation_rows(audit),
        blind=estimate_words(audit.memorisation.blind) if audit.memorisation is not None else "",
    )


def _memorisation_rows(audit: AuditResult) -> list[MemorisationRow]:
    models = audit.memorisation.models if audit.memorisation is not None else []
    return [
        MemorisationRow(
            model.model,
            estimate_words(model.extraction_strength),
            estimate_words(model.exact_memorisation),
            [(_SCORE_NAMES[score.name], estimate_words(score.auc)) for score in model.membership],
        )
        for model in models
    ]


def audit_note(audit: AuditResult) -> str:
    """Say in one sentence what the audit found, for the head of the report and the model card."""
    worst = [case for case in audit.worst if case.reachable.value is not None and case.attack != NO_ATTACK]
    found = ""
    if worst:
        case = max(worst, key=lambda entry: entry.reachable.value or 0.0)
        found = (
            f" Worst case ({FORMAT_NAMES[case.format]}): {case.attack.replace('_', ' ')} reaches "
            f"{estimate_words(case.reachable)} of the knowledge."
        )
    return f"Recovery audit, {audit.tier} tier: {audit.verdict}.{found} {_MEANINGS[audit.verdict]}"


def _facts(audit: AuditResult) -> list[Fact]:
    models = {record.role: record.name for record in audit.models}
    null = models.get("null", "none: guessing stands in, so nothing is called removed")
    sets = [
        f"{entry.role}: {plural(entry.facts, 'fact')} in {entry.clusters} clusters" for entry in audit.sets
    ]
    splits = [
        f"{entry.attack} for the attacker, {entry.selection} to choose settings, {entry.report} reported"
        for entry in audit.sets
        if entry.role == "forget"
    ]
    counted = len({row.attack for row in audit.attacks} - {NO_ATTACK})
    return [
        ("Original", models.get("original", "not at hand")),
        ("Audited", models.get("unlearned", "")),
        ("Null model", null),
        ("Facts", "; ".join(sets)),
        ("Forget facts", "".join(splits)),
        ("Attacks", f"{plural(counted, 'attack')}, {audit.tier} tier, seeds {_seeds(audit.seeds)}"),
        ("Prompts", "chat template" if audit.chat_template else "plain"),
        ("Time", duration(audit.seconds)),
    ]


def _seeds(seeds: list[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _charts(audit: AuditResult, *, has_null: bool) -> list[Chart]:
    limit = audit.settings.get("delta", 0.1)
    charts = []
    for format, name in FORMAT_NAMES.items():
        rows = [row for row in audit.attacks if row.format == format]
        baseline = audit.baseline(format)
        if not rows or baseline is None or not baseline.informative:
            continue
        note = (
            "Each attack in the variant that did best on the selection facts, measured on the report facts."
        )
        charts.append(
            recovery_chart(f"What attacks recover, {name}", note, rows, limit=float(limit), has_null=has_null)
        )
    return charts


def _baseline_row(audit: AuditResult, entry: Baseline) -> BaselineRow:
    return BaselineRow(
        name=FORMAT_NAMES[entry.format],
        num_items=entry.num_items,
        forget=_by_role(entry.accuracy),
        retain=_by_role(entry.retain_accuracy),
        left=estimate_words(entry.knowledge_left) if entry.informative else "says nothing here",
        utility_loss=estimate_words(entry.utility_loss),
        verdict=audit.format_verdicts.get(entry.format, ""),
    )


def _by_role(estimates: dict[ModelRole, Estimate]) -> dict[ModelRole, str]:
    return {role: estimate_words(estimates[role]) if role in estimates else "" for role in _ROLES}


def _attack_row(row: AttackSummary, *, has_null: bool) -> AttackRow:
    adjusted = row.p_reachable_adjusted
    return AttackRow(
        name=attack_name(row),
        variant=row.variant,
        format=FORMAT_NAMES[row.format],
        accuracy=_by_role(row.accuracy),
        recovered=estimate_words(recovery(row, has_null=has_null)),
        reached=estimate_words(row.reachable),
        p_value="" if adjusted is None else quantity(adjusted, 2),
        retain=estimate_words(row.retain_change),
        cost=(duration(row.seconds), f"{quantity(row.forward_equivalents)} forwards"),
        note=row.note,
        counts=row.counts,
    )


def _control_row(row: ControlSummary) -> tuple[str, str, str, str]:
    return (
        row.attack.replace("_", " "),
        f"{row.variant} ({row.control})",
        FORMAT_NAMES[row.format],
        estimate_words(row.accuracy),
    )


def _gate_value(value: float | None) -> str:
    return "not defined" if value is None else share(value)
