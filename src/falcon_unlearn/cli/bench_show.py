"""Results of benchmarks on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from falcon_unlearn.cli.terminal import clean

if TYPE_CHECKING:
    from rich.console import Console

    from falcon_unlearn.bench.muse.curves import MuseCurve
    from falcon_unlearn.bench.records import BenchResult


def show_results(rows: list[BenchResult], curves: list[MuseCurve], *, as_json: bool) -> None:
    """Print every row with its gates, cost and notes, then the curves."""
    from falcon_unlearn.cli.console import make_console

    if as_json:
        records = [record.model_dump_json(indent=2) for record in (*rows, *curves)]
        print("[" + ",\n".join(records) + "]")
        return
    console = make_console(sys.stdout)
    for row in rows:
        _show_row(console, row)
    for curve in curves:
        _show_curve(console, curve)


def _show_row(console: Console, row: BenchResult) -> None:
    title = row.label if row.seed is None else f"{row.label}, seed {row.seed}"
    table = _new_table(("metric", "value", "interval", "should be", "note"), title)
    for metric in row.metrics:
        value = "-" if metric.value is None else f"{metric.value:.4g}"
        interval = "" if metric.low is None else f"{metric.low:.4g} to {metric.high:.4g}"
        table.add_row(metric.name, value, interval, metric.desired, clean(metric.note))
    console.print(table)
    if row.gates:
        gates = _new_table(("gate", "value", "condition", ""), "gates of the reference models")
        for gate in row.gates:
            verdict = "passed" if gate.passed else "FAILED"
            gates.add_row(clean(gate.name), f"{gate.value:.4g}", clean(gate.condition), verdict)
        console.print(gates)
    for line in (*_cost(row), *row.notes):
        console.print(clean(line))


def _cost(row: BenchResult) -> list[str]:
    from falcon_unlearn.runs import format_bytes

    lines = []
    if row.seconds:
        lines.append("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in row.seconds.items()))
    if row.memory:
        peaks = [f"{name} {format_bytes(value)}" for name, value in row.memory.items()]
        lines.append("Peak memory: " + ", ".join(peaks))
    return lines


def _show_curve(console: Console, curve: MuseCurve) -> None:
    table = _new_table(("articles", "value", "interval"), f"{curve.label}: {curve.criterion}, {curve.metric}")
    for point in curve.points:
        value = "-" if point.value is None else f"{point.value:.4g}"
        interval = "" if point.low is None else f"{point.low:.4g} to {point.high:.4g}"
        table.add_row(str(point.num_articles), value, interval)
    console.print(table)


def show_aggregates(log: Path, retain_log: Path | None, *, as_json: bool) -> None:
    """Print the aggregates of an evaluation log, recomputed from its samples."""
    from falcon_unlearn.cli.console import make_console
    from falcon_unlearn.metrics.open_unlearning import aggregate_log

    aggregates = aggregate_log(log, retain_log)
    if as_json:
        from json import dumps

        print(dumps({name: vars(entry) for name, entry in aggregates.items()}, indent=2))
        return
    table = _new_table(("metric", "recomputed", "in the log", "samples", "note"))
    for name, entry in aggregates.items():
        values = ["-" if v is None else repr(v) for v in (entry.value, entry.published)]
        table.add_row(name, *values, str(entry.num_samples), entry.note)
    make_console(sys.stdout).print(table)


def _new_table(columns: tuple[str, ...], title: str | None = None) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=None if title is None else clean(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
