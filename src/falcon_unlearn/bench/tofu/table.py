"""The table of methods on one TOFU setting: reference models, tuning, seeds. Every finished row is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from falcon_unlearn.bench.memory import StagePeaks
from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.tofu.data import TofuData, forget_rows, retained_rows
from falcon_unlearn.bench.tofu.evaluate import evaluate_tofu
from falcon_unlearn.bench.tofu.gates import tofu_gates
from falcon_unlearn.bench.tofu.log import write_log
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.bench.tofu.training import method_recipe, unlearn_rows
from falcon_unlearn.bench.tofu.tuning import (
    Probabilities,
    TuningAuthors,
    answer_probabilities,
    tuning_score,
)
from falcon_unlearn.bench.tuning import DEFAULT_TRIALS, Overrides, Tuned, trials_of, tune
from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, Notice, StageStarted
from falcon_unlearn.metrics.open_unlearning_log import EvaluationLog, read_log
from falcon_unlearn.models.access import LoadedModel, count_blocks, load_model, pick_device
from falcon_unlearn.runs import write_json_atomic

REFERENCE = "falcon-reference"
"""Table name of FALCON as the released code computes it."""
Role = Literal["base", "target", "retain", "retain_replicate"]


@dataclass(frozen=True)
class ReferenceModels:
    """Point to the models that frame a table."""

    base: Path
    target: Path
    retain: Path
    retain_replicate: Path | None


class TofuTable:
    """Fill a folder with one result file per row; rows that are there are not computed again."""

    def __init__(
        self,
        folder: Path,
        models: ReferenceModels,
        data: TofuData,
        setting: TofuSetting,
        *,
        retain_rows: int | None,
        sink: EventSink,
        layer: int | None = None,
        trials: int = DEFAULT_TRIALS,
    ) -> None:
        """Remember what the rows have in common.

        Args:
            folder: Where the rows are kept.
            models: Models that frame the table.
            data: TOFU.
            setting: The authors.
            retain_rows: Retain questions to score, instead of the setting's number.
            sink: Receives progress.
            layer: Loss layer of methods on states; tuned if None.
            trials: Settings that each method may try.
        """
        self.folder, self.models, self.data, self.setting = folder, models, data, setting
        self.retain_rows, self.sink, self.layer, self.trials = retain_rows, sink, layer, trials
        self._reference: Probabilities | None = None
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "tuning").mkdir(exist_ok=True)

    def reference_row(self, role: Role) -> BenchResult:
        """Evaluate a model that frames the table.

        Raises:
            UsageError: There is no second retain model.
        """
        names = {"base": "base", "target": "target", "retain": "retain A", "retain_replicate": "retain B"}
        folder = getattr(self.models, role)
        if folder is None:
            raise UsageError("there is no second retain model: prepare it first")
        path = self._path(names[role])
        if not path.is_file():
            self.sink(StageStarted(stage="evaluate", message=names[role]))
            loaded = load_model(ModelSettings(name=str(folder)), pick_device("auto"))
            self._evaluate(path, loaded, role, names[role], StagePeaks(), retain_log=role != "retain")
        return read_result(path)

    def method_row(self, name: str, seed: int) -> BenchResult:
        """Tune a method if that was not done, unlearn with one seed, and evaluate."""
        method = "falcon" if name == REFERENCE else name
        path = self._path(f"{name}-seed-{seed}")
        if path.is_file():
            return read_result(path)
        tuned = self._tuned(name, method)
        self.sink(StageStarted(stage="bench", message=f"{name}, seed {seed}"))
        peaks = StagePeaks()
        recipe = method_recipe(method, self.models.target, seed, {**self._fixed(name), **tuned.overrides})
        with peaks.stage("unlearning"):
            unlearned = unlearn_rows(
                recipe,
                forget_rows(self.data, self.setting),
                retained_rows(self.data, self.setting),
                self.sink,
            )
        loaded, seconds = unlearned.loaded, unlearned.stage_seconds
        extra = {
            "method": name,
            "seed": seed,
            "recipe": {
                **{key: str(value) for key, value in {**self._fixed(name), **tuned.overrides}.items()},
                "layer": str(unlearned.layer) if METHODS[method].acts_on == "states" else "all",
                "tuning trials": str(tuned.trials),
                "tuning scores": ", ".join(f"{score:.3f}" for score in tuned.scores),
                "tuning seconds": f"{tuned.seconds:.0f}",
                "trained parameters": str(unlearned.session.result.trained_parameters),
            },
        }
        del unlearned  # the original tensors would count as memory of the evaluation
        self._evaluate(path, loaded, "unlearned", name, peaks, retain_log=True, extra=extra, seconds=seconds)
        return read_result(path)

    def gates(self) -> None:
        """Judge the reference models, and write the gates into the target's row."""
        rows = {}
        for role, name in (
            ("target", "target"),
            ("retain", "retain A"),
            ("retain_replicate", "retain B"),
            ("base", "base"),
        ):
            path = self._path(name)
            rows[role] = read_result(path) if path.is_file() else None
        target, retain = rows["target"], rows["retain"]
        if target is None or retain is None:
            return
        gates = tofu_gates(target, retain, rows["retain_replicate"], rows["base"])
        write_json_atomic(self._path("target"), target.model_copy(update={"gates": gates}))
        for gate in gates:
            if not gate.passed:
                message = f"gate failed: {gate.name}: {gate.value:.3g}, needed {gate.condition}"
                self.sink(Notice(message=message, level="warning"))

    def _tuned(self, name: str, method: str) -> Tuned:
        acts_on = METHODS[method].acts_on
        fixed = self._fixed(name)
        num_blocks = count_blocks(ModelSettings(name=str(self.models.target)))
        trials = trials_of(method, acts_on, num_blocks, self.trials, self.layer)
        authors = TuningAuthors.of(self.data, self.setting)

        def score_of(trial: Overrides) -> float:
            recipe = method_recipe(method, self.models.target, 0, {**fixed, **trial})
            reference = self._target_probabilities(authors)
            unlearned = unlearn_rows(recipe, authors.forget, authors.retain, self.sink)
            return tuning_score(answer_probabilities(unlearned.loaded, authors), reference)

        return tune(name, trials, score_of, self.folder / "tuning" / f"{name}.json", self.sink)

    def _target_probabilities(self, authors: TuningAuthors) -> Probabilities:
        if self._reference is None:
            loaded = load_model(ModelSettings(name=str(self.models.target)), pick_device("auto"))
            self._reference = answer_probabilities(loaded, authors)
        return self._reference

    def _fixed(self, name: str) -> Overrides:
        return {"preset": "reference"} if name == REFERENCE else {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.bench.json"

    def _log(self) -> EvaluationLog:
        self.reference_row("retain")
        return read_log(self.folder / "logs" / "retain-A.json")

    def _evaluate(
        self,
        path: Path,
        loaded: LoadedModel,
        role: Any,
        label: str,
        peaks: StagePeaks,
        *,
        retain_log: bool,
        extra: dict[str, Any] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> None:
        reference = self._log() if retain_log else None
        with peaks.stage("evaluation"):
            result, log = evaluate_tofu(
                loaded,
                self.data,
                self.setting,
                retain_log=reference,
                sink=self.sink,
                retain_rows=self.retain_rows,
                role=role,
                label=label,
            )
        update = {
            **(extra or {}),
            "seconds": {**(seconds or {}), **result.seconds},
            "memory": peaks.peaks,
            "peak_memory_bytes": max(peaks.peaks.values()),
            "notes": [*result.notes, *peaks.notes],
        }
        result = result.model_copy(update=update)
        write_log(self.folder / "logs" / path.name.replace(".bench", ""), log)
        # Last, because its presence says that the row is finished.
        write_json_atomic(path, result)


def read_result(path: Path) -> BenchResult:
    """Read one result file."""
    return BenchResult.model_validate_json(path.read_bytes())


def run_table(table: TofuTable, methods: Sequence[str], seeds: Sequence[int]) -> list[BenchResult]:
    """Fill the whole table: retain A first, because the others are measured against it."""
    roles: list[Role] = ["retain", "target", "base"]
    if table.models.retain_replicate is not None:
        roles.append("retain_replicate")
    rows = [table.reference_row(role) for role in roles]
    table.gates()
    for seed in seeds:
        rows += [table.method_row(name, seed) for name in methods]
    return rows
