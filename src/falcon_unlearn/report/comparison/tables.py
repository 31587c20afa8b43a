"""Write a comparison as CSV and as Markdown."""

from __future__ import annotations

import csv
import io

from falcon_unlearn.report.card import escape_markdown
from falcon_unlearn.report.comparison.records import Cell, Comparison, Group, Row
from falcon_unlearn.report.comparison.words import (
    READING,
    ROW_COLUMNS,
    cell_lines,
    column_lines,
    conclusions,
    row_facts,
    row_label,
)
from falcon_unlearn.report.format import clean

_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_FIRST = ("benchmark", "setting", "role", "label", "method", "seeds")
_LAST = (
    "forgetting cost",
    "pareto front",
    "equal utility",
    "trials",
    "seconds",
    "peak memory bytes",
    "files",
)
_METRIC_PARTS = ("", " low", " high", " interval", " minimum", " maximum", " minus retain", " state")

CsvCell = str | float | int | None


def to_csv(comparison: Comparison) -> str:
    """Write one table for all groups, a metric in eight columns; numbers keep every digit.

    Text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    metrics = list(dict.fromkeys(column.name for group in comparison.groups for column in group.columns))
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    header = [*_FIRST, *(name + part for name in metrics for part in _METRIC_PARTS), *_LAST]
    writer.writerow([_safe(name) for name in header])
    for group in comparison.groups:
        for row in group.rows:
            writer.writerow(_csv_row(group, row, metrics))
    return stream.getvalue()


def _csv_row(group: Group, row: Row, metrics: list[str]) -> list[CsvCell]:
    setting = "; ".join(f"{key}={value}" for key, value in group.setting.items())
    seeds = " ".join("none" if seed is None else str(seed) for seed in row.seeds)
    texts = [group.benchmark, setting, row.role, row.label, row.method, seeds]
    numbers: list[CsvCell] = [part for name in metrics for part in _csv_cell(row.cell(name))]
    return [
        *map(_safe, texts),
        *numbers,
        row.forgetting_cost,
        _yes(row.on_front),
        _yes(row.equal_utility),
        row.trials,
        row.seconds_total,
        row.peak_memory_bytes,
        _safe(" ".join(row.sources)),
    ]


def _csv_cell(cell: Cell | None) -> list[CsvCell]:
    if cell is None:
        return [None] * len(_METRIC_PARTS)
    interval = "" if cell.interval == "none" else cell.interval
    ends = [cell.low, cell.high]
    return [cell.value, *ends, interval, cell.minimum, cell.maximum, cell.distance, cell.state]


def _yes(flag: bool | None) -> str:
    return {None: "", True: "yes", False: "no"}[flag]


def _safe(text: str) -> str:
    """Keep a spreadsheet from running text of others."""
    line = " ".join(clean(text).split())
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line


def to_markdown(comparison: Comparison) -> str:
    """Write one section with a table, the outcome and the notes for every group."""
    return "\n".join(_section(group, comparison.utility_tolerance) for group in comparison.groups)


def _section(group: Group, tolerance: float) -> str:
    metrics = [_lines(column_lines(column)) for column in group.columns]
    facts = [escape_markdown(name) for name in ROW_COLUMNS]
    lines = [f"## {escape_markdown(group.title)}", "", _table_row(["row", *metrics, *facts])]
    lines.append("|---|" + "--:|" * (len(metrics) + len(facts)))
    for row in group.rows:
        cells = [_lines(cell_lines(cell)) for cell in row.cells]
        lines.append(_table_row([_lines(row_label(row)), *cells, *map(escape_markdown, row_facts(row))]))
    lines += ["", READING, ""]
    lines += [f"- {escape_markdown(sentence)}" for sentence in conclusions(group, tolerance)]
    lines += [f"- **failed gate:** {escape_markdown(gate)}" for gate in group.failed_gates]
    lines += [f"- note: {escape_markdown(note)}" for note in group.notes]
    return "\n".join(lines) + "\n"


def _lines(parts: list[str]) -> str:
    return "<br>".join(escape_markdown(part) for part in parts)


def _table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
