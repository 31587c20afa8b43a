"""Run points through Optuna: a journal file remembers every trial, local workers take the next one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.sweep.processes import Processes
from falcon_unlearn.sweep.trial import Outcome, Task, run_task, worker_environment

if TYPE_CHECKING:
    import optuna

STUDY = "falcon-unlearn"
JOURNAL = "study.journal"
Report = Callable[[Task, Outcome], None]
"""Receives every run that ended."""


def run_with_optuna(tasks: Sequence[Task], folder: Path, workers: int, report: Report) -> None:
    """Run every task that is not finished, `workers` at a time.

    The caller holds the lock of the folder, so a trial that the journal calls running is one whose sweep
    was killed: it is closed and its point is taken up again. On a signal the runs save and end.

    Args:
        tasks: All runs of the sweep.
        folder: Folder of the journal.
        workers: Local processes at a time.
        report: Receives every run that ended.

    Raises:
        PrerequisiteError: Optuna is not installed.
    """
    study = open_study(folder)
    from optuna.trial import TrialState

    by_name = {task.name: task for task in tasks}
    choices = all_choices(tasks)
    enqueue_missing(study, tasks)
    lock = threading.Lock()
    processes = Processes()

    def work(worker: int) -> None:
        environment = worker_environment(worker, workers)
        while not processes.stopping and (trial := _next_trial(study, lock)) is not None:
            task = by_name[trial.user_attrs["task"]]
            outcome = run_task(task, environment, processes)
            with lock:
                if outcome is None or (processes.stopping and outcome.exit_code != 0):
                    # Asked to end, which is no failure: the point runs again, from its saved state.
                    study.tell(trial, state=TrialState.FAIL)
                    return
                _tell(study, trial, choices, outcome)
                report(task, outcome)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for done in [pool.submit(work, worker) for worker in range(workers)]:
                done.result()
        except BaseException:
            # A signal, or a defect in one worker: the pool waits for the others, which save and end.
            processes.stop()
            raise


def open_study(folder: Path) -> optuna.Study:
    """Open or create the study of a sweep.

    Raises:
        PrerequisiteError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise PrerequisiteError(
            "sweep needs Optuna", hint="pip install 'falcon-unlearn[sweep]', or use --engine ray."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(study_name=STUDY, storage=storage, load_if_exists=True)


def enqueue_missing(study: optuna.Study, tasks: Sequence[Task]) -> None:
    """Close trials of killed processes, and queue every point that is neither finished nor waiting."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    known = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.COMPLETE))
    settled = {trial.user_attrs.get("task") for trial in known}
    for task in tasks:
        if task.name not in settled:
            study.enqueue_trial(_parameters(task), user_attrs={"task": task.name})


def _parameters(task: Task) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in task.point.items()}


def _next_trial(study: optuna.Study, lock: threading.Lock) -> optuna.Trial | None:
    """Take the next queued trial; None when the queue is empty, where Optuna would invent one."""
    from optuna.trial import TrialState

    with lock:
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return None
        return study.ask()


def all_choices(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return all values of every key, as JSON, in the order of the tasks: a study has one list of each."""
    choices: dict[str, dict[str, None]] = {}
    for task in tasks:
        for key, text in _parameters(task).items():
            choices.setdefault(key, {})[text] = None
    return {key: list(values) for key, values in choices.items()}


def _tell(study: optuna.Study, trial: optuna.Trial, choices: dict[str, list[str]], outcome: Outcome) -> None:
    from optuna.trial import TrialState

    # A queued trial is given the values it was queued with.
    for key, values in choices.items():
        trial.suggest_categorical(key, values)
    trial.set_user_attr("seconds", outcome.seconds)
    if outcome.exit_code == 0:
        # The study keeps the time; what a run is worth is read from its folder by `compare`.
        study.tell(trial, outcome.seconds)
    else:
        trial.set_user_attr("message", outcome.message)
        study.tell(trial, state=TrialState.FAIL)
