"""Draw the charts of the report as accessible inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from falcon_unlearn.report.format import quantity, shorten
from falcon_unlearn.report.svg import (
    CHARACTER_WIDTH,
    Canvas,
    Scale,
    axes,
    band,
    domain,
    element,
    horizontal_axis,
    line,
    logarithmic_domain,
    path,
    text,
)

MAXIMUM_DOTS = 24
"""Lines with at most this many points show each of them."""
NUM_STYLES = 6
"""Line styles (colour and dash) that the style sheet defines."""


@dataclass(frozen=True)
class LegendEntry:
    """Explain one mark: `swatch` names the style class of the mark."""

    swatch: str
    label: str


@dataclass(frozen=True)
class Chart:
    """Hold one drawing with its words."""

    title: str
    note: str
    svg: Markup
    legend: tuple[LegendEntry, ...] = ()
    is_wide: bool = False


@dataclass(frozen=True)
class Series:
    """Hold one line; `style` is 0 for forget, 1 for retain, 2 and up for others."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int


def line_chart(
    title: str,
    note: str,
    y_label: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
    include: Sequence[float] = (),
    reference: float | None = None,
    marked_step: float | None = None,
    logarithmic: bool = False,
) -> Chart:
    """Draw lines over steps, with an optional horizontal reference and a marked step."""
    canvas = Canvas(480, 256, top=40)
    xs = [x for one in series for x, _ in one.points]
    values = [y for one in series for _, y in one.points]
    low, high = y_range or (logarithmic_domain(values) if logarithmic else domain(values, include=include))
    x = canvas.horizontal(*domain(xs, padding=0.0))
    y = canvas.vertical(low, high, logarithmic=logarithmic)
    axes(canvas, x, y, x_label, y_label)
    if reference is not None and low <= reference <= high:
        canvas.add(line(x.start, y(reference), x.end, y(reference), "reference"))
    if marked_step is not None:
        canvas.add(line(x(marked_step), y.start, x(marked_step), y.end, "marked"))
    for one in series:
        canvas.add(_series_path(one, x, y))
    if not any(math.isfinite(value) for one in series for _, value in one.points):
        canvas.add(text((x.start + x.end) / 2, (y.start + y.end) / 2, "no finite values", "axis-title"))
    legend = []
    if len(series) > 1:
        legend = [LegendEntry(f"series-{one.style % NUM_STYLES}", one.label) for one in series]
    if marked_step is not None:
        legend.append(LegendEntry("marked", f"step that was kept ({marked_step:.0f})"))
    description = f"{note} {_ranges(series)}"
    return Chart(title, note, canvas.render(title, title, description), tuple(legend))


def _series_path(one: Series, x: Scale, y: Scale) -> Markup:
    style = f"series-{one.style % NUM_STYLES}"
    placed = [
        (x(step), y(value)) if math.isfinite(step) and math.isfinite(value) else (math.nan, math.nan)
        for step, value in one.points
    ]
    drawn = path(placed, f"line {style}")
    finite = [point for point in placed if math.isfinite(point[0])]
    if len(finite) > MAXIMUM_DOTS:
        return drawn
    dots = [element("circle", cx=across, cy=up, r=2.4, class_=f"dot {style}") for across, up in finite]
    return drawn + Markup("").join(dots)


def _ranges(series: Sequence[Series]) -> str:
    parts = []
    for one in series:
        finite = [value for _, value in one.points if math.isfinite(value)]
        if finite:
            parts.append(f"{one.label}: from {quantity(finite[0])} to {quantity(finite[-1])}.")
    return " ".join(parts)


@dataclass(frozen=True)
class GridRow:
    """Hold one row of a heat grid: a number, or NaN, for every column."""

    label: str
    values: Sequence[float]
    low: float
    high: float
    """Values at which a cell is empty and full."""
    low_label: str = ""
    high_label: str = ""


