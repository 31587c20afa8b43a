"""Find the rows that no other row beats on both axes."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell for every point (cost, gain) whether it is on the front.

    A point is dominated if another one costs no more and gains no less, and is strictly better in one of
    the two. Equal points do not dominate each other.

    Args:
        points: finite pairs; low cost and high gain are good.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    flags = [False] * len(points)
    best_gain, best_cost = float("-inf"), float("nan")
    for index in order:
        cost, gain = points[index]
        if gain > best_gain:
            best_gain, best_cost = gain, cost
            flags[index] = True
        elif gain == best_gain and cost == best_cost:
            flags[index] = True
    return flags
