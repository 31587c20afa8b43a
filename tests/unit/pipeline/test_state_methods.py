"""Methods on hidden states besides FALCON go through plan, run and report."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.pipeline import plan_run, planning, unlearn
from falcon_unlearn.pipeline.pace import Pace


@pytest.mark.parametrize("method", ["rmu", "circuit_breakers"])
def test_the_plan_of_a_method_on_states_says_what_the_run_does(method, bench, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "measure_pace", lambda *_: Pace(1e11, 5e10, 1e-9, 0.0))
    recipe = bench.bare(method=method, train={"divergence_factor": 1e6})
    training = unlearn(recipe, tmp_path / "out", typed_recipe="", command="").training
    plan = plan_run(recipe)
    assert plan.trained == training.trained and plan.window == training.window
    assert plan.flops["cache"] == training.flops["cache"]
    assert training.method == method and training.steps_done == 4
    recorded = json.loads((tmp_path / "out" / "falcon" / "training.json").read_text())
    assert recorded["method"] == method and len(recorded["history"]) == 4
