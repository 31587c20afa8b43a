"""State the honest limits of a run: what holds for every run, and what holds for this one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from falcon_unlearn.report.audit_view import audit_note
from falcon_unlearn.report.compare import Change
from falcon_unlearn.report.format import listing, plural, share
from falcon_unlearn.report.records import RunRecords
from falcon_unlearn.report.verdict import AUDIT_NOTE, Verdict
from falcon_unlearn.results_audit import AuditResult

SMALL_SET = 50
"""Sets with fewer items are named as small."""
LOW_RANK_STABILITY = 0.7

_UNAUDITED = (
    AUDIT_NOTE,
    "Related methods that steer a few early layers have been undone by fine-tuning on related text, and this "
    "run did not try. Do not rely on this model against someone who can change its weights.",
)
_NO_NULL = (
    "There is no comparison with a model that never saw the forget data, so guessing is the only floor."
)
_WORDINGS = (
    "Only the wordings, formats and languages in the evaluation sets were tried. Knowledge may still show in "
    "others, with context, or over several turns."
)


def general_limits(audit: AuditResult | None = None) -> tuple[str, ...]:
    """Return what no run of this program can show, less what the audit did try."""
    if audit is None:
        return (*_UNAUDITED, _WORDINGS, _NO_NULL)
    tried = (
        f"{audit_note(audit)} Attacks that were not run, longer budgets and other facts may recover more.",
        _WORDINGS,
    )
    return tried if audit.null_source == "model" else (*tried, _NO_NULL)


def specific_limits(records: RunRecords, compared: Sequence[Change] | None, verdict: Verdict) -> list[str]:
    """Return the warnings that this run's own numbers call for."""
    warnings = [*_training_limits(records), *_selection_limits(records), *records.data.warnings]
    if compared is None:
        return ["Nothing was measured before and after, so there is no evidence of any effect.", *warnings]
    skipped = {reason for result in (records.before, records.after) if result for reason in result.skipped}
    return [
        *_size_limits(compared),
        *_overlap_limits(compared),
        *_format_limits(compared),
        *([_below_chance_limit(verdict)] if verdict.below_chance else []),
        *[f"Not computed: {reason}" for reason in sorted(skipped)],
        *warnings,
    ]


def _below_chance_limit(verdict: Verdict) -> str:
    names = listing(verdict.below_chance)
    return f"Over-forgetting on {names}: below guessing, the answers reveal what is avoided."


def _size_limits(compared: Sequence[Change]) -> list[str]:
    sizes = {change.set_name: change.after.num_items for change in compared}
    small = [f"{name} ({number})" for name, number in sizes.items() if number < SMALL_SET]
    if not small:
        return []
    return [f"Small sets, in which only large changes can be seen: {listing(small)}."]


def _overlap_limits(compared: Sequence[Change]) -> list[str]:
    wanted = [
        c for c in compared if c.role == "forget" and c.before.desired != "unchanged" and not c.is_clear
    ]
    names = [f"{change.set_name}, {change.label}" for change in wanted]
    lines = [f"No clear change, though one was wanted: {'; '.join(names)}."] if names else []
    level = compared[0].level if compared else 0.05
    expected = len(compared) * level
    if expected >= 0.5:
        lines.append(
            f"{plural(len(compared), 'comparison')} at the {share(level)} level, not corrected for their "
            f"number: about {expected:.1f} would look clear by chance alone."
        )
    return lines


def _format_limits(compared: Sequence[Change]) -> list[str]:
    broken = [
        change.set_name
        for change in compared
        if change.before.name == "letter_mass" and change.after.value < 0.5 * change.before.value
    ]
    if not broken:
        return []
    return [
        f"On {listing(broken)} the model now rarely answers with an option letter, so the accuracy by letter "
        "says more about format than about knowledge."
    ]


def _training_limits(records: RunRecords) -> list[str]:
    training, lines = records.training, []
    if training.status == "stopped_on_budget":
        lines.append(
            f"Training stopped on its utility budget after {plural(training.steps_done, 'step')} of "
            f"{training.steps_planned}; the parameters of step {training.kept_step} were kept."
        )
    if any(not math.isfinite(change.norm_change) for change in training.changes):
        lines.append("A changed tensor holds values that are not finite.")
    if training.changes and all(change.norm_change == 0 for change in training.changes):
        lines.append("No trained tensor differs from the original: the saved model is unchanged.")
    return lines


def _selection_limits(records: RunRecords) -> list[str]:
    selection, lines = records.selection, []
    if selection.rank_stability is not None and selection.rank_stability < LOW_RANK_STABILITY:
        lines.append(
            "The ranking of layers is unstable under resampling (rank correlation "
            f"{selection.rank_stability:.2f}): another sample of the data could have chosen another layer."
        )
    flagged: dict[str, list[str]] = {}
    for row in selection.layers:
        for flag in row.flags:
            flagged.setdefault(flag, []).append(str(row.layer))
    return [*lines, *[f"Selection, {flag}: layer {listing(layers)}." for flag, layers in flagged.items()]]
