"""Run a sweep and put its runs side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.events import EventSink, Notice, Progress, ignore_events
from falcon_unlearn.report.comparison import compare_results, write_comparison
from falcon_unlearn.runs import remove_finished, write_json_atomic
from falcon_unlearn.stopping import Terminated
from falcon_unlearn.sweep.optuna_engine import run_with_optuna
from falcon_unlearn.sweep.points import Point, make_points, point_name
from falcon_unlearn.sweep.ray_engine import run_with_ray
from falcon_unlearn.sweep.records import SweepResult, Trial
from falcon_unlearn.sweep.trial import Outcome, Task, is_finished

PLAN, RESULT, RUNS, LOGS, COMPARISON = "plan.json", "sweep.json", "runs", "logs", "comparison"


@dataclass(frozen=True)
class SweepSettings:
    """Say how a sweep runs."""

    engine: Literal["optuna", "ray"] = "optuna"
    workers: int = 1
    cores: float = 1.0
    """Processor cores of one run, for Ray."""
    cards: float = 0.0
    """GPUs of one run, for Ray."""


def run_sweep(
    arguments: Sequence[str],
    variations: Mapping[str, Sequence[Any]],
    folder: Path,
    settings: SweepSettings,
    *,
    sink: EventSink = ignore_events,
) -> SweepResult:
    """Run every combination of the variations and compare what came out.

    The same call goes on after a kill: finished runs are kept, others run again.

    Args:
        arguments: Flags of `falcon-unlearn run` that all runs share, without the output.
        variations: Values by recipe key.
        folder: Folder of the sweep, new or of the same sweep.
        settings: Engine and workers.
        sink: Receives one event per run that ended.

    Raises:
        UsageError: The folder belongs to another sweep or is in use, or the variations cannot be used.
        PrerequisiteError: The engine is not installed.
    """
    points = make_points(variations)
    folder = folder.absolute()
    _claim_folder(folder, {"arguments": list(arguments), "variations": dict(variations)})
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"{folder}: another process runs this sweep") from error
    try:
        tasks = [_task(folder, arguments, point, number) for number, point in enumerate(points)]
        outcomes = _run(tasks, folder, settings, sink)
        return _close(tasks, outcomes, folder, settings, sink)
    except (KeyboardInterrupt, Terminated) as error:
        error.add_note("finished runs are kept, the others go on from their saved steps")
        raise
    finally:
        lock.release()


def _claim_folder(folder: Path, plan: dict[str, Any]) -> None:
    plan_file = folder / PLAN
    if plan_file.is_file():
        if json.loads(plan_file.read_text(encoding="utf-8")) != plan:
            raise UsageError(
                f"{folder}: holds another sweep",
                hint=f"Repeat the command that {PLAN} records to go on, or choose another --output.",
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"output folder in use: {folder} is not empty", hint="Choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(plan_file, plan)


def _task(folder: Path, arguments: Sequence[str], point: Point, number: int) -> Task:
    name = point_name(point, number)
    return Task(
        name, point, folder / RUNS / name, folder / LOGS / f"{name}.log", tuple(arguments), Path.cwd()
    )


def _run(tasks: Sequence[Task], folder: Path, settings: SweepSettings, sink: EventSink) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    (folder / RUNS).mkdir(exist_ok=True)

    def report(task: Task, outcome: Outcome) -> None:
        outcomes[task.name] = outcome
        done = sum(map(is_finished, tasks))
        sink(Progress(stage="sweep", done=done, total=len(tasks), message=task.name))
        if outcome.exit_code != 0:
            sink(Notice(message=f"{task.name} failed: {outcome.message}", level="warning"))

    if settings.engine == "ray":
        run_with_ray(tasks, folder, settings.workers, report, cores=settings.cores, cards=settings.cards)
    else:
        run_with_optuna(tasks, folder, settings.workers, report)
    return outcomes


def _close(
    tasks: Sequence[Task],
    outcomes: Mapping[str, Outcome],
    folder: Path,
    settings: SweepSettings,
    sink: EventSink,
) -> SweepResult:
    earlier = _earlier_seconds(folder)
    trials = [_trial(task, outcomes.get(task.name), earlier, folder) for task in tasks]
    finished = [task.folder for task in tasks if is_finished(task)]
    for run in finished:
        remove_finished(run)  # a kill may have come before the run could
    note = _compare(finished, folder / COMPARISON)
    if note:
        sink(Notice(message=f"no table: {note}", level="warning"))
    result = SweepResult(
        engine=settings.engine, trials=trials, comparison=None if note else COMPARISON, note=note
    )
    write_json_atomic(folder / RESULT, result)
    return result


def _trial(task: Task, outcome: Outcome | None, earlier: Mapping[str, float], folder: Path) -> Trial:
    finished = is_finished(task)
    seconds = outcome.seconds if outcome and outcome.seconds else earlier.get(task.name, 0.0)
    return Trial(
        name=task.name,
        point=task.point,
        status="finished" if finished else "failed" if outcome else "missing",
        folder=str(task.folder.relative_to(folder)),
        seconds=seconds,
        message="" if finished or outcome is None else outcome.message,
    )


def _earlier_seconds(folder: Path) -> dict[str, float]:
    """Return what the result of an earlier process says; nothing where there is none."""
    path = folder / RESULT
    if not path.is_file():
        return {}
    result = SweepResult.model_validate_json(path.read_text(encoding="utf-8"))
    return {trial.name: trial.seconds for trial in result.trials}


def _compare(runs: Sequence[Path], target: Path) -> str:
    """Write the table; return why there is none."""
    if not runs:
        return "no run is finished"
    try:
        comparison = compare_results(runs)
    except (DataError, UsageError) as error:
        return error.message
    shutil.rmtree(target, ignore_errors=True)
    write_comparison(comparison, target)
    return ""
