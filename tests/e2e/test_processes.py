"""Signals, concurrency and global state, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "process_checks.py"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **QUIET},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_every_module_changes_no_global_state(seen):
    assert seen["modules"] > 200
    assert seen["changed"] == []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_step_saves_and_prints_how_to_go_on(name, code, seen):
    found = seen[name]
    assert (found["whole"], found["code"], found["again"]) == (0, code, 0)
    assert "go on with: falcon-unlearn run " in found["text"]
    assert f"signal-{name}/{name}" in found["text"]
    assert found["left"] == [f".{name}.work"]
    # The step that ran was finished and saved, and none is taken twice.
    assert found["states"] == [found["last_step"]]
    assert found["first_step"] == found["last_step"] + 1
    assert found["equal"]
    assert found["left_after"] == []


def test_two_processes_on_one_cache_train_once_and_both_have_the_model(seen):
    assert seen["concurrent"]["codes"] == [0, 0]
    assert seen["concurrent"]["trained"] == [0, 20]
    assert seen["concurrent"]["models"] == 1


def kill_loop(tmp_path, *arguments):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_loop.py"),
            "--output",
            str(tmp_path / "k"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "k").read_text())["rows"]


def test_five_kills_end_in_the_same_bits(tmp_path):
    rows = kill_loop(tmp_path, "--kills", "5", "--seed", "1", "--scenario", "falcon")
    assert [(row["kills"] >= 5, row["bit_equal"], row["left_over"]) for row in rows] == [(True, True, [])]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills_of_every_command_end_in_the_same_bits(tmp_path):
    rows = kill_loop(tmp_path, "--kills", "50")
    assert len(rows) >= 9
    assert all(row["kills"] >= 50 and row["bit_equal"] and not row["left_over"] for row in rows)
