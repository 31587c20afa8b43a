"""Draw what every attack recovered, with intervals, the null line and the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from falcon_unlearn.report.charts import Chart, LegendEntry
from falcon_unlearn.report.format import share, shorten
from falcon_unlearn.report.svg import Canvas, Scale, element, horizontal_axis, line, text
from falcon_unlearn.results_audit import NO_ATTACK, AttackSummary, Estimate

LOWEST, HIGHEST = -0.5, 1.5
"""Shares beyond these are drawn at the border; the numbers beside the chart say what they are."""
_ROW_HEIGHT = 30


def recovery_chart(
    title: str, note: str, attacks: Sequence[AttackSummary], *, limit: float, has_null: bool
) -> Chart:
    """Draw one row per attack: the share it recovers and the share it reaches, with intervals.

    Args:
        title: Heading.
        note: Caption.
        attacks: Summaries of one format.
        limit: Share below which recovery counts as bounded.
        has_null: Whether recovery is net of what the null model gains; without it, raw recovery is drawn.
    """
    rows = sorted(attacks, key=lambda row: -_number(row.reachable, -math.inf))
    height = 22 + _ROW_HEIGHT * len(rows)
    canvas = Canvas(960, height + 50, left=330, right=24, top=4)
    x = canvas.horizontal(*_range(rows, has_null=has_null))
    for value in x.ticks(8):
        canvas.add(line(x(value), canvas.top + 16, x(value), height, "grid"))
    _marks(canvas, x, height, limit)
    for index, row in enumerate(rows):
        _draw(canvas, x, 22 + _ROW_HEIGHT * index, row, has_null=has_null)
    canvas.add(line(x.start, height, x.end, height, "axis"))
    horizontal_axis(canvas, x, height, "share of the knowledge that the original has and the null has not")
    legend = (
        LegendEntry(
            "after", "recovered, net of the null model" if has_null else "recovered, no null at hand"
        ),
        LegendEntry("before", "reached in all: left without attack, plus recovered"),
        LegendEntry("whisker", "interval"),
        LegendEntry("chance", "null model" if has_null else "guessing"),
        LegendEntry("marked", f"limit, {share(limit)}"),
    )
    described = " ".join(_sentence(row, has_null=has_null) for row in rows)
    return Chart(title, note, canvas.render(title, title, f"{note} {described}"), legend, is_wide=True)


def recovery(row: AttackSummary, *, has_null: bool) -> Estimate:
    """Return what the attack brought back: net of the null where there is one."""
    return row.net_recovered if has_null else row.recovered


def attack_name(row: AttackSummary) -> str:
    """Name an attack with its chosen variant."""
    return "no attack" if row.attack == NO_ATTACK else row.attack.replace("_", " ")


def estimate_words(estimate: Estimate) -> str:
    """Write a share with its interval, or the reason why there is none."""
    if estimate.value is None:
        return estimate.note or "not defined"
    if estimate.low is None or estimate.high is None:
        return share(estimate.value)
    return f"{share(estimate.value)} [{share(estimate.low)}, {share(estimate.high)}]"


def _range(rows: Sequence[AttackSummary], *, has_null: bool) -> tuple[float, float]:
    values = [0.0, 1.0]
    for row in rows:
        for estimate in (recovery(row, has_null=has_null), row.reachable):
            values += [v for v in (estimate.value, estimate.low, estimate.high) if v is not None]
    return max(LOWEST, min(values) - 0.02), min(HIGHEST, max(values) + 0.02)


def _marks(canvas: Canvas, x: Scale, height: float, limit: float) -> None:
    labelled = ((0.0, "chance", "null"), (limit, "marked", ""), (1.0, "reference", "original"))
    for value, kind, label in labelled:
        canvas.add(line(x(value), canvas.top + 16, x(value), height, kind))
        if label:
            canvas.add(text(x(value), canvas.top + 10, label, "tick"))


def _draw(canvas: Canvas, x: Scale, top: float, row: AttackSummary, *, has_null: bool) -> None:
    middle = top + _ROW_HEIGHT / 2
    canvas.add(text(8, middle + 4, shorten(attack_name(row), 24), "row-label strong", "start"))
    label = row.variant if row.counts else "does not count"
    canvas.add(text(x.start - 14, middle + 4, shorten(label, 26), "row-label", "end"))
    canvas.add(_mark(x, row.reachable, middle - 5, "before", "reached"))
    if row.attack != NO_ATTACK:
        canvas.add(_mark(x, recovery(row, has_null=has_null), middle + 5, "after", "recovered"))


def _mark(x: Scale, estimate: Estimate, y: float, kind: str, word: str) -> Markup:
    if estimate.value is None:
        return Markup("")
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    tip = element("title", f"{word}: {estimate_words(estimate)}")
    whisker = line(x(low), y, x(high), y, f"whisker {kind}")
    return whisker + element("circle", tip, cx=x(estimate.value), cy=y, r=4.6, class_=f"mark {kind}")


def _sentence(row: AttackSummary, *, has_null: bool) -> str:
    recovered = estimate_words(recovery(row, has_null=has_null))
    return f"{attack_name(row)}: recovered {recovered}, reached {estimate_words(row.reachable)}."


def _number(estimate: Estimate, otherwise: float) -> float:
    return otherwise if estimate.value is None else estimate.value
