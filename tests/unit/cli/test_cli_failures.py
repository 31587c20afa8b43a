"""Failures end in one clear message and the promised exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from falcon_unlearn.cli.failures import run_guarded
from falcon_unlearn.errors import (
    DataError,
    FalconError,
    GateError,
    ModelError,
    NumericalError,
    PeerError,
    PrerequisiteError,
    UsageError,
)

DATA = ["org/base", "--forget", "forget.jsonl", "--retain", "retain.txt"]
RUN = ["run", *DATA, "--output", "out"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FalconError, 1),
        (UsageError, 2),
        (DataError, 2),
        (ModelError, 2),
        (NumericalError, 2),
        (PrerequisiteError, 3),
        (GateError, 4),
    ],
)
def test_each_kind_of_error_has_its_exit_code(cli, calls, kind, code):
    calls.error = kind("it went wrong", hint="do this")
    assert cli(*RUN, "-q") == (code, "", "error: it went wrong\n hint: do this\n")


def test_several_lines_stay_aligned_and_free_of_control_characters(cli, calls):
    calls.error = UsageError("first \x1b[31mred\nsecond\r\x9b2J")
    assert cli(*RUN, "-q")[2] == "error: first red\n       second\n"


def test_unexpected_failures_are_one_line_unless_debugging(cli, calls, monkeypatch):
    calls.error = RuntimeError("tensor\nmismatch")
    code, out, err = cli(*RUN, "-q")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "error: unexpected failure: RuntimeError: tensor mismatch"
    assert "FALCON_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("FALCON_DEBUG", "1")
    err = cli(*RUN, "-q")[2]
    assert "Traceback" in err
    assert "conftest" in err


def test_lack_of_memory_is_a_missing_prerequisite_with_a_way_to_need_less(cli, calls):
    calls.error = MemoryError()
    code, _, err = cli(*RUN, "-q")
    assert (code, err.splitlines()[0]) == (3, "error: out of memory: ")
    assert "--memory-limit" in err
    calls.error.add_note("finished work is kept in .out.work")
    assert "finished work is kept in .out.work; go on with: " in cli(*RUN, "-q")[2]


CAPPED = """
import resource, sys
from falcon_unlearn.cli.failures import run_guarded
import numpy, torch
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, held + 2**28))
allocations = [lambda: torch.zeros(2**30), lambda: numpy.zeros(2**30), lambda: bytes(2**32)]
print([run_guarded(allocate) for allocate in allocations])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are those of Linux")
def test_a_cap_on_memory_is_recognised_from_every_allocator():
    done = subprocess.run([sys.executable, "-c", CAPPED], capture_output=True, text=True, check=True)
    assert done.stdout == "[3, 3, 3]\n"
    assert done.stderr.count("error: out of memory: ") == 3
    assert "Traceback" not in done.stderr


def test_debugging_shows_the_traceback_of_user_errors_too(cli, calls, monkeypatch):
    calls.error = DataError("empty")
    monkeypatch.setenv("FALCON_DEBUG", "0")
    assert "Traceback" not in cli(*RUN, "-q")[2]
    monkeypatch.setenv("FALCON_DEBUG", "1")
    code, _, err = cli(*RUN, "-q")
    assert code == 2
    assert err.startswith("error: empty\n")
    assert "Traceback" in err


def test_interrupts(cli, calls):
    calls.error = KeyboardInterrupt()
    code, out, err = cli(*RUN, "-q")
    assert (code, out) == (130, "")
    assert err.startswith("error: interrupted")


