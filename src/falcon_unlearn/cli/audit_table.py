"""Show the result of an audit in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from falcon_unlearn.cli.console import format_seconds
from falcon_unlearn.cli.tables import line, new_table, table_row
from falcon_unlearn.results_audit import AuditResult, Estimate


def finish_audit(folder: Path, *, shown: bool) -> None:
    """Show the audit of a run, if it has one, and fail if it misses a limit.

    Raises:
        GateError: A limit was missed.
    """
    import sys

    from falcon_unlearn.audit.gates import require_gates
    from falcon_unlearn.cli.console import make_console
    from falcon_unlearn.results_audit import AUDIT_FILE
    from falcon_unlearn.runs import RECORDS

    path = folder / RECORDS / AUDIT_FILE
    if not path.is_file():
        return
    result = AuditResult.model_validate_json(path.read_bytes())
    if shown:
        show_audit(result, make_console(sys.stdout))
    require_gates(result.gates)


def show_audit(result: AuditResult, console: Console) -> None:
    """Show what is known without attack, what every attack recovers, and the verdict with its reasons."""
    _show_baselines(result, console)
    _show_attacks(result, console)
    for warning in result.warnings:
        line(console, f"warning {warning.number} ({warning.name}): {warning.message}", "yellow")
    for reason in result.skipped:
        line(console, f"not run: {reason}", "dim")
    line(console, f"Verdict: {result.verdict}", "bold")
    for reason in result.reasons:
        line(console, f"  {reason}")
    for case in result.worst:
        line(
            console,
            f"Worst case, {case.format}: {case.attack} ({case.variant}), net {_cell(case.net_recovered)}",
        )
    for gate in result.gates:
        value = "not defined" if gate.value is None else f"{gate.value:.3f}"
        line(console, f"gate {gate.expression}: {value}, {'met' if gate.passed else 'MISSED'}")
    line(console, f"{format_seconds(result.seconds)}, {result.tier} tier, seeds {result.seeds}")


def _show_baselines(result: AuditResult, console: Console) -> None:
    table = new_table(
        "Without attack",
        "format",
        "facts>",
        "original>",
        "unlearned>",
        "null>",
        "knowledge left>",
        "retain loss>",
    )
    for entry in result.baselines:
        known = {role: _number(estimate) for role, estimate in entry.accuracy.items()}
        table_row(
            table,
            entry.format,
            str(entry.num_items),
            known.get("original", ""),
            known.get("unlearned", ""),
            known.get("null", "-"),
            _cell(entry.knowledge_left),
            _cell(entry.utility_loss),
            style=None if entry.informative else "dim",
        )
    console.print(table)


def _show_attacks(result: AuditResult, console: Console) -> None:
    table = new_table(
        "Attacks, chosen on selection facts, measured on report facts",
        "attack",
        "variant",
        "format",
        "unlearned>",
        "null>",
        "original>",
        "net recovered>",
        "reaches>",
        "p>",
        "retain>",
        "passes>",
        "time>",
        "",
    )
    for entry in result.attacks:
        accuracy = {role: _number(estimate) for role, estimate in entry.accuracy.items()}
        adjusted = entry.p_reachable_adjusted
        retain = entry.retain_accuracy.get("unlearned")
        table_row(
            table,
            entry.attack,
            entry.variant,
            entry.format,
            accuracy.get("unlearned", ""),
            accuracy.get("null", "-"),
            accuracy.get("original", "-"),
            _cell(entry.net_recovered),
            _cell(entry.reachable),
            "" if adjusted is None else f"{adjusted:.2g}",
            "" if retain is None else _number(retain),
            f"{entry.forward_equivalents:.0f}",
            format_seconds(entry.seconds),
            "" if entry.counts else "does not count",
            style=None if entry.counts else "dim",
        )
    console.print(table)


def _number(estimate: Estimate) -> str:
    return "-" if estimate.value is None else f"{estimate.value:.2f}"


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
