"""Build inline SVG from escaped parts: scales, ticks, axes, lines and bands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

from falcon_unlearn.report.format import clean, quantity

Point = tuple[float, float]
CHARACTER_WIDTH = 6.6
"""Upper estimate of the mean width of a character of chart text, in SVG units."""


@dataclass(frozen=True)
class Scale:
    """Map values onto SVG units."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Place one value; values outside the domain land on its border."""
        clipped = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.logarithmic:
            clipped, low, high = math.log(clipped), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (clipped - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """Choose about `count` round values inside the domain."""
        if self.logarithmic:
            return _logarithmic_ticks(self.low, self.high, count)
        return round_ticks(self.low, self.high, count)


@dataclass
class Canvas:
    """Collect the elements of one chart between its margins."""

    width: float
    height: float
    left: float = 56
    right: float = 14
    top: float = 12
    bottom: float = 42
    parts: list[Markup] = field(default_factory=list)

    def add(self, *parts: Markup) -> None:
        """Append elements, the later ones on top."""
        self.parts.extend(parts)

    def horizontal(self, low: float, high: float, *, logarithmic: bool = False) -> Scale:
        """Make the scale of the x axis."""
        return Scale(low, high, self.left, self.width - self.right, logarithmic)

    def vertical(self, low: float, high: float, *, logarithmic: bool = False) -> Scale:
        """Make the scale of the y axis, growing upwards."""
        return Scale(low, high, self.height - self.bottom, self.top, logarithmic)

    def render(self, identifier: str, title: str, description: str) -> Markup:
        """Close the chart with a title and a description for screen readers."""
        name = "chart-" + re.sub(r"[^a-z0-9]+", "-", identifier.lower()).strip("-")
        head = [
            element("title", title, id=f"{name}-title"),
            element("desc", description, id=f"{name}-description"),
        ]
        return element(
            "svg",
            *head,
            *self.parts,
            viewBox=f"0 0 {quantity_attribute(self.width)} {quantity_attribute(self.height)}",
            role="img",
            aria_labelledby=f"{name}-title {name}-description",
            class_="chart",
        )


def quantity_attribute(value: float) -> str:
    """Write a coordinate; a number that is not finite has no place in a drawing."""
    if not math.isfinite(value):
        raise ValueError(f"a chart was given the coordinate {value}")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def element(name: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """Build one element; every text and attribute is cleaned and escaped."""
    # Plain joins of escaped parts: Markup's own `format` takes most of the time of a page.
    written = "".join(
        f' {escape(key.rstrip("_").replace("_", "-"))}="{_attribute(value)}"'
        for key, value in attributes.items()
    )
    inner = "".join(part if isinstance(part, Markup) else escape(clean(part)) for part in content)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def _attribute(value: str | float) -> Markup:
    return escape(clean(value) if isinstance(value, str) else quantity_attribute(value))


def text(x: float, y: float, content: str, class_: str = "tick", anchor: str = "middle") -> Markup:
    """Write text at a place."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[Point], class_: str) -> Markup:
    """Draw a line through `points`, interrupted where a number is missing."""
    commands, broken = [], True
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            broken = True
            continue
        commands.append(f"{'M' if broken else 'L'}{quantity_attribute(x)} {quantity_attribute(y)}")
        broken = False
    return element("path", d=" ".join(commands), class_=class_)


def band(xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], class_: str) -> Markup:
    """Fill the area between two lines, interrupted where a number is missing."""
    parts, run = [], list[tuple[float, float, float]]()
    for x, low, high in [*zip(xs, lows, highs, strict=True), (math.nan, math.nan, math.nan)]:
        if all(math.isfinite(value) for value in (x, low, high)):
            run.append((x, low, high))
            continue
        if len(run) > 1:
            outline = [(x, top) for x, _, top in run] + [(x, bottom) for x, bottom, _ in reversed(run)]
            parts.append(
                "M" + " L".join(f"{quantity_attribute(a)} {quantity_attribute(b)}" for a, b in outline) + " Z"
            )
        run = []
    return element("path", d=" ".join(parts), class_=class_)


def axes(canvas: Canvas, x: Scale, y: Scale, x_label: str, y_label: str, *, whole_x: bool = True) -> None:
    """Draw grid, ticks and axis titles; `whole_x` allows whole numbers on the x axis only."""
    y_ticks = y.ticks(5)
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        canvas.add(line(x.start, y(value), x.end, y(value), "grid"))
        canvas.add(text(x.start - 7, y(value) + 4, label, anchor="end"))
    canvas.add(line(x.start, y.start, x.end, y.start, "axis"))
    horizontal_axis(canvas, x, y.start, x_label, whole=whole_x)
    canvas.add(text(x.start - 46, y.end - 15, y_label, "axis-title", "start"))


def horizontal_axis(canvas: Canvas, x: Scale, baseline: float, label: str, *, whole: bool = False) -> None:
    """Draw the ticks and the title of an x axis below `baseline`."""
    ticks = x.ticks(max(2, int((x.end - x.start) / 60)))
    if whole:
        ticks = [value for value in ticks if value == int(value)]
    for value, tick in zip(ticks, tick_labels(ticks), strict=True):
        canvas.add(line(x(value), baseline, x(value), baseline + 4, "axis"))
        canvas.add(text(x(value), baseline + 17, tick))
    canvas.add(text((x.start + x.end) / 2, baseline + 35, label, "axis-title"))


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Choose multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _logarithmic_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in ticks if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    keep_every = max(1, math.ceil(len(inside) / max(1, count)))
    return inside[::keep_every]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write ticks with as many decimals as their distance needs."""
    if len(ticks) < 2:
        return [quantity(value) for value in ticks]
    largest, step = (
        max(abs(value) for value in ticks),
        min(b - a for a, b in pairwise(ticks)),
    )
    if largest >= 1e5 or largest < 1e-3:
        return [quantity(value, 2 if largest >= 1e5 else 3) for value in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value or 0.0:,.{decimals}f}" for value in ticks]


def domain(
    values: Iterable[float], *, include: Sequence[float] = (), padding: float = 0.06
) -> tuple[float, float]:
    """Return a non-empty range around all finite `values`; (0, 1) where there are none."""
    finite = [value for value in (*values, *include) if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * padding
    return (low if low in include else low - margin), (high if high in include else high + margin)


def spans_decades(values: Iterable[float]) -> bool:
    """Tell whether positive values differ so much that only a logarithmic scale shows them all."""
    positive = [value for value in values if math.isfinite(value) and value > 0]
    return bool(positive) and max(positive) > 30 * min(positive)


def logarithmic_domain(values: Iterable[float]) -> tuple[float, float]:
    """Return a range around all positive finite `values`, of which there must be one."""
    positive = [value for value in values if math.isfinite(value) and value > 0]
    return min(positive) / 1.2, max(positive) * 1.2
