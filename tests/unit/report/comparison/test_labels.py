from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.report.comparison.labels import Box, place_labels, text_width

AREA = Box(60, 70, 930, 510)
PLACES = st.tuples(st.floats(AREA.left, AREA.right), st.floats(AREA.top, AREA.bottom))


@given(points=st.lists(PLACES, max_size=14), data=st.data())
def test_labels_lie_in_the_picture_and_on_nothing(points: list[tuple[float, float]], data) -> None:
    labels = [data.draw(st.text("abcdefgh", min_size=1, max_size=26)) for _ in points]
    name = Box(65, 490, 180, 507)
    placements = place_labels(points, labels, AREA, texts=[name], lines=[Box(60, 200, 930, 202)])
    boxes = [placement.box for placement in placements if placement is not None]
    assert len(boxes) == len(points)  # 14 labels always find room
    for index, box in enumerate(boxes):
        assert box.inside(AREA)
        assert not box.overlaps(name)
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)
        assert box.right - box.left == pytest.approx(text_width(labels[index]))


def test_a_lone_label_stands_beside_its_point() -> None:
    (placement,) = place_labels([(300.0, 300.0)], ["NPO"], AREA)
    assert placement is not None
    assert not placement.needs_pointer
    assert 300 < placement.x < 320
    assert abs(placement.box.top + placement.box.bottom - 600) < 1


def test_points_at_one_place_get_labels_of_their_own() -> None:
    placements = place_labels([(300.0, 300.0)] * 12, [f"method {n}" for n in range(12)], AREA)
    assert all(placement is not None for placement in placements)
    assert any(placement.needs_pointer for placement in placements if placement)


def test_label_that_fits_nowhere_is_left_out() -> None:
    assert place_labels([(10.0, 10.0)], ["much too long"], Box(0, 0, 40, 20)) == [None]
