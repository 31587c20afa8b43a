"""The speed benchmarks run, on a pico shape."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in ("shapes", "gpu_window", "cpu_share"):
        sys.modules.pop(name, None)


def test_three_ways_to_unlearn(script):
    result = script("gpu_window").run("pico", "cpu", ["ours", "truncated", "plain"], 3, 2, 16)
    flops = {mode: result[mode]["flops"] for mode in ("ours", "truncated", "plain")}
    assert flops["ours"] < flops["truncated"] < flops["plain"]
    assert all(result[mode]["seconds"] > 0 for mode in flops)


def test_shares_of_the_peak_and_padding(script):
    module = script("cpu_share")
    result = module.measure("pico", 2)
    assert 0 < result["step_share_processor_time"] < 1
    assert result["padding"]["cache"] < 0.05
    assert result["padding"]["steps"] < 0.05 < result["padding"]["steps_without_packing"]
