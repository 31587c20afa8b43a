from __future__ import annotations

import pytest

from falcon_unlearn.errors import UsageError
from falcon_unlearn.sweep.points import make_points, parse_list, parse_variation, point_arguments, point_name


def test_every_combination_is_a_point():
    key, layers = parse_variation("selection.layer=5,6")
    points = make_points({"method": parse_list(["falcon,rmu"], "--method"), key: layers, "seed": [0]})
    assert points == [
        {"method": method, "selection.layer": layer, "seed": 0}
        for method in ("falcon", "rmu")
        for layer in (5, 6)
    ]
    names = [point_name(point, number) for number, point in enumerate(points)]
    assert len(set(names)) == 4
    assert names[3] == "0003-method-rmu-layer-6-seed-0"


def test_values_keep_their_types():
    assert parse_variation("train.relative_step=0.005,0.01")[1] == [0.005, 0.01]
    assert parse_variation("train.modules=[mlp.down],[mlp.down,mlp.up]")[1] == [
        ["mlp.down"],
        ["mlp.down", "mlp.up"],
    ]
    assert parse_variation("objective.offset.exclude_sinks=true,false")[1] == [True, False]


def test_a_point_becomes_flags_of_run():
    point = {"method": "rmu", "seed": 3, "train.modules": ["mlp.down"], "train.schedule": "linear"}
    assert point_arguments(point) == [
        *("--method", "rmu", "--seed", "3"),
        *("--set", 'train.modules=["mlp.down"]', "--set", 'train.schedule="linear"'),
    ]


@pytest.mark.parametrize("argument", ["selection.layer", "=5", "selection.layer=", "selection.layer=5,,6"])
def test_what_cannot_be_varied_is_refused(argument):
    with pytest.raises(UsageError, match="--vary"):
        parse_variation(argument)


def test_repeated_values_and_huge_grids_are_refused():
    with pytest.raises(UsageError, match="twice"):
        make_points({"seed": [1, 1]})
    with pytest.raises(UsageError, match="limit"):
        make_points({key: list(range(100)) for key in "abc"})
