"""Run one point as a process of its own, so that neither its memory nor its death touches the others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from falcon_unlearn.runs import MANIFEST
from falcon_unlearn.sweep.points import Point, point_arguments

_LAST_WORDS = 600
"""Characters of a failed run's messages that are kept."""


@dataclass(frozen=True)
class Task:
    """Name one run of the sweep."""

    name: str
    point: Point
    folder: Path
    """Output folder of the run."""
    log: Path
    arguments: tuple[str, ...]
    """What all runs share: the flags of `run` as the user gave them."""


@dataclass(frozen=True)
class Outcome:
    """Say how one process ended."""

    exit_code: int
    seconds: float
    message: str = ""


def is_finished(task: Task) -> bool:
    """Tell whether the run folder is complete; the manifest is written last."""
    return (task.folder / MANIFEST).is_file()


def run_task(task: Task, extra_environment: Mapping[str, str] | None = None) -> Outcome:
    """Run one point to its end; a finished one is not repeated."""
    if is_finished(task):
        return Outcome(0, 0.0)
    command = [sys.executable, "-m", "falcon_unlearn", "run", *task.arguments, *point_arguments(task.point)]
    started = time.perf_counter()
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        finished = subprocess.run(
            [*command, "--output", str(task.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(extra_environment or {}),
            check=False,
        )
    seconds = time.perf_counter() - started
    message = "" if finished.returncode == 0 else last_words(task.log)
    return Outcome(finished.returncode, seconds, message)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run: this one, without what would make it a rank of a job."""
    ranks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
    return {name: value for name, value in os.environ.items() if name not in ranks} | dict(extra)


def worker_environment(worker: int, workers: int) -> dict[str, str]:
    """Share processor threads, and GPUs where there is one for each worker, among local workers."""
    shared: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ and workers > 1:
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    cards = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    if len(cards) >= workers > 1:
        shared["CUDA_VISIBLE_DEVICES"] = cards[worker]
    return shared


def last_words(log: Path) -> str:
    """Return the error of a failed run from its log, or the end of the log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [index for index, line in enumerate(lines) if line.startswith("error:")]
    kept: Sequence[str] = lines[errors[-1] :] if errors else lines[-3:]
    return " ".join(" ".join(kept).split())[:_LAST_WORDS]