def test_sigterm_unwinds_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    assert run_guarded(work) == 143
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*RUN, "--max-utility-loss", "little"], "--max-utility-loss: got 'little'"),
        ([*RUN, "--max-utility-loss", "-1"], "train.maximum_utility_loss: got -1"),
        ([*RUN, "--max-utility-loss", "nan"], "train.maximum_utility_loss: got nan"),
        (["rnu"], 'Did you mean "run"?'),
        (["run", *DATA], "--output requires an argument"),
        ([*RUN, "--stpes", "3"], "--stpes"),
        ([*RUN, "--seed", "many"], "--seed"),
        ([*RUN, "--seed", "1.5"], "--seed"),
        ([*RUN, "--seed", "-1"], "seed: got -1 (command line), an integer >= 0 and <= 2147483647 is needed"),
        ([*RUN, "extra"], "extra"),
        (["run", *DATA, "more.jsonl", "--output", "out"], "repeat it for more"),
        ([*RUN, "--method", "magic"], "method: got 'magic' (command line), one of falcon, rmu,"),
        ([*RUN, "--set", "train.stpes=3"], "Did you mean train.steps?"),
        ([*RUN, "--set", "train.steps=true"], "train.steps: got true (--set), an integer >= 1 is needed"),
        ([*RUN, "--set", "x"], "key.path=value is needed"),
        ([*RUN, "--recipe", "missing.yaml"], "missing.yaml: no such recipe file"),
        ([*RUN, "--recipe", "."], "is a folder"),
        (["run", "org/base", "--retain", "self", "--output", "out"], "data.forget: missing"),
        (["run", "--forget", "forget.jsonl", "--retain", "self", "--output", "out"], "model.name: missing"),
        (["run", "org/base", "--forget", "forget.jsonl", "--output", "out"], "data.retain: missing"),
        ([*RUN, "--forget", "gone.jsonl"], "no such file: gone.jsonl"),
        (["run", "./gone", *DATA[1:], "--output", "out"], "no such folder or file: ./gone"),
        ([*RUN, "--forget", "other/forget.jsonl"], "the names ['forget'] occur twice"),
        (["plan", "org/base", "--forget", "forget.jsonl", "--retain", "r=forget.jsonl"], "the same source"),
        (["plan", "org/base", "--forget", "self", "--retain", "retain.txt"], "`self` can only be"),
        (["demo", "--seed", "-1"], "--seed: got -1, an integer >= 0 is needed"),
        (["demo", "--seed", "1.5"], "--seed: got '1.5'"),
        (["run", *DATA, "--output", "forget.jsonl"], "is a file"),
        (["run", *DATA, "--output", "used"], "output folder in use"),
        (["run", *DATA, "--output", "link"], "symbolic link"),
        ([*RUN, "--set", "seed=1", "--seed", "2"], "seed: given as 2 (command line) and as 1 (--set)"),
        (["report", "gone"], "no such folder"),
        (["report"], "requires an argument"),
        (["init", "forget.jsonl"], "exists already"),
        (["plan", *DATA, "--output", "x"], "--output"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(cli, calls, workplace, arguments, words):
    Path("used").mkdir()
    Path("used/a").touch()
    Path("link").symlink_to("used")
    before = sorted(p.name for p in workplace.rglob("*"))
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert calls.name is None
    assert sorted(p.name for p in workplace.rglob("*")) == before


def run_process(*arguments: str, code: str | None = None, **keywords) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "falcon_unlearn.cli"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, check=False, **keywords
    )


def test_a_process_ends_with_the_exit_code(workplace):
    done = run_process("run", "--bogus")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    done = run_process("init", "a.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert run_process("init", "a.yaml").returncode == 2
    assert run_process("validate", "a.yaml").returncode == 2


def test_arguments_that_are_not_utf8(workplace):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "falcon_unlearn.cli",
            "validate",
            b"m\xff",
            "--forget",
            b"\xff.txt",
            "--retain",
            "self",
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


WORKER = """
import sys, time
from types import ModuleType
from pathlib import Path
from falcon_unlearn.cli.main import main
from falcon_unlearn.runs import staged_folder

def run_pipeline(recipe, output, **keywords):
    with staged_folder(output) as staging:
        (staging / "half").write_text("x")
        print("ready", flush=True)
        time.sleep(60)

module = ModuleType("falcon_unlearn.pipeline")
module.run_pipeline = run_pipeline
sys.modules["falcon_unlearn.pipeline"] = module
sys.exit(main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_half_written(workplace, number, code):
    before = sorted(os.listdir(workplace))
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, *RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert sorted(os.listdir(workplace)) == before


PRINTER = """
import sys
from falcon_unlearn.cli.failures import run_guarded
sys.exit(run_guarded(lambda: print("line\\n" * 100_000)))
"""


def test_a_reader_that_goes_away_is_no_traceback(workplace):
    command = f"{sys.executable} -c '{PRINTER}' | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["line", "141"]
    assert done.stderr == ""


def test_a_full_standard_output_is_a_failure(workplace):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINTER]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"No space left" in done.stderr


def test_a_collapsed_model_is_shown_and_refused_with_the_code_of_a_gate(cli, calls):
    calls.collapse = ["prose: perplexity rose 12-fold"]
    code, out, err = cli(*RUN, "-q")
    assert code == 4
    assert "symbols" in out, "the numbers are shown all the same"
    assert "has collapsed" in err and "12-fold" in err
    calls.collapse = []
    assert cli(*RUN, "-q")[0] == 0


def test_a_rank_that_fails_is_heard_although_torchrun_asks_it_to_end():
    script = """
import os, signal, sys
from falcon_unlearn.cli import failures, ranks
from falcon_unlearn.errors import PeerError

class Board:
    def claim_failure(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return True
    def settle_exit_code(self, own):
        os.kill(os.getpid(), signal.SIGTERM)
        return own

def fail():
    raise PeerError("rank 1 was lost")

os.environ.update(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
ranks._board = Board
sys.exit(failures.run_guarded(fail))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.stderr.startswith("error: rank 1 was lost"), ended
    assert ended.returncode == PeerError.exit_code
