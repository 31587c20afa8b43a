"""Draw forgetting against utility: methods as points, models to compare to as lines and marks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from falcon_unlearn.report.comparison.labels import Box, Placement, place_labels, text_width
from falcon_unlearn.report.comparison.records import Cell, Column, Group, Row
from falcon_unlearn.report.comparison.words import ROLE_NAMES, interval_words, number
from falcon_unlearn.report.format import shorten
from falcon_unlearn.report.svg import (
    Canvas,
    Scale,
    axes,
    domain,
    element,
    line,
    quantity_attribute,
    text,
)

LABEL_LENGTH = 26
"""Characters of a label in the picture; the table holds all of it."""
_ZONE_SHARE = 0.14
"""Part of the range of values that the over-forgetting zone takes at least."""
_SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Picture:
    """Hold one drawing with its words."""

    canvas: Canvas
    title: str
    description: str

    def inline(self, identifier: str) -> Markup:
        """Write the drawing for a page, whose style sheet gives the colours."""
        return self.canvas.render(identifier, self.title, self.description)

    def standalone(self, style: str) -> str:
        """Write the drawing as a file of its own.

        Args:
            style: style sheet of ours; no text of others may be in it.
        """
        width, height = self.canvas.width, self.canvas.height
        drawing = element(
            "svg",
            element("title", self.title),
            element("desc", self.description),
            Markup("<style>{}</style>").format(Markup(style)),
            element("rect", width=width, height=height, class_="paper"),
            *self.canvas.parts,
            xmlns=_SVG_NAMESPACE,
            viewBox=f"0 0 {quantity_attribute(width)} {quantity_attribute(height)}",
            width=width,
            height=height,
            role="img",
            class_="chart",
        )
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{drawing}\n'


@dataclass(frozen=True)
class _Point:
    """Pair the two cells of one row; both hold a value."""

    row: Row
    forget: Cell
    utility: Cell
    x: float
    y: float


def draw(group: Group, tolerance: float) -> Picture | None:
    """Draw a group; None where no row has a number on both axes."""
    placed = list(_placed(group))
    if not placed:
        return None
    column = group.column(group.forget_axis)
    canvas = Canvas(960, 560, left=66, right=24, top=74, bottom=48)
    x = canvas.horizontal(*_forget_domain([forget for _, forget, _ in placed], column))
    utilities = [value for _, _, cell in placed for value in _extent(cell)]
    y = canvas.vertical(*domain(utilities, padding=0.1))
    names = _zones(canvas, x, y, group, tolerance)
    axes(canvas, x, y, f"{group.forget_axis} (how much is still known)", _utility_label(group), whole_x=False)
    _reference_lines(canvas, x, y, group)
    points = [
        _Point(row, forget, utility, x(forget.value or 0.0), y(utility.value or 0.0))
        for row, forget, utility in placed
    ]
    for point in points:
        kind = "whisker model" if point.row.is_reference else "whisker method"
        canvas.add(*(line(*bar, kind) for bar in _bars(point, x, y)))
    for point in points:
        canvas.add(_mark(point, group))
    lines = _line_boxes(x, y, group)
    lines += [Box(a - 1, b - 1, c + 1, d + 1) for point in points for a, b, c, d in _bars(point, x, y)]
    _labels(canvas, points, Box(x.start, y.end, x.end, y.start), names, lines)
    _legend(canvas, group, any_interval=any(point.utility.low is not None for point in points))
    title = f"Forgetting against utility: {group.title}"
    described = " ".join(_words(point.row, point.forget, point.utility, group) for point in points)
    return Picture(canvas, title, described)


def _placed(group: Group) -> Iterable[tuple[Row, Cell, Cell]]:
    for row in group.rows:
        forget, utility = row.cell(group.forget_axis), row.cell(group.utility_axis)
        if forget and utility and forget.value is not None and utility.value is not None:
            yield row, forget, utility


def _extent(cell: Cell) -> list[float]:
    """Return what the picture must show; intervals over few seeds are so wide that they may leave it."""
    ends = [cell.value, cell.minimum, cell.maximum]
    if cell.interval == "items":
        ends += [cell.low, cell.high]
    return [end for end in ends if end is not None]


def _forget_domain(cells: list[Cell], column: Column | None) -> tuple[float, float]:
    values = [value for cell in cells for value in _extent(cell)]
    if column is None or column.retain_low is None or column.retain_high is None:
        return domain(values)
    low, high = domain([*values, column.retain_low, column.retain_high])
    room = _ZONE_SHARE * (high - low)
    if column.forgetting == "higher":
        return low, max(high, column.retain_high + room)
    wanted = min(low, column.retain_low - room)
    # Where nothing is negative, an axis below zero would only confuse.
    return (max(wanted, 0.0) if min(values) >= 0 else wanted), high


def _utility_label(group: Group) -> str:
    return f"{group.utility_axis} ({'higher' if group.higher_utility else 'lower'} is better)"


def _zones(canvas: Canvas, x: Scale, y: Scale, group: Group, tolerance: float) -> list[Box]:
    """Shade over-forgetting, the range of the retain models and equal utility; return their names' places."""
    names = []
    column, target = group.column(group.forget_axis), group.row("target")
    if column is not None and column.retain_low is not None and column.retain_high is not None:
        low, high = x(column.retain_low), x(column.retain_high)
        left, right = (x.start, low) if column.forgetting == "lower" else (high, x.end)
        canvas.add(_area(left, y.end, right, y.start, "over-zone"))
        canvas.add(_area(low, y.end, high, y.start, "retain-zone"))
        words = "over-forgetting: less known than the retain model knows"
        words = words if text_width(words) < right - left else "over-forgetting"
        start = left + 5 if column.forgetting == "lower" else right - text_width(words) - 5
        canvas.add(text(start, y.start - 7, words, "zone-name", "start"))
        names.append(Box(start, y.start - 20, start + text_width(words), y.start - 3))
    if target is not None and target.utility is not None:
        top, bottom = y(target.utility + tolerance), y(target.utility - tolerance)
        canvas.add(_area(x.start, top, x.end, bottom, "equal-zone"))
        words = "equal utility"
        start = x.end - text_width(words) - 5
        canvas.add(text(start, top - 4, words, "band-name", "start"))
        names.append(Box(start, top - 16, x.end, top))
    return names


