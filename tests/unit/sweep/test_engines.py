"""The engines run every point once, whatever dies in between."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from falcon_unlearn.errors import UsageError
from falcon_unlearn.sweep import optuna_engine
from falcon_unlearn.sweep.optuna_engine import open_study
from falcon_unlearn.sweep.running import SweepSettings, run_sweep
from falcon_unlearn.sweep.trial import Outcome, last_words, worker_environment

VARIATIONS = {"selection.layer": [5, 6, 7], "seed": [0, 1]}


class FakeRuns:
    """Stand in for the processes: they leave a manifest, and fail where told."""

    def __init__(self):
        self.names: list[str] = []
        self.failing: set[str] = set()
        self.together = 0
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, task, environment=None):
        with self._lock:
            self._running += 1
            self.together = max(self.together, self._running)
            self.names.append(task.name)
        try:
            if task.name in self.failing:
                return Outcome(2, 0.1, "error: made to fail")
            (task.folder / "falcon").mkdir(parents=True)
            (task.folder / "falcon" / "manifest.json").write_text("{}")
            return Outcome(0, 0.1)
        finally:
            with self._lock:
                self._running -= 1


@pytest.fixture
def runs(monkeypatch):
    fake = FakeRuns()
    monkeypatch.setattr(optuna_engine, "run_task", fake)
    return fake


def sweep(folder, workers=1):
    return run_sweep(["--model", "m"], VARIATIONS, folder, SweepSettings(workers=workers))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_point_runs_once(tmp_path, runs, workers):
    result = sweep(tmp_path / "s", workers)
    assert len(runs.names) == len(set(runs.names)) == 6
    assert [trial.status for trial in result.trials] == ["finished"] * 6
    assert {(t.point["selection.layer"], t.point["seed"]) for t in result.trials} == {
        (layer, seed) for layer in (5, 6, 7) for seed in (0, 1)
    }
    study = open_study(tmp_path / "s")
    assert sorted(t.state.name for t in study.get_trials()) == ["COMPLETE"] * 6
    for trial in study.get_trials():
        assert (
            f"layer-{trial.params['selection.layer']}-seed-{trial.params['seed']}" in trial.user_attrs["task"]
        )


def test_a_failed_run_is_told_and_runs_again(tmp_path, runs):
    runs.failing = {"0002-layer-6-seed-0"}
    first = sweep(tmp_path / "s")
    assert [t.status for t in first.trials].count("failed") == 1
    assert first.trials[2].message == "error: made to fail"
    runs.failing, runs.names = set(), []
    second = sweep(tmp_path / "s")
    assert runs.names == ["0002-layer-6-seed-0"]
    assert [t.status for t in second.trials] == ["finished"] * 6
    assert second.trials[0].seconds == pytest.approx(0.1)


def test_a_trial_whose_process_was_killed_runs_again(tmp_path, runs):
    folder = tmp_path / "s"
    folder.mkdir()
    script = """
import os, sys
from pathlib import Path
from falcon_unlearn.sweep import optuna_engine
from falcon_unlearn.sweep.running import SweepSettings, run_sweep
optuna_engine.run_task = lambda task, environment: os._exit(9)
variations = {"selection.layer": [5, 6, 7], "seed": [0, 1]}
run_sweep(["--model", "m"], variations, Path(sys.argv[1]), SweepSettings())
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert done.returncode == 9
    assert [t.state.name for t in open_study(folder).get_trials()].count("RUNNING") == 1
    result = sweep(folder)
    assert [t.status for t in result.trials] == ["finished"] * 6
    assert len(runs.names) == 6
    states = [t.state.name for t in open_study(folder).get_trials()]
    assert states.count("RUNNING") == states.count("WAITING") == 0
    assert states.count("COMPLETE") == 6


def test_finished_folders_are_not_repeated_even_if_the_journal_forgot(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append(a))
    folder = tmp_path / "s"
    for number, (layer, seed) in enumerate((layer, seed) for layer in (5, 6, 7) for seed in (0, 1)):
        records = folder / "runs" / f"{number:04d}-layer-{layer}-seed-{seed}" / "falcon"
        records.mkdir(parents=True)
        (records / "manifest.json").write_text("{}")
    plan = {"arguments": ["--model", "m"], "variations": VARIATIONS}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert [t.status for t in sweep(folder).trials] == ["finished"] * 6
    assert calls == []


def test_another_sweep_is_not_overwritten(tmp_path, runs):
    sweep(tmp_path / "s")
    with pytest.raises(UsageError, match="another sweep"):
        run_sweep(["--model", "other"], VARIATIONS, tmp_path / "s", SweepSettings())
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        sweep(tmp_path / "t")


def test_the_error_of_a_log_is_found(tmp_path):
    log = tmp_path / "log"
    log.write_text("[train] step 3\nerror: first\nmore\nerror: out of luck\n hint: try again\n")
    assert last_words(log) == "error: out of luck hint: try again"


def test_workers_share_threads_and_cards(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert worker_environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "7"
    assert int(worker_environment(0, 2)["OMP_NUM_THREADS"]) >= 1
    assert worker_environment(0, 1) == {}
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 3)


def test_unfinished_runs_are_not_taken_for_finished(tmp_path, runs):
    runs.failing = {"0000-layer-5-seed-0"}
    result = sweep(tmp_path / "s")
    assert result.trials[0].status == "failed"
    assert not (tmp_path / "s" / result.trials[0].folder).exists()
