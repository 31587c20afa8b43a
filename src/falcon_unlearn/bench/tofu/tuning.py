"""Tune a method on authors that no reported number comes from: equal effort for all.

The target also knows the last retain authors. Forgetting some of those, and comparing with authors that no
model was trained on, shows how a setting does without touching the reported forget set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

from falcon_unlearn.bench.tofu.data import TofuData, TofuRow, author_rows
from falcon_unlearn.bench.tofu.encoding import MAXIMUM_TOKENS, encode_rows
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.bench.tofu.training import method_recipe, unlearn_rows
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import NumericalError, UsageError
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.events import EventSink, Notice
from falcon_unlearn.metrics.model_utility import harmonic_mean
from falcon_unlearn.models.access import LoadedModel, load_model, pick_device
from falcon_unlearn.models.scoring import completion_log_probabilities
from falcon_unlearn.models.text import TextEncoder
from falcon_unlearn.runs import write_json_atomic

NUM_FORGET, NUM_UNSEEN, NUM_CHECKED = 5, 5, 5
"""Authors to forget while tuning (the last retained ones), authors that were never seen, and retained authors
that are checked (those before the last, which no table reports either)."""

_STATES: tuple[dict[str, Any], ...] = ({"train.relative_step": 0.01}, {"train.relative_step": 0.03})
_OUTPUTS: tuple[dict[str, Any], ...] = ({"train.learning_rate": 5e-5}, {"train.learning_rate": 2e-4})
_SHARED_STATES = {"train.learning_rate": "auto", "train.steps": 120, "train.batch_size": 8}
_SHARED_OUTPUTS = {"train.steps": 25, "train.batch_size": 8, "train.schedule": "linear"}
_TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    # The target of RMU must be long against the states it replaces; the adaptive form sets that by itself.
    "rmu": tuple({**t, "objective.rmu.adaptive": True, "objective.rmu.coefficient": 3.0} for t in _STATES),
}


@dataclass(frozen=True)
class Tuned:
    """Hold the chosen settings of a method."""

    overrides: dict[str, Any]
    trials: int
    scores: tuple[float, ...]


def trials_of(method: str, acts_on: str) -> list[dict[str, Any]]:
    """Return the settings to try: the same number for every method."""
    shared = _SHARED_STATES if acts_on == "states" else _SHARED_OUTPUTS
    tried = _TRIALS.get(method, _STATES if acts_on == "states" else _OUTPUTS)
    return [{**shared, **trial} for trial in tried]


def tune_method(
    method: str,
    acts_on: str,
    fixed: Mapping[str, Any],
    target: Path,
    data: TofuData,
    setting: TofuSetting,
    record: Path,
    sink: EventSink,
) -> Tuned:
    """Try every setting of a method on the tuning authors and keep the best; finished tuning is read again.

    The score is the harmonic mean of the share of knowledge removed, down to that of unseen authors, and of
    the share of retained probability kept. Removing more than that earns nothing.

    Args:
        method: Name of the method.
        acts_on: `states` or `outputs`.
        fixed: Dotted settings that are not tuned, such as the layer.
        target: Folder of the prepared target.
        data: TOFU.
        setting: The authors of the table.
        record: File that keeps the scores.
        sink: Receives progress.

    Raises:
        UsageError: No trial could be run without diverging.
    """
    if record.is_file():
        stored = json.loads(record.read_text(encoding="utf-8"))
        return Tuned(stored["overrides"], len(stored["scores"]), tuple(stored["scores"]))
    authors = TuningAuthors.of(data, setting)
    reference = _reference(target, authors)
    trials = trials_of(method, acts_on)
    scores = []
    for number, trial in enumerate(trials, start=1):
        recipe = method_recipe(method, target, 0, {**fixed, **trial})
        try:
            unlearned = unlearn_rows(recipe, authors.forget, authors.retain, sink)
        except NumericalError as error:
            sink(Notice(message=f"{method}, trial {number}: {error}", level="warning"))
            scores.append(0.0)
            continue
        scores.append(_score(_probabilities(unlearned.loaded, authors), reference))
        sink(Notice(message=f"{method}, trial {number} of {len(trials)}: {trial}: score {scores[-1]:.3f}"))
    if max(scores) <= 0:
        sink(Notice(message=f"{method}: no trial forgets and keeps utility", level="warning"))
    best = max(range(len(trials)), key=lambda index: scores[index])
    write_json_atomic(record, {"overrides": trials[best], "scores": scores, "trials": trials})
    return Tuned(trials[best], len(trials), tuple(scores))


@dataclass(frozen=True)
class TuningAuthors:
    """Hold the rows that tuning forgets, keeps, checks, and compares with."""

    forget: tuple[TofuRow, ...]
    retain: tuple[TofuRow, ...]
    checked: tuple[TofuRow, ...]
    unseen: tuple[TofuRow, ...]

    @classmethod
    def of(cls, data: TofuData, setting: TofuSetting) -> TuningAuthors:
        """Take the last retain authors to forget, and holdout authors as unseen ones.

        Raises:
            UsageError: The setting has too few authors.
        """
        kept, unseen = setting.retain_authors, setting.holdout_authors
        if len(kept) < NUM_FORGET + NUM_CHECKED + 1 or not unseen:
            raise UsageError(f"setting {setting.tier}: too few authors to tune on; use T-M or T-L")
        return cls(
            author_rows(data.full, kept[-NUM_FORGET:]),
            author_rows(data.full, kept[:-NUM_FORGET]),
            author_rows(data.full, kept[:-NUM_FORGET][-NUM_CHECKED:]),
            author_rows(data.full, unseen[-NUM_UNSEEN:]),
        )


@dataclass(frozen=True)
class _Probabilities:
    forget: float
    checked: float
    unseen: float


def _reference(target: Path, authors: TuningAuthors) -> _Probabilities:
    return _probabilities(load_model(ModelSettings(name=str(target)), pick_device("auto")), authors)


def _score(found: _Probabilities, reference: _Probabilities) -> float:
    span = max(1e-6, reference.forget - reference.unseen)
    removed = min(1.0, max(0.0, (reference.forget - found.forget) / span))
    kept = min(1.0, found.checked / max(1e-6, reference.checked))
    return float(harmonic_mean([removed, kept]))


def _probabilities(loaded: LoadedModel, authors: TuningAuthors) -> _Probabilities:
    encoder = TextEncoder(loaded.tokenizer, chat_template=False, maximum_tokens=MAXIMUM_TOKENS)
    return _Probabilities(
        *(
            _mean_probability(loaded, encoder, rows)
            for rows in (authors.forget, authors.checked, authors.unseen)
        )
    )


def _mean_probability(loaded: LoadedModel, encoder: TextEncoder, rows: Sequence[TofuRow]) -> float:
    pairs = [(question.prompt, question.answer) for question in encode_rows(encoder, rows, "tuning")]
    with evaluation_mode(loaded.model):
        scores = completion_log_probabilities(loaded.model, pairs, pad_id=0, batch_tokens=2048)
    return sum(exp(score.mean_log_probability) for score in scores) / len(scores)
