"""Compare results: group, average seeds, and judge every row against the retain model and the target."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from falcon_unlearn.errors import UsageError
from falcon_unlearn.report.comparison.cells import make_cell, make_columns
from falcon_unlearn.report.comparison.grouping import by_label, by_setting
from falcon_unlearn.report.comparison.notes import failed_gates, gather_notes
from falcon_unlearn.report.comparison.pareto import pareto_front
from falcon_unlearn.report.comparison.records import (
    DEFAULT_TOLERANCE,
    REFERENCE_ROLES,
    Cell,
    Column,
    Comparison,
    Group,
    Row,
)
from falcon_unlearn.report.comparison.seeds import usable
from falcon_unlearn.report.comparison.sources import Entry, read_results
from falcon_unlearn.results_bench import BenchResult

ROUNDING = 1e-9
"""0.60 - 0.58 is a little more than 0.02 in floating point."""
_TRIALS = re.compile(r"(?:.*[_ ])?trials\Z")
"""Entry of `BenchResult.recipe` that counts the settings tried."""


def compare_results(paths: Sequence[Path], *, utility_tolerance: float = DEFAULT_TOLERANCE) -> Comparison:
    """Read results and put those of one benchmark and setting side by side.

    Args:
        paths: result files, folders of them, and run folders, in any mix.
        utility_tolerance: largest difference from the target that counts as equal utility, in the unit of
            the utility axis.

    Raises:
        UsageError: a path or a tolerance that cannot be used.
        DataError: a path without results, or results that contradict each other.
    """
    if usable(utility_tolerance) is None or utility_tolerance < 0:
        raise UsageError(
            f"utility tolerance: got {utility_tolerance}, a number >= 0 is needed",
            hint="It is in the unit of the utility axis; 0.02 is two points of a share.",
        )
    groups = [build_group(members, utility_tolerance) for members in by_setting(read_results(paths))]
    return Comparison(utility_tolerance=utility_tolerance, groups=groups)


def build_group(entries: Sequence[Entry], utility_tolerance: float = DEFAULT_TOLERANCE) -> Group:
    """Compare the results of one benchmark and setting.

    Raises:
        DataError: two results for one seed, or one label for two methods.
    """
    members = by_label(entries)
    ordered = [entry for row in members for entry in row]
    first = entries[0].result
    target, retain = _reference(members, "target"), _reference(members, "retain")
    columns = make_columns([entry.result for entry in ordered], target, retain)
    utility = next((column for column in columns if column.name == first.utility_axis), None)
    higher_utility = utility is None or utility.desired != "lower"
    rows = [_row(row, columns) for row in members]
    rows = _with_equal_utility(rows, utility_tolerance)
    rows = _with_front(rows, higher_utility=higher_utility)
    return Group(
        benchmark=first.benchmark,
        setting=first.setting,
        forget_axis=first.forget_axis,
        utility_axis=first.utility_axis,
        higher_utility=higher_utility,
        target=target[0].label if target else None,
        retain=retain[0].label if retain else None,
        columns=columns,
        rows=rows,
        failed_gates=failed_gates(ordered),
        notes=gather_notes(ordered, rows),
    )


def _reference(members: Sequence[Sequence[Entry]], role: str) -> list[BenchResult]:
    """Return the seeds of the first row of a role; the notes tell where there are several rows."""
    for row in members:
        if row[0].result.role == role:
            return [entry.result for entry in row]
    return []


def _row(entries: Sequence[Entry], columns: Sequence[Column]) -> Row:
    results = [entry.result for entry in entries]
    first = results[0]
    is_method = first.role not in REFERENCE_ROLES
    cells = [make_cell(column, results, is_judged=is_method) for column in columns]
    found = {cell.metric: (cell, column) for cell, column in zip(cells, columns, strict=True)}
    axis, utility = found.get(first.forget_axis), found.get(first.utility_axis)
    memory = [result.peak_memory_bytes for result in results if result.peak_memory_bytes is not None]
    trials = [count for result in results if (count := _trials(result)) is not None]
    return Row(
        role=first.role,
        label=first.label,
        method=first.method,
        seeds=[result.seed for result in results],
        sources=[entry.name for entry in entries],
        cells=cells,
        forgetting_cost=_cost(*axis) if axis else None,
        utility=utility[0].value if utility else None,
        trials=max(trials, default=None),
        seconds=_mean_seconds([result.seconds for result in results]),
        seconds_total=_mean_total([result.seconds for result in results]),
        peak_memory_bytes=max(memory, default=None),
    )


def _cost(cell: Cell, column: Column) -> float | None:
    """Return what a low value of is good: distance to the retain model, or what is still known."""
    if cell.value is None:
        return None
    if column.retain is not None:
        return abs(cell.value - column.retain)
    return -cell.value if column.desired == "higher" else cell.value


def _trials(result: BenchResult) -> int | None:
    counts = [text for name, text in result.recipe.items() if _TRIALS.match(name.lower())]
    return next((int(text) for text in counts if text.isascii() and text.isdigit() and len(text) < 10), None)


def _mean_seconds(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for row in rows for stage in row)
    means = {stage: _mean([row[stage] for row in rows if stage in row]) for stage in stages}
    return {stage: mean for stage, mean in means.items() if mean is not None}


def _mean_total(rows: Sequence[dict[str, float]]) -> float | None:
    """Average the time over seeds, without evaluation: what making the model costs."""
    totals = [[value for stage, value in row.items() if not stage.startswith("eval")] for row in rows]
    return _mean(
        [math.fsum(total) for total in totals if total and all(usable(v) is not None for v in total)]
    )


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if usable(value) is not None]
    return math.fsum(known) / len(known) if known else None


def _with_equal_utility(rows: Sequence[Row], tolerance: float) -> list[Row]:
    wanted = next((row.utility for row in rows if row.role == "target"), None)
    if wanted is None:
        return list(rows)
    return [
        row
        if row.is_reference or row.utility is None
        else row.model_copy(update={"equal_utility": abs(row.utility - wanted) <= tolerance + ROUNDING})
        for row in rows
    ]


def _with_front(rows: Sequence[Row], *, higher_utility: bool) -> list[Row]:
    places = {
        index: (row.forgetting_cost, row.utility if higher_utility else -row.utility)
        for index, row in enumerate(rows)
        if not row.is_reference and row.forgetting_cost is not None and row.utility is not None
    }
    flags = dict(zip(places, pareto_front(list(places.values())), strict=True))
    return [row.model_copy(update={"on_front": flags.get(index)}) for index, row in enumerate(rows)]
