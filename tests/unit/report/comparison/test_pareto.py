from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.report.comparison.pareto import pareto_front

# Few distinct values, so that ties and equal points are common.
COARSE = st.integers(0, 5).map(lambda number: number / 5)
FINE = st.floats(-1e6, 1e6)
POINTS = st.lists(st.tuples(COARSE, COARSE), max_size=14) | st.lists(st.tuples(FINE, FINE), max_size=14)


def is_beaten(point: tuple[float, float], other: tuple[float, float]) -> bool:
    return other[0] <= point[0] and other[1] >= point[1] and other != point


@given(points=POINTS)
def test_front_is_what_brute_force_finds(points: list[tuple[float, float]]) -> None:
    expected = [not any(is_beaten(point, other) for other in points) for point in points]
    assert pareto_front(points) == expected


@given(points=st.lists(st.tuples(FINE, FINE), min_size=1, max_size=8), data=st.data())
def test_order_of_points_does_not_matter(points: list[tuple[float, float]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(points))))
    flags = pareto_front(points)
    assert pareto_front([points[index] for index in order]) == [flags[index] for index in order]


def test_equal_points_do_not_beat_each_other() -> None:
    assert pareto_front([(0.1, 0.5), (0.1, 0.5), (0.2, 0.5), (0.1, 0.4)]) == [True, True, False, False]
    assert pareto_front([]) == []
