"""Differences of environment are graded by what they can do to a number."""

from __future__ import annotations

import pytest

from falcon_unlearn.results import EnvironmentResult
from falcon_unlearn.runs.grading import grade_environment, worst

HERE = EnvironmentResult(
    python="3.12.1",
    platform="Linux-6.1",
    packages={"falcon-unlearn": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.1", "numpy": "2.1.0"},
    processor="A",
    cores=2,
    threads=2,
    memory_bytes=1,
    device="cpu",
    seed=0,
    started="2026-01-01T00:00:00Z",
)


def changed(**values):
    packages = HERE.packages | values.pop("packages", {})
    kept = {name: version for name, version in packages.items() if version is not None}
    return HERE.model_copy(update=values | {"packages": kept})


@pytest.mark.parametrize(
    ("changes", "grade"),
    [
        ({}, None),
        ({"memory_bytes": 9, "cores": 64, "seed": 5, "started": "x"}, None),
        ({"python": "3.12.2"}, "low"),
        ({"platform": "Darwin"}, "low"),
        ({"packages": {"numpy": "2.1.9"}}, "low"),
        ({"packages": {"datasets": "5.0"}}, "low"),
        ({"packages": {"numpy": "2.2.0"}}, "medium"),
        ({"packages": {"numpy": None}}, "medium"),
        ({"packages": {"torch": "2.13.1+cpu"}}, "medium"),
        ({"packages": {"torch": "2.13.0+cu130"}}, "medium"),
        ({"threads": 1}, "medium"),
        ({"processor": "B"}, "medium"),
        ({"packages": {"torch": "2.14.0"}}, "high"),
        ({"packages": {"transformers": "5.24.0"}}, "high"),
        ({"packages": {"torch": None}}, "critical"),
        ({"device": "cuda:0"}, "critical"),
    ],
)
def test_each_difference_has_its_grade(changes, grade):
    assert worst(grade_environment(HERE, changed(**changes))) == grade


def test_the_gravest_comes_first_and_both_values_are_told():
    found = grade_environment(HERE, changed(python="3.13.0", device="mps", threads=8))
    assert [(d.grade, d.name) for d in found] == [
        ("critical", "device"),
        ("medium", "threads"),
        ("low", "python"),
    ]
    assert (found[1].recorded, found[1].now) == ("2", "8")


def test_another_card_of_the_same_kind_is_a_small_difference():
    first, second = HERE.model_copy(update={"device": "cuda:0"}), HERE.model_copy(update={"device": "cuda:1"})
    assert worst(grade_environment(first, second)) == "low"
