"""Run one point as a process of its own, so that neither its memory nor its death touches the others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from falcon_unlearn.runs import MANIFEST, has_writer
from falcon_unlearn.sweep.points import Point, point_arguments
from falcon_unlearn.sweep.processes import Processes

POLL_SECONDS = 1.0
"""Time between two looks at a run of another process."""

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
    place: Path
    """Folder to which relative paths of `arguments` belong."""


@dataclass(frozen=True)
class Outcome:
    """Say how one process ended."""

    exit_code: int
    seconds: float
    message: str = ""


def is_finished(task: Task) -> bool:
    """Tell whether the run folder is complete; the manifest is written last."""
    return (task.folder / MANIFEST).is_file()


def run_task(
    task: Task, environment: Mapping[str, str] | None = None, processes: Processes | None = None
) -> Outcome | None:
    """Run one point to its end; a finished one is not repeated.

    A process of an earlier sweep that was killed may still be at it: its end is awaited.

    Args:
        task: The point.
        environment: Variables of the process beside those of this one.
        processes: Where the process is registered, to be stopped with others.

    Returns:
        How it ended; None where the sweep was stopped before it could start.
    """
    processes = processes or Processes()
    while has_writer(task.folder) and not processes.stopping:
        time.sleep(POLL_SECONDS)
    if is_finished(task):
        return Outcome(0, 0.0)
    started = time.perf_counter()
    task.log.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["run", *task.arguments, *point_arguments(task.point), "--output", str(task.folder)]
    code = processes.run(arguments, task.log, place=task.place, environment=environment or {})
    if code is None:
        return None
    return Outcome(code, time.perf_counter() - started, "" if code == 0 else last_words(task.log))


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
