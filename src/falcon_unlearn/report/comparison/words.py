"""Say the cells, the rows and the outcome of a comparison in words, for every kind of table."""

from __future__ import annotations

from falcon_unlearn.report.comparison.records import Cell, Column, Group, Row
from falcon_unlearn.report.format import MISSING, duration, listing, plural, quantity
from falcon_unlearn.runs import format_bytes

ROW_COLUMNS = ("Pareto front", "equal utility", "trials", "time", "peak memory")
"""Columns after the metrics, see `row_facts`."""
ROLE_NAMES = {
    "base": "base model",
    "target": "target",
    "retain": "retain model",
    "retain_replicate": "retain replicate",
    "unlearned": "",
    "other": "",
}
DESIRED_NAMES = {
    "lower": "lower is better",
    "higher": "higher is better",
    "retain model": "near the retain model is better",
    "none": "",
}
READING = (
    "In brackets: the interval over items for a single result, over seeds (Student's t) for several, "
    'followed by the lowest and the highest seed. Numbers "to retain" are differences from the retain model. '
    "Rows whose intervals overlap are not told apart. Time is the mean over seeds of everything but the "
    "evaluation; memory is the peak."
)


def number(value: float | None) -> str:
    """Write a number with three decimals, so that a column can be read downwards; else shortly."""
    if value is None or (value and not 1e-3 <= abs(value) < 1e5):
        return quantity(value, 2)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def interval_words(cell: Cell) -> str:
    """Write the interval of a cell; empty where there is none."""
    known = cell.low is not None and cell.high is not None
    return f"[{number(cell.low)}, {number(cell.high)}]" if known else ""


def cell_lines(cell: Cell) -> list[str]:
    """Write value, interval, range of the seeds and distance to the retain model, one line each."""
    if cell.value is None:
        return [MISSING]
    lines = [number(cell.value)]
    if interval_words(cell):
        lines.append(interval_words(cell))
    if cell.num_seeds > 1:
        lines.append(f"{number(cell.minimum)} to {number(cell.maximum)}")
    if cell.distance is not None:
        sign = "\u2212" if cell.distance < 0 else "+"
        lines.append(f"{sign}{number(abs(cell.distance))} to retain")
    if cell.state:
        lines.append(cell.state)
    return lines


def column_lines(column: Column) -> list[str]:
    """Write the name of a metric and what is wanted of it."""
    wanted = DESIRED_NAMES[column.desired]
    return [column.name, wanted] if wanted else [column.name]


def row_label(row: Row) -> list[str]:
    """Write the label of a row, its role and its seeds."""
    lines = [row.label]
    if ROLE_NAMES[row.role] and ROLE_NAMES[row.role] not in row.label.lower():
        lines.append(ROLE_NAMES[row.role])
    if row.method and row.method.lower() not in row.label.lower():
        lines.append(row.method)
    if len(row.seeds) > 1:
        lines.append(plural(len(row.seeds), "seed"))
    return lines


def row_facts(row: Row) -> list[str]:
    """Write the cells of `ROW_COLUMNS`."""
    front = {None: "", True: "on it", False: "dominated"}[row.on_front]
    equal = {None: "", True: "equal", False: "no"}[row.equal_utility]
    unsaid = "" if row.is_reference else MISSING
    return [
        front,
        equal,
        unsaid if row.trials is None else f"{row.trials:,}",
        unsaid if row.seconds_total is None else duration(row.seconds_total),
        unsaid if row.peak_memory_bytes is None else format_bytes(row.peak_memory_bytes),
    ]


def conclusions(group: Group, tolerance: float) -> list[str]:
    """Say what the group shows: the front, methods at equal utility, and who forgot too much."""
    methods = [row for row in group.rows if not row.is_reference]
    sentences = _front_sentences(group, methods)
    sentences += _equal_utility_sentences(group, methods, tolerance)
    sentences += _state_sentences(group, methods)
    unplaced = [row.label for row in methods if row.on_front is None]
    if unplaced:
        sentences.append(f"Without a number on both axes, so not in the picture: {listing(unplaced)}.")
    return sentences


def _front_sentences(group: Group, methods: list[Row]) -> list[str]:
    front = [row.label for row in methods if row.on_front]
    beaten = [row.label for row in methods if row.on_front is False]
    if not front:
        return []
    start = f"On the Pareto front of {group.cost_name} and {group.utility_axis}: {listing(front)}."
    return [f"{start} Dominated: {listing(beaten)}." if beaten else start]


def _equal_utility_sentences(group: Group, methods: list[Row], tolerance: float) -> list[str]:
    judged = [row for row in methods if row.equal_utility is not None and row.forgetting_cost is not None]
    target = group.row("target")
    if not judged or target is None:
        return []
    equal = sorted((row for row in judged if row.equal_utility), key=lambda row: row.forgetting_cost or 0.0)
    level = f"within {quantity(tolerance)} of {target.label} ({number(target.utility)})"
    if not equal:
        return [f"No method keeps {group.utility_axis} {level}."]
    order = [f"{row.label} {number(row.forgetting_cost)}" for row in equal]
    return [f"At equal utility, {group.utility_axis} {level}, by {group.cost_name}: {listing(order)}."]


def _state_sentences(group: Group, methods: list[Row]) -> list[str]:
    sentences = []
    for state, words in (
        ("over-forgetting", "Over-forgetting, which is no merit"),
        ("outside retain", "Outside the range of the retain models, side unknown for want of a target"),
    ):
        named = [
            f"{row.label} on {listing(metrics)}"
            for row in methods
            if (metrics := [cell.metric for cell in row.cells if cell.state == state])
        ]
        if named:
            sentences.append(f"{words}: {'; '.join(named)}.")
    return sentences
