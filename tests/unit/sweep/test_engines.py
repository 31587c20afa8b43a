"""The engines run every point once, whatever dies in between."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from falcon_unlearn.errors import UsageError
from falcon_unlearn.sweep import optuna_engine
from falcon_unlearn.sweep.optuna_engine import open_study
from falcon_unlearn.sweep.processes import Processes
from falcon_unlearn.sweep.running import SweepSettings, run_sweep
from falcon_unlearn.sweep.trial import Outcome, Task, last_words, run_task, worker_environment

VARIATIONS = {"selection.layer": [5, 6, 7], "seed": [0, 1]}


class FakeRuns:
    """Stand in for the processes: they leave a manifest, and fail where told."""

    def __init__(self):
        self.names: list[str] = []
        self.failing: set[str] = set()
        self.together = 0
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, task, environment=None, processes=None):
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
optuna_engine.run_task = lambda *_: os._exit(9)
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
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: calls.append(a))
    folder = tmp_path / "s"
    for number, (layer, seed) in enumerate((layer, seed) for layer in (5, 6, 7) for seed in (0, 1)):
        records = folder / "runs" / f"{number:04d}-layer-{layer}-seed-{seed}" / "falcon"
        records.mkdir(parents=True)
        (records / "manifest.json").write_text("{}")
    plan = {"arguments": ["--model", "m"], "variations": VARIATIONS}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert [t.status for t in sweep(folder).trials] == ["finished"] * 6
    assert calls == []


@pytest.mark.parametrize("finishes", [True, False])
def test_a_stopped_sweep_starts_nothing_more_and_repeats_what_did_not_finish(tmp_path, monkeypatch, finishes):
    runs = FakeRuns()

    def stopped(task, environment, processes):
        outcome = runs(task)
        processes.stop()
        return outcome

    if not finishes:
        runs.failing = {"0000-layer-5-seed-0"}
    monkeypatch.setattr(optuna_engine, "run_task", stopped)
    first = sweep(tmp_path / "s", workers=2)
    started = len(runs.names)
    assert started <= 2
    # Ended on request: not finished, and not called a failure.
    assert {t.status for t in first.trials} <= {"finished", "missing"}
    done = sum(t.status == "finished" for t in first.trials)
    runs.failing = set()
    monkeypatch.setattr(optuna_engine, "run_task", runs)
    assert [t.status for t in sweep(tmp_path / "s").trials] == ["finished"] * 6
    assert len(runs.names) == started + 6 - done


def test_a_run_of_a_killed_sweep_is_awaited(tmp_path, monkeypatch):
    """The process of an earlier sweep writes on; no second one may start beside it."""
    task = Task("t", {}, tmp_path / "t", tmp_path / "t.log", (), tmp_path)
    started, waits = [], []
    monkeypatch.setattr(Processes, "run", lambda *a, **k: started.append(a))

    def finish_at_last(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            records = tmp_path / "t" / "falcon"
            records.mkdir(parents=True)
            (records / "manifest.json").write_text("{}")
            lock.release()

    monkeypatch.setattr("falcon_unlearn.sweep.trial.time.sleep", finish_at_last)
    lock = FileLock(tmp_path / ".t.lock", thread_local=False)
    lock.acquire()
    assert run_task(task) == Outcome(0, 0.0)
    assert (len(waits), started) == (3, [])


def test_stopping_lets_a_process_end_on_its_own_terms(tmp_path):
    """One SIGTERM, also where the process stands in the sweep's own terminal group."""
    processes = Processes()
    log = tmp_path / "log"
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(
            processes.run(["env", "--json"], log, place=tmp_path, environment={"PYTHONPATH": str(tmp_path)})
        )
    )
    module = tmp_path / "falcon_unlearn" / "__main__.py"
    module.parent.mkdir()
    (module.parent / "__init__.py").write_text("")
    module.write_text(
        "import os, signal, sys, time\n"
        "def told(number, frame): print('saved', os.getpgid(0) == os.getpid(), flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, told)\n"
        "print('ready', sys.argv[1:], flush=True)\n"
        "time.sleep(60)\n"
    )
    thread.start()
    while "ready" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.01)
    processes.stop()
    thread.join()
    assert ended == [143]
    assert log.read_text() == "ready ['env', '--json']\nsaved True\n"
    assert processes.run(["env"], log, place=tmp_path, environment={}) is None


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
