from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from falcon_unlearn.bench.muse import curves
from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.bench.muse.evaluate import MuseSettings
from falcon_unlearn.bench.muse.privacy import PrivacyReference
from falcon_unlearn.bench.muse.small import Tier, small_muse
from falcon_unlearn.errors import DataError, UsageError

FAST = MuseSettings(resamples=20)


def _write(folder, name, rows):
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def test_scalability_sets_are_rebuilt_from_the_requests(news_folder, forget, other):
    _write(news_folder, "sust/forget_2", ["second", "second b"])
    _write(news_folder, "sust/forget_4", ["fourth"])
    data = load_muse(news_folder, folds=True)
    unions = curves.scalability_folds(data)
    assert [len(union) for union in unions] == [8, 10, 25, 26]
    assert unions[3] == (*forget, "second", "second b", *other, "fourth")
    _write(news_folder, "scal/forget_2", ["official"])
    assert curves.scalability_folds(load_muse(news_folder, folds=True))[1] == ("official",)
    points = curves.curve_points(data, "sust")
    assert [point.start for point in points] == ["target", "previous", "previous", "previous"]
    assert points[1].unlearn == ("second", "second b") and points[1].forgotten == unions[1]


def test_an_absent_fold_is_named(news_folder):
    with pytest.raises(DataError, match="sust/forget_2 is needed but absent"):
        curves.curve_points(load_muse(news_folder, folds=True), "scal")


@pytest.mark.parametrize("count", [4, 5, 7, 8, 27])
def test_parts_are_equal_and_complete(count):
    articles = [str(k) for k in range(count)]
    parts = curves.equal_parts(articles)
    assert [text for part in parts for text in part] == articles
    sizes = [len(part) for part in parts]
    assert len(parts) == 4 and max(sizes) - min(sizes) <= 1


def test_fewer_articles_than_parts_are_refused():
    with pytest.raises(UsageError, match="got 4 for 3 articles"):
        curves.equal_parts(["a", "b", "c"])


@pytest.fixture
def tier(news_folder):
    return replace(small_muse(load_muse(news_folder), Tier("tiny", 3, 3)), membership_tokens=40)


def test_points_of_a_tier_grow_to_its_whole_forget_set(tier):
    for kind in ("scal", "sust"):
        points = curves.curve_points(tier, kind)
        assert points[-1].forgotten == tier.texts["raw/forget"]
        for before, after in pairwise(points):
            assert after.forgotten[: len(before.forgotten)] == before.forgotten
    scal, sust = curves.curve_points(tier, "scal"), curves.curve_points(tier, "sust")
    assert [point.forgotten for point in scal] == [point.forgotten for point in sust]
    assert all(point.unlearn == point.forgotten and point.start == "target" for point in scal)
    assert [text for point in sust for text in point.unlearn] == list(tier.texts["raw/forget"])


def test_a_curve_is_evaluated_point_by_point(pico, tier):
    points = curves.curve_points(tier, "scal")
    found, results, logs = curves.evaluate_curve(
        (pico for _ in points), points, tier, FAST, references=[PrivacyReference(0.5)] * 4, label="NPO"
    )
    by_name = {curve.metric: curve for curve in found}
    assert set(by_name) == {"min_k_auc", "privleak", "retain2_probability"}
    # One model at all points: what does not depend on the forget set is flat.
    assert by_name["retain2_probability"].largest_change == 0
    assert [value.num_articles for value in by_name["privleak"].points] == [1, 2, 3, 4]
    assert by_name["privleak"].criterion == "C5 scalability"
    assert [result.label for result in results] == [f"NPO scal {k}" for k in (1, 2, 3, 4)]
    assert len(logs) == 4 and all("forget_verbmem_ROUGE" not in log for log in logs)


def test_the_largest_change_keeps_its_sign(pico, tier):
    points = curves.curve_points(tier, "sust")
    _, results, _ = curves.evaluate_curve(
        [pico] * 4, points, tier, FAST, references=["no reference"] * 4, label="NPO"
    )
    values = [0.5, 0.6, 0.2, 0.4]
    changed = [
        result.model_copy(
            update={"metrics": [result.metric("retain2_probability").model_copy(update={"value": value})]}
        )
        for result, value in zip(results, values, strict=True)
    ]
    (curve,) = curves.curve_records(points, changed, "NPO")
    assert curve.largest_change == pytest.approx(-0.3)
    assert curve.criterion == "C6 sustainability"


def test_models_and_references_must_match_the_points(pico, tier):
    points = curves.curve_points(tier, "scal")
    with pytest.raises(UsageError, match="references: got none"):
        curves.evaluate_curve([pico] * 4, points, tier, FAST)
    left_out = ["no reference"] * 4
    with pytest.raises(UsageError, match="models: got 1 for 4"):
        curves.evaluate_curve([pico], points, tier, FAST, references=left_out)
    with pytest.raises(UsageError, match="more than 4"):
        curves.evaluate_curve([pico] * 5, points, tier, FAST, references=left_out)
