"""A sweep is killed, goes on, and ends where one that was left alone ends: no run twice, the same table."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from falcon_unlearn.runs import verify_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150
SETTINGS = (
    f"train.steps={STEPS}",
    "train.batch_size=4",
    "train.layers=2",
    "train.compute_dtype=float32",
    "selection.layer=3",
    "objective.offset.directions=4",
    "data.chat_template=false",
    "runtime.device=cpu",
    "runtime.save_seconds=0",
)
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
NAMES = [
    f"{number:04d}-{method}"
    for number, method in enumerate(
        ["method-falcon-seed-0", "method-falcon-seed-1", "method-rmu-seed-0", "method-rmu-seed-1"]
    )
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import kill_loop
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("files")
    kill_loop.write_bench(folder)
    return folder


def start(files: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["sweep", "model", "--forget", "trees.jsonl", "--retain", "rest.jsonl"]
    command += ["--method", "falcon,rmu", "--seed", "0,1", "--output", str(output), *arguments]
    for setting in SETTINGS:
        command += ["--set", setting]
    return subprocess.Popen(
        [sys.executable, "-m", "falcon_unlearn", *command],
        cwd=files,  # the corpora are named relative to where the sweep was started
        env={**os.environ, **QUIET, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background ignores SIGINT, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    return err


def finished_runs(output: Path) -> set[str]:
    # A staging folder, whose name starts with a dot, has a manifest just before it becomes the run.
    return {path.parents[1].name for path in output.glob("runs/[!.]*/falcon/manifest.json")}


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def mid_training(output: Path) -> bool:
    """Tell whether one run is finished and another is in the first half of its training."""
    finished = finished_runs(output)
    states = [(path.parents[1].name, path.name[:8]) for path in output.glob("runs/.*.work/training/*")]
    open_runs = {work[1 : -len(".work")]: int(step) for work, step in sorted(states) if step.isdigit()}
    return bool(finished) and any(
        0 < step < STEPS // 2 for name, step in open_runs.items() if name not in finished
    )


def manifests(output: Path) -> dict[str, tuple[str, int]]:
    found = {}
    for name in finished_runs(output):
        path = output / "runs" / name / "falcon" / "manifest.json"
        found[name] = (path.read_text(), path.stat().st_mtime_ns)
    return found


def table(output: Path) -> str:
    """Return the table, measured times left out."""
    comparison = json.loads((output / "comparison" / "comparison.json").read_text())

    def without_times(value):
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if "seconds" not in k and "memory" not in k}
        return [without_times(entry) for entry in value] if isinstance(value, list) else value

    return json.dumps(without_times(comparison), sort_keys=True).replace(output.name, "SWEEP")


def weights(output: Path) -> dict[str, bytes]:
    return {name: (output / "runs" / name / "model.safetensors").read_bytes() for name in NAMES}


def check_complete(output: Path) -> None:
    assert sorted(finished_runs(output)) == NAMES
    for name in NAMES:
        verify_manifest(output / "runs" / name)
    assert [p.name for p in (output / "runs").iterdir() if p.name.endswith(".work")] == []
    result = json.loads((output / "sweep.json").read_text())
    assert [(trial["name"], trial["status"]) for trial in result["trials"]] == [
        (name, "finished") for name in NAMES
    ]


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone") / "sweep"
    finish(start(files, output))
    check_complete(output)
    return output


def complete_trials(output: Path) -> list[str]:
    from falcon_unlearn.sweep.optuna_engine import open_study

    trials = open_study(output).get_trials()
    assert not any(trial.state.name in {"RUNNING", "WAITING"} for trial in trials)
    return sorted(trial.user_attrs["task"] for trial in trials if trial.state.name == "COMPLETE")


def resumed_runs(output: Path) -> list[str]:
    """Return the runs whose log tells that they took up a saved state."""
    return [log.stem for log in sorted(output.glob("logs/*.log")) if "going on" in log.read_text()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_two_workers_killed_and_resumed_end_where_one_worker_ends(number, files, alone, tmp_path):
    output = tmp_path / "sweep"
    first = start(files, output, "--workers", "2")
    wait_until(lambda: mid_training(output), first)
    first.send_signal(number)
    err = first.communicate(timeout=300)[1]
    assert first.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    early = manifests(output)
    assert 0 < len(early) < len(NAMES)
    # SIGKILL leaves two runs without their sweep: the next one must wait for them, not start them again.
    finish(start(files, output, "--workers", "2"))
    check_complete(output)
    assert {name: manifests(output)[name] for name in early} == early
    assert complete_trials(output) == NAMES
    if number != signal.SIGKILL:
        assert "traceback" not in err.lower()
        assert "go on with: falcon-unlearn sweep" in err
        assert resumed_runs(output)
    assert weights(output) == weights(alone)
    assert table(output) == table(alone)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray`)")
def test_two_workers_of_ray_killed_and_resumed_end_where_one_worker_ends(files, alone, tmp_path):
    output = tmp_path / "sweep"
    arguments = ("--workers", "2", "--engine", "ray", "--cores", "0.5")
    first = start(files, output, *arguments)
    wait_until(lambda: mid_training(output), first)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=300)
    early = manifests(output)
    assert 0 < len(early) < len(NAMES)
    finish(start(files, output, *arguments))
    check_complete(output)
    assert {name: manifests(output)[name] for name in early} == early
    assert weights(output) == weights(alone)
    assert table(output) == table(alone)
