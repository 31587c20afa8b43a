"""Run points through Ray Tune, on one machine or a cluster whose machines share the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.sweep.optuna_engine import Report
from falcon_unlearn.sweep.trial import Outcome, Task, is_finished, run_task

START_ATTEMPTS = 2
"""How often a start of Ray is tried."""


def run_with_ray(
    tasks: Sequence[Task], folder: Path, workers: int, report: Report, *, cores: float, cards: float
) -> None:
    """Run every task that is not finished. A killed sweep goes on: finished run folders are left out.

    Args:
        tasks: All runs of the sweep.
        folder: Folder of the sweep, on a file system that all machines see.
        workers: Most runs at a time, over all machines.
        report: Receives every run that ended, after all have.
        cores: Processor cores of one run.
        cards: GPUs of one run.

    Raises:
        PrerequisiteError: Ray is not installed, or does not start.
    """
    try:
        from ray import tune
    except ImportError as error:
        raise PrerequisiteError(
            "--engine ray needs Ray Tune", hint="pip install 'falcon-unlearn[ray]', or use --engine optuna."
        ) from error
    missing = [task for task in tasks if not is_finished(task)]
    if not missing:
        return
    by_name = {task.name: task for task in missing}

    def trainable(config: dict[str, Any]) -> None:
        outcome = run_task(by_name[config["task"]])
        if outcome is not None:
            tune.report({"task": config["task"], **vars(outcome)})

    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": cores, "gpu": cards}),
        param_space={"task": tune.grid_search(sorted(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=workers),
        run_config=tune.RunConfig(storage_path=str((folder / "ray").absolute()), verbose=0),
    )
    with _session():
        results = tuner.fit()
    for result in results:
        metrics = result.metrics or {}
        if "task" in metrics:
            outcome = Outcome(metrics["exit_code"], metrics["seconds"], metrics["message"])
            report(by_name[metrics["task"]], outcome)


@contextmanager
def _session() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start Ray here without dashboard; leave a session that exists."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray would send usage figures to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _start(os.environ.get("RAY_ADDRESS"))
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    """Start or join Ray; a start that fails is tried again, for on a busy machine Ray gives up after 30 s.

    Raises:
        PrerequisiteError: Ray did not start, or the cluster cannot be reached.
    """
    import ray

    own = {} if address else {"include_dashboard": False}
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, **own)
            return
        # Ray raises the bare class for a node that is late, among half a dozen others.
        except Exception as error:
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise PrerequisiteError(
                    f"Ray could not {'join the cluster at ' + address if address else 'start'}: {reason}",
                    hint="Finished runs are kept, so repeat the command when the machine is less busy "
                    "(see `ray status`), or use --engine optuna.",
                ) from error
