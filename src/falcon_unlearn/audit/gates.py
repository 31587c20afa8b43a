"""Hold an audit against limits that the user set, for continuous integration. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from falcon_unlearn.config.audit import GATE_PATTERN
from falcon_unlearn.errors import GateError, UsageError
from falcon_unlearn.results_audit import AuditGate, Baseline, Estimate, WorstCase

_DECIDING = ("text", "generation")


def check_gates(
    expressions: Sequence[str], baselines: Sequence[Baseline], worst: Sequence[WorstCase]
) -> list[AuditGate]:
    """Evaluate limits such as `worst<=0.2` over the informative formats in which the model answers itself.

    Each metric is the largest over these formats; where one of them is not defined, the gate fails.

    Raises:
        UsageError: An expression is no limit.
    """
    return [_gate(expression, baselines, worst) for expression in expressions]


def require_gates(gates: Sequence[AuditGate]) -> None:
    """Raise `GateError` if a limit was missed."""
    missed = [gate for gate in gates if not gate.passed]
    if missed:
        shown = "; ".join(
            f"{gate.expression} ({'not defined' if gate.value is None else f'{gate.value:.3f}'})"
            for gate in missed
        )
        raise GateError(
            f"the audit misses {len(missed)} of {len(gates)} limits: {shown}",
            hint="see the reasons in the result; the model may still be used, but not with this claim",
        )


def _gate(expression: str, baselines: Sequence[Baseline], worst: Sequence[WorstCase]) -> AuditGate:
    match = re.match(GATE_PATTERN, expression)
    if match is None:
        raise UsageError(f"gate {expression!r}: write METRIC<=NUMBER, for instance worst<=0.2")
    metric, sign, limit = match[1], match[2], float(match[3])
    value = _metric(metric, baselines, worst)
    passed = value is not None and (value <= limit if sign == "<=" else value < limit)
    return AuditGate(expression=expression, metric=metric, limit=limit, value=value, passed=passed)


def _metric(metric: str, baselines: Sequence[Baseline], worst: Sequence[WorstCase]) -> float | None:
    informative = [entry for entry in baselines if entry.informative]
    entries = [entry for entry in informative if entry.format in _DECIDING] or informative
    cases = [case for case in worst if case.format in {entry.format for entry in entries}]
    if metric in {"knowledge_left", "utility_loss"}:
        return _largest([_end(getattr(entry, metric), upper=False) for entry in entries])
    field = "net_recovered" if metric.startswith("worst") else "reachable"
    return _largest([_end(getattr(case, field), upper=metric.endswith("_upper")) for case in cases])


def _end(estimate: Estimate, *, upper: bool) -> float | None:
    return estimate.high if upper else estimate.value


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
