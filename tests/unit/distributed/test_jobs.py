"""Whole jobs from the command line: one voice, one exit code, a killed rank, two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from pico_files import save_pico
from rank_jobs import TESTS, free_port, rank_environment

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

SETTINGS = {
    "selection.layer": 3,
    "train.layers": 2,
    "train.compute_dtype": "float32",
    "objective.offset.directions": 4,
    "data.chat_template": "false",
    "runtime.device": "cpu",
    "runtime.rank_timeout": 60,
    "evaluation.resamples": 100,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    save_pico(folder / "model")
    for name, count in (("forget", 20), ("retain", 30)):
        rows = [json.dumps({"text": f"{name} number {n} of {count} is {n * n}."}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


def arguments(output: str, **changes: object) -> list[str]:
    """Return the command line of a short run."""
    settings = (
        SETTINGS | {"train.steps": 4} | {key.replace("__", "."): value for key, value in changes.items()}
    )
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    files = ["--forget", "f=forget.jsonl", "--retain", "r=retain.jsonl"]
    return ["-m", "falcon_unlearn", "run", "--model", "model", *files, "--output", output, *flags]


def run_alone(work: Path, output: str, **changes: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *arguments(output, **changes), "-q"], cwd=work, env=environment, check=True
    )


def metrics_of(output: Path) -> list[float]:
    results = json.loads((output / "falcon" / "evaluation.after.json").read_text())
    return [metric["value"] for entry in results["sets"] for metric in entry["metrics"]]


def torchrun(work: Path, output: str, ranks: int, *, launcher: tuple[str, ...] = (), **changes: object):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *launcher]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments(output, **changes)],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_metrics_do_not_depend_on_the_number_of_ranks(work):
    run_alone(work, "alone")
    job = torchrun(work, "three", 3)
    output, errors = job.communicate(timeout=500)
    assert job.returncode == 0, errors
    assert output.count("Model:") == 1
    assert errors.count("[train] done") == 1
    assert metrics_of(work / "three") == pytest.approx(metrics_of(work / "alone"), rel=1e-4, abs=1e-6)


def test_a_trial_of_layers_chooses_alike_with_any_number_of_ranks(work):
    changes = {
        "selection__layer": "null",
        "selection__candidates": "[0.2,0.9]",
        "selection__margin": 9,
        "selection__trial__tried": 2,
        "selection__trial__updates": 3,
    }
    run_alone(work, "tried-alone", **changes)
    job = torchrun(work, "tried", 2, **changes)
    _, errors = job.communicate(timeout=500)
    assert job.returncode == 0, errors
    alone, both = (
        json.loads((work / name / "falcon" / "selection.json").read_text())
        for name in ("tried-alone", "tried")
    )
    assert alone["layer"] == both["layer"] and alone["trial"] is not None
    falls = [[row["fall"] for row in result["layers"] if row["fall"] is not None] for result in (alone, both)]
    assert len(falls[0]) == 2 and falls[1] == pytest.approx(falls[0], rel=1e-3, abs=1e-5)


def test_ranks_that_read_block_by_block_write_what_one_process_writes(work):
    run_alone(work, "held")
    job = torchrun(work, "read", 2, runtime__streaming="always")
    _, errors = job.communicate(timeout=500)
    assert job.returncode == 0, errors
    assert "read block by block" in errors
    held, read = (load_file(work / name / "model.safetensors") for name in ("held", "read"))
    assert max(float((held[name] - read[name]).abs().max()) for name in held) < 1e-6
    assert metrics_of(work / "read") == pytest.approx(metrics_of(work / "held"), rel=1e-4, abs=1e-6)


def test_a_sharded_window_is_not_read_block_by_block(work):
    job = torchrun(work, "refused", 2, runtime__streaming="always", runtime__shard="window")
    _, errors = job.communicate(timeout=500)
    assert errors.count("error:") == 1
    assert "runtime.shard=window splits blocks that are in memory" in errors


def test_a_failure_on_one_rank_is_told_once_and_ends_all(work, tmp_path):
    for name in ("forget.jsonl", "retain.jsonl"):
        shutil.copy(work / name, tmp_path / name)
    port = free_port()
    # Rank 1 works in a folder that has the data and lacks the model.
    jobs = [
        subprocess.Popen(
            [sys.executable, *arguments("new")],
            cwd=folder,
            env=rank_environment(rank, 2, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate((work, tmp_path))
    ]
    errors = [job.communicate(timeout=300)[1] for job in jobs]
    assert "".join(errors).count("error:") == 1, errors
    assert "model" in errors[1]
    assert "Traceback" not in "".join(errors)
    # Without the folder the name can only mean a model of the hub, which cannot be had.
    assert [job.returncode for job in jobs] == [3, 3]
    assert not (work / "new").exists()


def test_a_command_line_that_cannot_be_used_is_told_once(work):
    port = free_port()
    jobs = [
        subprocess.Popen(
            [sys.executable, *arguments("new", train__steps=0)],
            cwd=work,
            env=rank_environment(rank, 2, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [job.communicate(timeout=300)[1] for job in jobs]
    assert "".join(errors).count("error:") == 1
    assert [job.returncode for job in jobs] == [2, 2]


@pytest.mark.parametrize(("victim", "shard"), [(0, "never"), (1, "never"), (1, "window")])
def test_a_killed_rank_ends_the_job_with_one_message_and_the_job_goes_on(work, victim, shard):
    output = f"killed-{victim}-{shard}"
    changes = {"runtime__shard": shard, "runtime__save_seconds": 0, "train__steps": 400}
    job = torchrun(work, output, 2, **changes)
    lines = []
    for line in job.stderr:
        lines.append(line)
        if "[train] step 4" in line:
            ranks = psutil.Process(job.pid).children(recursive=True)
            target = next(r for r in ranks if r.environ().get("RANK") == str(victim))
            target.send_signal(signal.SIGKILL)
            break
    lines += job.stderr.readlines()
    assert job.wait(timeout=120) != 0
    told = [line for line in lines if line.startswith("error:")]
    assert len(told) == 1, "".join(lines)
    assert f"rank {victim} of the job was lost" in told[0]
    assert not (work / output).exists()
    again = torchrun(work, output, 2, **changes)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "going on with the unfinished work" in errors
    whole = torchrun(work, f"{output}-whole", 2, **changes)
    assert whole.wait(timeout=300) == 0
    assert (work / output / "model.safetensors").read_bytes() == (
        work / f"{output}-whole" / "model.safetensors"
    ).read_bytes()
