"""Find room for the labels of points, so that no two lie on each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from falcon_unlearn.report.svg import CHARACTER_WIDTH

LINE_HEIGHT = 15.0
_POINT_RADIUS = 8.0
_GRID_STEP = 12.0
_BESIDE = 11.0
"""Distance of a label beside its point."""
_NEAR = 14.0
"""A label at most this far from its point needs no pointer."""
_ON_LINE, _NEARER, _CROSSED = 8.0, 18.0, 40.0
"""What a place costs for lying on a line, for being nearer to another point, and for a pointer across one."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Hold a rectangle in SVG units, y growing downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Tell whether two rectangles share an area."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def inside(self, other: Box) -> bool:
        """Tell whether this rectangle does not leave another."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Placement:
    """Say where a label starts, and whether a pointer must tie it to its point."""

    x: float
    baseline: float
    box: Box
    needs_pointer: bool


def text_width(words: str) -> float:
    """Estimate the width of chart text, in SVG units."""
    return CHARACTER_WIDTH * len(words)


def place_labels(
    points: Sequence[Point],
    labels: Sequence[str],
    area: Box,
    *,
    texts: Sequence[Box] = (),
    lines: Sequence[Box] = (),
) -> list[Placement | None]:
    """Place one label for each point: beside it where there is room, else near by, tied by a pointer.

    No label lies on a point or on another text. Lines are kept off as long as that costs little.

    Args:
        points: centres of the marks.
        labels: one text for each.
        area: where labels may lie.
        texts: places of other texts.
        lines: places of lines and bars.

    Returns:
        None for a label that fits nowhere.
    """
    radius = _POINT_RADIUS
    occupied = [*texts, *(Box(x - radius, y - radius, x + radius, y + radius) for x, y in points)]
    placements: list[Placement | None] = []
    for index, label in enumerate(labels):
        others = [point for number, point in enumerate(points) if number != index]
        best = _best(points[index], text_width(label), area, _Obstacles(occupied, lines, others))
        if best is not None:
            occupied.append(best.box)
        placements.append(best)
    return placements


@dataclass(frozen=True)
class _Obstacles:
    """Hold what a label must not cover, should not cover, and should not be mistaken for belonging to."""

    hard: Sequence[Box]
    soft: Sequence[Box]
    others: Sequence[Point]

    def cost(self, point: Point, box: Box, needs_pointer: bool) -> float:
        """Return what the place of a label costs beyond its distance, in SVG units."""
        cost = _ON_LINE * sum(box.overlaps(line) for line in self.soft)
        own = _gap(point, box)
        cost += _NEARER * sum(_gap(other, box) <= own for other in self.others)
        if needs_pointer:
            end = _nearest(point, box)
            cost += _CROSSED * sum(_passes(point, end, other) for other in self.others)
        return cost


def _best(point: Point, width: float, area: Box, obstacles: _Obstacles) -> Placement | None:
    best, lowest = None, math.inf
    for left, middle, distance in _candidates(*point, width, area):
        if distance >= lowest:
            break
        box = Box(left, middle - LINE_HEIGHT / 2, left + width, middle + LINE_HEIGHT / 2)
        if not box.inside(area) or any(box.overlaps(other) for other in obstacles.hard):
            continue
        needs_pointer = distance > _NEAR
        cost = distance + obstacles.cost(point, box, needs_pointer)
        if cost < lowest:
            best, lowest = Placement(left, middle + 4, box, needs_pointer), cost
    return best


def _nearest(point: Point, box: Box) -> Point:
    return min(max(point[0], box.left), box.right), min(max(point[1], box.top), box.bottom)


def _gap(point: Point, box: Box) -> float:
    return math.dist(point, _nearest(point, box))


def _passes(start: Point, end: Point, other: Point) -> bool:
    """Tell whether a pointer touches another mark."""
    across, down = end[0] - start[0], end[1] - start[1]
    length = across * across + down * down
    if length == 0:
        return False
    along = ((other[0] - start[0]) * across + (other[1] - start[1]) * down) / length
    along = min(max(along, 0.0), 1.0)
    return math.dist(other, (start[0] + along * across, start[1] + along * down)) < _POINT_RADIUS


def _candidates(x: float, y: float, width: float, area: Box) -> Iterator[tuple[float, float, float]]:
    """Yield (left, middle, distance from the point): the eight sides first, then the area, nearest first."""
    near, half = _BESIDE, width / 2
    for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
        left = x - half if across == 0 else x + near if across > 0 else x - near - width
        yield left, y + down * (near + LINE_HEIGHT / 2), near
    columns = int((area.right - area.left - width) / _GRID_STEP) + 1
    rows = int((area.bottom - area.top) / _GRID_STEP) + 1
    places = [
        (area.left + column * _GRID_STEP, area.top + row * _GRID_STEP)
        for column in range(max(0, columns))
        for row in range(rows)
    ]
    for left, middle in sorted(places, key=lambda place: _distance(x, y, width, place)):
        # Not nearer than beside the point, so that distances never fall from one candidate to the next.
        yield left, middle, max(_BESIDE, _distance(x, y, width, (left, middle)))


def _distance(x: float, y: float, width: float, place: tuple[float, float]) -> float:
    left, middle = place
    across = max(left - x, 0.0, x - left - width)
    return math.hypot(across, max(0.0, abs(middle - y) - LINE_HEIGHT / 2))
