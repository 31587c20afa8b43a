"""Draw the two charts that carry the argument: the layer curve and the before/after intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from falcon_unlearn.report.charts import Chart, GridRow, LegendEntry, heat_grid, null_band
from falcon_unlearn.report.compare import Change
from falcon_unlearn.report.format import in_unit, quantity, share, shorten
from falcon_unlearn.report.svg import (
    Canvas,
    Scale,
    axes,
    domain,
    element,
    horizontal_axis,
    line,
    logarithmic_domain,
    path,
    spans_decades,
    text,
)
from falcon_unlearn.results import LayerValue, Metric, SelectionResult

ROLE_NAMES = {
    "forget": "To forget: should fall",
    "neighbour": "Neighbours: should stay",
    "retain": "To keep: should stay",
    "general": "General ability: should stay",
}


def layer_chart(selection: SelectionResult, score_name: str) -> Chart:
    """Draw the score of every layer with its bootstrap interval and its permutation null."""
    layers = selection.layers
    canvas = Canvas(960, 340, left=66, top=70)
    bounds = [(row.value, row.low, row.high, row.null_low, row.null_high) for row in layers]
    numbers = [value for row in bounds for value in row if value is not None]
    x = canvas.horizontal(layers[0].layer - 0.5, layers[-1].layer + 0.5)
    y = canvas.vertical(*domain(numbers))
    _candidate_range(canvas, x, y, layers)
    axes(canvas, x, y, "block (0 is the first)", f"{score_name}{_unit(selection)}")
    has_null = any(row.null_low is not None and row.null_high is not None for row in layers)
    null_rows = [(row.layer, _number(row.null_low), _number(row.null_high)) for row in layers]
    null_band(canvas, x, y, null_rows, "band null")
    null_band(canvas, x, y, [(row.layer, row.low, row.high) for row in layers], "band interval")
    canvas.add(path(((x(row.layer), _place(y, row.value)) for row in layers), "line series-1"))
    for row in layers:
        canvas.add(_layer_dot(row, x, y, selection))
    _layer_labels(canvas, x, y, selection)
    legend = [LegendEntry("series-1", score_name), LegendEntry("interval", "bootstrap interval")]
    if has_null:
        legend.append(LegendEntry("null", "range under random labels or pairs"))
    legend.append(LegendEntry("candidates", "layers that may be chosen"))
    title = f"{score_name.capitalize()} by layer"
    note = (
        f"Chosen: layer {selection.layer}. Best candidate on its own: layer {selection.best_layer}. "
        "Hollow points may not be chosen."
    )
    return Chart(title, note, canvas.render(title, title, note), tuple(legend), is_wide=True)


def layer_strip(selection: SelectionResult, score_name: str) -> Chart:
    """Draw score and share of bootstrap wins as two rows of cells."""
    values = [row.value for row in selection.layers]
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    rows = [
        GridRow(score_name, values, min(finite), max(finite)),
        GridRow("share of resamples won", [row.probability_best for row in selection.layers], 0.0, 1.0),
    ]
    note = (
        "A stronger colour is a higher value. "
        f"First row: {quantity(min(finite))} to {quantity(max(finite))}{_unit(selection)}; "
        "second row: share of bootstrap resamples that a layer wins. Outlined: chosen."
    )
    columns = [row.layer for row in selection.layers]
    return heat_grid("Heat strip over layers", note, rows, columns, "block", outlined=selection.layer)


def _unit(selection: SelectionResult) -> str:
    return "" if selection.unit == "none" else f", {selection.unit}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _place(scale: Scale, value: float) -> float:
    return scale(value) if math.isfinite(value) else math.nan


def _candidate_range(canvas: Canvas, x: Scale, y: Scale, layers: Sequence[LayerValue]) -> None:
    for allowed, run in groupby(layers, key=lambda row: row.candidate):
        members = list(run)
        if allowed:
            left, right = x(members[0].layer - 0.5), x(members[-1].layer + 0.5)
            size = {"width": right - left, "height": y.start - y.end}
            canvas.add(element("rect", x=left, y=y.end, class_="candidates", **size))


def _layer_dot(row: LayerValue, x: Scale, y: Scale, selection: SelectionResult) -> Markup:
    if not math.isfinite(row.value):
        return Markup("")
    words = f"layer {row.layer}: {quantity(row.value)} [{quantity(row.low)}, {quantity(row.high)}]"
    tip = element("title", "; ".join([words, *row.flags]))
    marked = row.layer in {selection.layer, selection.best_layer}
    kind = "dot series-1" if row.candidate else "hollow series-1"
    return element("circle", tip, cx=x(row.layer), cy=y(row.value), r=6.0 if marked else 3.2, class_=kind)


def _layer_labels(canvas: Canvas, x: Scale, y: Scale, selection: SelectionResult) -> None:
    """Label the chosen and the best layer on two lines, so that they cannot overlap."""
    same = selection.layer == selection.best_layer
    lead = "chosen and best" if same else "chosen"
    labels = [(selection.layer, f"{lead}: layer {selection.layer}")]
    if not same:
        labels.append((selection.best_layer, f"best: layer {selection.best_layer}"))
    values = {row.layer: row.value for row in selection.layers}
    for index, (layer, label) in enumerate(labels):
        if not math.isfinite(values.get(layer, math.nan)):
            continue
        at, height = x(layer), y.end - 34 + 16 * index
        anchor = "start" if at < (x.start + x.end) / 2 else "end"
        canvas.add(line(at, height + 5, at, y(values[layer]) - 7, "pointer"))
        canvas.add(text(at + (-4 if anchor == "start" else 4), height, label, "callout", anchor))


@dataclass(frozen=True)
class _Row:
    """Place one dumbbell, or one heading where `change` is None."""

    top: float
    heading: str = ""
    change: Change | None = None
    first_of_set: bool = False


def dumbbell_chart(
    title: str, note: str, compared: Sequence[Change], x_label: str, *, is_share: bool
) -> Chart:
    """Draw before and after with intervals, grouped by role, one row for each metric."""
    rows, height = _dumbbell_rows(compared)
    canvas = Canvas(960, height + 50, left=330, right=24, top=4)
    numbers = [v for c in compared for m in (c.before, c.after) for v in (m.value, m.low, m.high)]
    logarithmic = not is_share and spans_decades(numbers)
    if is_share:
        low, high = 0.0, 1.0
    else:
        low, high = logarithmic_domain(numbers) if logarithmic else domain(numbers)
    x = canvas.horizontal(low, high, logarithmic=logarithmic)
    for value in x.ticks(8):
        canvas.add(line(x(value), canvas.top, x(value), height, "grid"))
    for row in rows:
        _draw_row(canvas, x, row)
    canvas.add(line(x.start, height, x.end, height, "axis"))
    horizontal_axis(canvas, x, height, x_label + (" (logarithmic)" if logarithmic else ""))
    legend = [LegendEntry(kind, kind) for kind in ("before", "after")]
    legend.append(LegendEntry("whisker", "interval"))
    if any(change.before.chance is not None for change in compared):
        legend.append(LegendEntry("chance", "guessing"))
    description = " ".join([note, *[_described(change) for change in compared]])
    return Chart(title, note, canvas.render(title, title, description), tuple(legend), is_wide=True)


def _described(change: Change) -> str:
    unit = change.before.unit
    moved = f"{in_unit(change.before.value, unit)} to {in_unit(change.after.value, unit)}"
    return f"{change.set_name}, {change.label}: {moved}."


def _dumbbell_rows(compared: Sequence[Change]) -> tuple[list[_Row], float]:
    rows: list[_Row] = []
    top = 4.0
    for role, name in ROLE_NAMES.items():
        members = [change for change in compared if change.role == role]
        if not members:
            continue
        rows.append(_Row(top, heading=name))
        top += 28
        previous = None
        for change in members:
            rows.append(_Row(top, change=change, first_of_set=change.set_name != previous))
            previous, top = change.set_name, top + 28
        top += 8
    return rows, top


def _draw_row(canvas: Canvas, x: Scale, row: _Row) -> None:
    if row.change is None:
        canvas.add(text(8, row.top + 19, row.heading, "group", "start"))
        return
    change, middle = row.change, row.top + 14
    if row.first_of_set:
        canvas.add(text(8, middle + 4, shorten(change.set_name, 29), "row-label strong", "start"))
    canvas.add(text(x.start - 14, middle + 4, change.short_label, "row-label", "end"))
    chance = change.before.chance
    if chance is not None:
        canvas.add(line(x(chance), row.top + 1, x(chance), row.top + 27, "chance"))
    if math.isfinite(change.before.value) and math.isfinite(change.after.value):
        canvas.add(line(x(change.before.value), middle, x(change.after.value), middle, "connector"))
    canvas.add(_marker(x, change.before, middle - 5, "before"), _marker(x, change.after, middle + 5, "after"))


def _marker(x: Scale, metric: Metric, y: float, kind: str) -> Markup:
    if not math.isfinite(metric.value):
        return Markup("")
    value, low, high = (in_unit(v, metric.unit) for v in (metric.value, metric.low, metric.high))
    tip = element("title", f"{kind}: {value} [{low}, {high}], {metric.num_items} items")
    ends = [x(v) if math.isfinite(v) else x(metric.value) for v in (metric.low, metric.high)]
    whisker = line(ends[0], y, ends[1], y, f"whisker {kind}")
    return whisker + element("circle", tip, cx=x(metric.value), cy=y, r=4.6, class_=f"mark {kind}")


def chance_words(compared: Sequence[Change]) -> str:
    """Name the guessing level where all tests share one."""
    levels = {change.before.chance for change in compared if change.before.chance is not None}
    return f"Guessing gives {share(levels.pop())}. " if len(levels) == 1 else ""
