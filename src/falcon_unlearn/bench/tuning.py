"""The settings that every method may try, and the search over them: equal effort, never done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from falcon_unlearn.errors import NumericalError, UsageError
from falcon_unlearn.events import EventSink, Notice
from falcon_unlearn.metrics.model_utility import harmonic_mean
from falcon_unlearn.runs import write_json_atomic

ActsOn = Literal["states", "outputs"]
Overrides = dict[str, Any]

DEFAULT_TRIALS = 3
LAYER = "selection.layer"
_LOWER, _UPPER = 0.22, 0.3
"""Depths at which methods on states are tried, as shares of the blocks."""
_PLACES: tuple[tuple[float, float], ...] = (
    (_LOWER, 0.03), (_UPPER, 0.03), (_UPPER, 0.01), (_LOWER, 0.06), (_UPPER, 0.06), (_LOWER, 0.01),
)  # fmt: skip
"""Depth and relative step of each trial."""
_STRENGTHS = (0.03, 0.01, 0.06, 0.02, 0.1, 0.005)
"""Relative steps where the layer is fixed."""
_RATES = (1e-4, 3e-5, 3e-4, 1e-5, 2e-4, 6e-4)
MAXIMUM_TRIALS = len(_PLACES)

_SHARED: dict[ActsOn, Overrides] = {
    "states": {"train.learning_rate": "auto", "train.steps": 120, "train.batch_size": 8},
    "outputs": {"train.steps": 25, "train.batch_size": 8, "train.schedule": "linear"},
}
_OF_METHOD: dict[str, Overrides] = {
    # The target of RMU must be long against the states it replaces; the adaptive form sets that by itself.
    "rmu": {"objective.rmu.adaptive": True, "objective.rmu.coefficient": 3.0},
}


@dataclass(frozen=True)
class Tuned:
    """Hold the chosen settings of a method."""

    overrides: Overrides
    """Dotted settings, the layer among them for methods on states: the report uses what was tuned."""
    scores: tuple[float, ...]
    seconds: float
    """Wall time of all trials."""

    @property
    def trials(self) -> int:
        """Number of settings tried."""
        return len(self.scores)


def trials_of(
    method: str,
    acts_on: ActsOn,
    num_blocks: int,
    count: int,
    layer: int | None = None,
    *,
    window: int = 3,
    changes: Mapping[str, Any] | None = None,
) -> list[Overrides]:
    """Return the settings to try: layer and strength for methods on states, learning rates for the others.

    Args:
        method: Name of the method.
        acts_on: What it acts on.
        num_blocks: Blocks of the model.
        count: Number of trials.
        layer: Loss layer, if it is not to be tuned.
        window: Trained blocks, which end at the layer.
        changes: What the benchmark sets otherwise than the shared settings.

    Raises:
        UsageError: Fewer than one trial, or more than there are settings.
    """
    check_trials(count)
    if acts_on == "outputs":
        tried: list[Overrides] = [{"train.learning_rate": rate} for rate in _RATES]
    elif layer is not None:
        tried = [{LAYER: layer, "train.relative_step": step} for step in _STRENGTHS]
    else:
        layers = _layers(num_blocks, window)
        tried = [{LAYER: layers[share], "train.relative_step": step} for share, step in _PLACES]
    shared = {**_SHARED[acts_on], **(changes or {}), **_OF_METHOD.get(method, {})}
    return [{**shared, **trial} for trial in tried[:count]]


@dataclass(frozen=True)
class Knowledge:
    """Hold mean probabilities on the parts of the tuning data."""

    forget: float
    checked: float
    """On what is to be kept."""
    unseen: float
    """On texts that no model was trained on."""


def tuning_score(found: Knowledge, reference: Knowledge) -> float:
    """Return the harmonic mean of the share of knowledge removed and the share of utility kept.

    Removing more than what unseen texts lack, or a higher probability of what is kept, earns nothing.

    Args:
        found: After unlearning.
        reference: The target.
    """
    span = max(1e-6, reference.forget - reference.unseen)
    removed = min(1.0, max(0.0, (reference.forget - found.forget) / span))
    kept = min(1.0, found.checked / max(1e-6, reference.checked))
    return float(harmonic_mean([removed, kept]))


def check_trials(count: int) -> None:
    """Raise UsageError for fewer than one trial, or more than there are settings."""
    if not 1 <= count <= MAXIMUM_TRIALS:
        raise UsageError(f"--trials: got {count}", hint=f"allowed: 1 to {MAXIMUM_TRIALS}")


def _layers(num_blocks: int, window: int) -> dict[float, int]:
    """Return the block at each depth, with room for the window below and different ones where possible."""
    lower = min(num_blocks - 1, max(window - 1, round(_LOWER * num_blocks)))
    upper = min(num_blocks - 1, max(lower + 1, round(_UPPER * num_blocks)))
    return {_LOWER: lower, _UPPER: upper}


def tune(
    label: str,
    trials: Sequence[Overrides],
    score_of: Callable[[Overrides], float],
    record: Path,
    sink: EventSink,
) -> Tuned:
    """Score every trial and keep the best; trials that `record` holds are not run again.

    A trial that diverges scores 0.

    Args:
        label: Name of the method, for messages.
        trials: Settings to try.
        score_of: Unlearns with the settings and says how well that went; higher is better.
        record: File that keeps the scores, written after every trial.
        sink: Receives progress.
    """
    known = _read(record)
    results: list[dict[str, Any]] = []
    for number, trial in enumerate(trials, start=1):
        entry = next((found for found in known if found["settings"] == trial), None)
        if entry is None:
            started = time.perf_counter()
            score = _score(label, number, trial, score_of, sink)
            entry = {"settings": trial, "score": score, "seconds": time.perf_counter() - started}
            shown = f"{label}, trial {number} of {len(trials)}: {_short(trial)}: score {score:.3f}"
            sink(Notice(message=shown))
        results.append(entry)
        write_json_atomic(record, {"trials": [*results, *(e for e in known if e not in results)]})
    scores = tuple(float(entry["score"]) for entry in results)
    best = max(range(len(scores)), key=lambda index: scores[index])
    if scores[best] <= 0:
        sink(Notice(message=f"{label}: no trial forgets and keeps utility", level="warning"))
    return Tuned(dict(trials[best]), scores, sum(float(entry["seconds"]) for entry in results))


def _score(
    label: str, number: int, trial: Overrides, score_of: Callable[[Overrides], float], sink: EventSink
) -> float:
    try:
        return score_of(trial)
    except NumericalError as error:
        sink(Notice(message=f"{label}, trial {number}: {error}", level="warning"))
        return 0.0


def _read(record: Path) -> list[dict[str, Any]]:
    """Return finished trials; records of other versions, which lack the settings, are passed over."""
    if not record.is_file():
        return []
    stored = json.loads(record.read_text(encoding="utf-8"))
    entries = stored.get("trials", [])
    return [entry for entry in entries if {"settings", "score", "seconds"} <= set(entry)]


def _short(trial: Mapping[str, Any]) -> str:
    shown = (LAYER, "train.relative_step" if LAYER in trial else "train.learning_rate")
    return ", ".join(f"{key.rpartition('.')[2]} {trial[key]}" for key in shown if key in trial)
