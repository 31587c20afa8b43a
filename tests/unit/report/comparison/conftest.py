"""Hand-made benchmark results, and a folder to keep them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from falcon_unlearn.results_bench import BenchMetric, BenchResult

Make = Callable[..., BenchResult]
Save = Callable[..., Path]


def metric(
    name: str, value: float | None, desired: str, *, half: float = 0.03, note: str = ""
) -> BenchMetric:
    known = value is not None and half >= 0
    return BenchMetric(
        name=name,
        value=value,
        low=value - half if known else None,
        high=value + half if known else None,
        interval="bootstrap" if known else "none",
        num_items=200,
        desired=desired,
        note=note,
    )


def result(
    label: str,
    forget: float | None,
    utility: float | None,
    *,
    role: str = "unlearned",
    desired: str = "retain model",
    utility_desired: str = "higher",
    half: float = 0.03,
    more: tuple[BenchMetric, ...] = (),
    **fields: Any,
) -> BenchResult:
    values = {
        "benchmark": "tofu",
        "setting": {"split": "forget05"},
        "model": "org/model",
        "forget_axis": "extraction",
        "utility_axis": "utility",
        **fields,
    }
    axes = (
        metric("extraction", forget, desired, half=half),
        metric("utility", utility, utility_desired, half=half),
    )
    return BenchResult(role=role, label=label, metrics=[*axes, *more], **values)


@pytest.fixture
def make() -> Make:
    return result


@pytest.fixture
def make_metric() -> Callable[..., BenchMetric]:
    return metric


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write results as files of one folder and return it."""

    def write(*results: BenchResult, folder: str = "results") -> Path:
        target = tmp_path / folder
        target.mkdir(exist_ok=True)
        for one in results:
            number = len(list(target.iterdir()))
            (target / f"{number:02d}.bench.json").write_text(one.model_dump_json(), encoding="utf-8")
        return target

    return write


@pytest.fixture
def references(make: Make) -> list[BenchResult]:
    """Base, target, retain and its replicate; the retain range is 0.07 to 0.16."""
    return [
        make("target", 0.70, 0.60, role="target"),
        make("base", 0.05, 0.40, role="base"),
        make("retain B", 0.13, 0.60, role="retain_replicate"),
        make("retain A", 0.10, 0.59, role="retain"),
    ]