def heat_grid(
    title: str,
    note: str,
    rows: Sequence[GridRow],
    columns: Sequence[int],
    x_label: str,
    *,
    outlined: int | None = None,
) -> Chart:
    """Draw rows of cells, stronger in colour for higher values; missing values are crossed out."""
    canvas = Canvas(960, 12 + 34 * len(rows) + 44, left=190, top=6)
    width = (canvas.width - canvas.left - canvas.right) / max(1, len(columns))
    for index, row in enumerate(rows):
        top = canvas.top + 34 * index
        canvas.add(text(canvas.left - 10, top + 18, shorten(row.label, 27), "row-label", "end"))
        for place, (column, value) in enumerate(zip(columns, row.values, strict=True)):
            canvas.add(_cell(canvas.left + width * place, top, width, value, row, f"{x_label} {column}"))
    _grid_columns(canvas, columns, width, 34 * len(rows) + canvas.top, x_label, outlined)
    return Chart(title, note, canvas.render(title, title, note), is_wide=True)


def _cell(left: float, top: float, width: float, value: float, row: GridRow, where: str) -> Markup:
    tip = element("title", f"{where}: {row.label} {quantity(value)}")
    if not math.isfinite(value):
        return element("rect", tip, x=left + 0.5, y=top, width=width - 1, height=28, class_="cell missing")
    span = row.high - row.low
    fullness = min(1.0, max(0.0, (value - row.low) / span)) if span > 0 else 0.0
    background = element("rect", x=left + 0.5, y=top, width=width - 1, height=28, class_="cell")
    return background + element(
        "rect",
        tip,
        x=left + 0.5,
        y=top,
        width=width - 1,
        height=28,
        class_="heat",
        fill_opacity=0.04 + 0.96 * fullness,
    )


def _grid_columns(
    canvas: Canvas, columns: Sequence[int], width: float, bottom: float, x_label: str, outlined: int | None
) -> None:
    widest = max((len(str(column)) for column in columns), default=1) * CHARACTER_WIDTH + 8
    every = max(1, math.ceil(widest / width))
    for place, column in enumerate(columns):
        middle = canvas.left + width * (place + 0.5)
        if place % every == 0:
            canvas.add(text(middle, bottom + 12, str(column)))
        if column == outlined:
            left = canvas.left + width * place
            size = {"width": width, "height": bottom - canvas.top - 4}
            canvas.add(element("rect", x=left, y=canvas.top - 1, class_="outline", **size))
    canvas.add(text((canvas.left + canvas.width - canvas.right) / 2, bottom + 31, x_label, "axis-title"))


@dataclass(frozen=True)
class Bar:
    """Hold one bar with its written value."""

    label: str
    value: float
    written: str


def bar_chart(title: str, note: str, bars: Sequence[Bar], x_label: str) -> Chart:
    """Draw horizontal bars from zero, each with its value written at its end."""
    canvas = Canvas(960, 18 + 26 * len(bars) + 44, left=190, right=110, top=6)
    finite = [bar.value for bar in bars if math.isfinite(bar.value)]
    x = canvas.horizontal(0.0, max(finite, default=0.0) or 1.0)
    baseline = canvas.top + 26 * len(bars) + 6
    for index, bar in enumerate(bars):
        top = canvas.top + 26 * index
        length = x(bar.value) - x.start if math.isfinite(bar.value) else 0.0
        canvas.add(text(x.start - 10, top + 17, shorten(bar.label, 27), "row-label", "end"))
        canvas.add(element("rect", x=x.start, y=top + 4, width=max(length, 1.0), height=17, class_="bar"))
        canvas.add(text(x.start + length + 7, top + 17, bar.written, "value", "start"))
    canvas.add(line(x.start, baseline, x.end, baseline, "axis"))
    horizontal_axis(canvas, x, baseline, x_label)
    description = f"{note} " + "; ".join(f"{bar.label}: {bar.written}" for bar in bars) + "."
    return Chart(title, note, canvas.render(title, title, description), is_wide=True)


def null_band(
    canvas: Canvas, x: Scale, y: Scale, rows: Sequence[tuple[float, float, float]], class_: str
) -> None:
    """Draw an interval band over layers from (x, low, high) rows."""
    placed = [
        (x(at), y(low), y(high)) if all(map(math.isfinite, (low, high))) else (math.nan, math.nan, math.nan)
        for at, low, high in rows
    ]
    if placed:
        xs, lows, highs = zip(*placed, strict=True)
        canvas.add(band(xs, lows, highs, class_))