def _area(left: float, top: float, right: float, bottom: float, class_: str) -> Markup:
    return element("rect", x=left, y=top, width=right - left, height=bottom - top, class_=class_)


def _reference_lines(canvas: Canvas, x: Scale, y: Scale, group: Group) -> None:
    """Draw what the retain model knows and what the target is good for across the picture."""
    column, target = group.column(group.forget_axis), group.row("target")
    if column is not None and column.retain is not None:
        canvas.add(line(x(column.retain), y.start, x(column.retain), y.end, "reference retain-line"))
    if target is not None and target.utility is not None:
        canvas.add(line(x.start, y(target.utility), x.end, y(target.utility), "reference target-line"))


def _line_boxes(x: Scale, y: Scale, group: Group) -> list[Box]:
    """Return the places of the lines across the picture, which labels keep off."""
    column, target = group.column(group.forget_axis), group.row("target")
    boxes = []
    if column is not None and column.retain is not None:
        boxes.append(Box(x(column.retain) - 1, y.end, x(column.retain) + 1, y.start))
    if target is not None and target.utility is not None:
        boxes.append(Box(x.start, y(target.utility) - 1, x.end, y(target.utility) + 1))
    return boxes


def _bars(point: _Point, x: Scale, y: Scale) -> list[tuple[float, float, float, float]]:
    """Return the interval bars of a point as (left, top, right, bottom)."""
    bars = []
    if point.forget.low is not None and point.forget.high is not None:
        bars.append((x(point.forget.low), point.y, x(point.forget.high), point.y))
    if point.utility.low is not None and point.utility.high is not None:
        bars.append((point.x, y(point.utility.high), point.x, y(point.utility.low)))
    return bars


def _mark(point: _Point, group: Group) -> Markup:
    tip = element("title", _words(point.row, point.forget, point.utility, group))
    if point.row.is_reference:
        return element("path", tip, d=_diamond(point.x, point.y, 7.0), class_=f"model-mark {point.row.role}")
    kind = "dot" if point.row.on_front else "hollow"
    return element("circle", tip, cx=point.x, cy=point.y, r=6.0, class_=f"{kind} series-1")


def _diamond(x: float, y: float, radius: float) -> str:
    corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
    return "M" + " L".join(f"{quantity_attribute(a)} {quantity_attribute(b)}" for a, b in corners) + " Z"


def _words(row: Row, forget: Cell, utility: Cell, group: Group) -> str:
    place = {None: ROLE_NAMES[row.role], True: "on the Pareto front", False: "dominated"}[row.on_front]
    state = f", {forget.state}" if forget.state else ""
    return (
        f"{row.label} ({place}{state}): {group.forget_axis} {number(forget.value)} {interval_words(forget)}, "
        f"{group.utility_axis} {number(utility.value)} {interval_words(utility)}."
    )


def _labels(canvas: Canvas, points: list[_Point], area: Box, texts: list[Box], lines: list[Box]) -> None:
    words = [shorten(" ".join(point.row.label.split()), LABEL_LENGTH) for point in points]
    centres = [(point.x, point.y) for point in points]
    placements = place_labels(centres, words, area, texts=texts, lines=lines)
    for point, label, placement in zip(points, words, placements, strict=True):
        if placement is None:
            continue
        if placement.needs_pointer:
            canvas.add(_pointer(point, placement))
        kind = "point-label strong" if point.row.on_front else "point-label"
        canvas.add(text(placement.x, placement.baseline, label, kind, "start"))


def _pointer(point: _Point, placement: Placement) -> Markup:
    box = placement.box
    x = min(max(point.x, box.left), box.right)
    y = min(max(point.y, box.top), box.bottom)
    return line(point.x, point.y, x, y, "pointer")


def _legend(canvas: Canvas, group: Group, *, any_interval: bool) -> None:
    """Explain the marks in a row above the drawing, so that the file stands alone."""
    entries = [("dot", "on the Pareto front"), ("hollow", "dominated")]
    if any(row.is_reference for row in group.rows):
        entries.append(("model", "model to compare to"))
    if any_interval:
        entries.append(("interval", "interval"))
    column = group.column(group.forget_axis)
    if column is not None and column.retain is not None:
        entries.append(("retain", "range of the retain models"))
    left = canvas.left
    for kind, words in entries:
        if kind == "model":
            canvas.add(element("path", d=_diamond(left + 7, 20, 7.0), class_="model-mark"))
        elif kind == "interval":
            canvas.add(line(left, 20, left + 14, 20, "whisker method"))
        elif kind == "retain":
            canvas.add(_area(left, 13, left + 14, 27, "retain-zone"))
        else:
            canvas.add(element("circle", cx=left + 7, cy=20, r=6.0, class_=f"{kind} series-1"))
        canvas.add(text(left + 20, 24, words, "legend-text", "start"))
        left += 20 + text_width(words) + 22
