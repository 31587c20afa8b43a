"""The table of methods on one benchmark: reference models, tuning, seeds. Every finished row is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from falcon_unlearn.bench.memory import StagePeaks
from falcon_unlearn.bench.records import BenchResult, Gate
from falcon_unlearn.bench.tuning import (
    DEFAULT_TRIALS,
    Knowledge,
    Overrides,
    Tuned,
    trials_of,
    tune,
    tuning_score,
)
from falcon_unlearn.bench.unlearning import TrainingSets, method_recipe, unlearn_examples
from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, Notice, StageStarted
from falcon_unlearn.models.access import LoadedModel, count_blocks, load_model, pick_device
from falcon_unlearn.runs import write_json_atomic

REFERENCE = "falcon-reference"
"""Table name of FALCON as the released code computes it."""
Role = Literal["base", "target", "retain", "retain_replicate"]
ROLE_LABELS: dict[Role, str] = {
    "retain": "retain A",
    "target": "target",
    "base": "base",
    "retain_replicate": "retain B",
}
"""In the order of evaluation: the others are measured against retain A."""


@dataclass(frozen=True)
class ReferenceModels:
    """Point to the models that frame a table."""

    base: Path
    target: Path
    retain: Path
    retain_replicate: Path | None


class Benchmark(Protocol):
    """Say what a table needs to know of its benchmark."""

    @property
    def data_settings(self) -> Mapping[str, Any]:
        """Settings of `data` in the recipes."""

    @property
    def training_settings(self) -> Overrides:
        """Dotted settings of all methods, such as the batch size that fits the texts."""

    def training(self) -> TrainingSets:
        """Return what the reported rows forget and keep."""

    def tuning(self) -> TrainingSets:
        """Return what is forgotten and kept while tuning; no reported number comes from it."""

    def knowledge(self, loaded: LoadedModel) -> Knowledge:
        """Measure a model on the tuning data."""

    def evaluate(
        self, loaded: LoadedModel, role: Any, label: str, retain_log: Path | None, sink: EventSink
    ) -> tuple[BenchResult, Mapping[str, Any]]:
        """Return the record and the per-sample log; without the retain model's log for itself only."""

    def gates(self, rows: Mapping[Role, BenchResult]) -> list[Gate]:
        """Judge the reference models, target and retain model among them."""


class ResultTable:
    """Fill a folder with one result file per row; rows that are there are not computed again."""

    def __init__(
        self,
        folder: Path,
        models: ReferenceModels,
        benchmark: Benchmark,
        *,
        sink: EventSink,
        layer: int | None = None,
        trials: int = DEFAULT_TRIALS,
    ) -> None:
        """Remember what the rows have in common.

        Args:
            folder: Where the rows are kept.
            models: Models that frame the table.
            benchmark: What is forgotten and how it is measured.
            sink: Receives progress.
            layer: Loss layer of methods on states; tuned if None.
            trials: Settings that each method may try.
        """
        self.folder, self.models, self.benchmark = folder, models, benchmark
        self.sink, self.layer, self.trials = sink, layer, trials
        self._target_knowledge: Knowledge | None = None
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "tuning").mkdir(exist_ok=True)

    @property
    def retain_log(self) -> Path:
        """Per-sample log of retain model A."""
        return self.folder / "logs" / "retain-A.json"

    def reference_row(self, role: Role) -> BenchResult:
        """Evaluate a model that frames the table.

        Raises:
            UsageError: There is no second retain model.
        """
        folder: Path | None = getattr(self.models, role)
        if folder is None:
            raise UsageError("there is no second retain model: prepare it first")
        label = ROLE_LABELS[role]
        path = self._path(label)
        if not path.is_file():
            if role != "retain":
                self.reference_row("retain")
            self.sink(StageStarted(stage="evaluate", message=label))
            loaded = load_model(ModelSettings(name=str(folder)), pick_device("auto"))
            self._evaluate(path, loaded, role, label, StagePeaks(), {}, {})
        return read_result(path)

    def method_row(self, name: str, seed: int) -> BenchResult:
        """Tune a method if that was not done, unlearn with one seed, and evaluate."""
        path = self._path(f"{name}-seed-{seed}")
        if path.is_file():
            return read_result(path)
        self.reference_row("retain")
        tuned = self.tuned(name)
        self.sink(StageStarted(stage="bench", message=f"{name}, seed {seed}"))
        peaks = StagePeaks()
        with peaks.stage("unlearning"):
            unlearned = unlearn_examples(
                self.recipe(name, seed, tuned.overrides), self.benchmark.training(), self.sink
            )
        acts_on = METHODS[_method(name)].acts_on
        settings = {**_fixed(name), **tuned.overrides}
        extra = {
            "method": name,
            "seed": seed,
            "recipe": {
                **{key: str(value) for key, value in settings.items()},
                "layer": str(unlearned.layer) if acts_on == "states" else "all",
                "tuning trials": str(tuned.trials),
                "tuning scores": ", ".join(f"{score:.3f}" for score in tuned.scores),
                "tuning seconds": f"{tuned.seconds:.0f}",
                "trained parameters": str(unlearned.session.result.trained_parameters),
            },
        }
        loaded, seconds = unlearned.loaded, unlearned.stage_seconds
        del unlearned  # the original tensors would count as memory of the evaluation
        self._evaluate(path, loaded, "unlearned", name, peaks, extra, seconds)
        return read_result(path)

    def gates(self) -> None:
        """Judge the reference models, write the gates into the target's row, and announce failed ones."""
        found = {role: self._path(label) for role, label in ROLE_LABELS.items()}
        rows = {role: read_result(path) for role, path in found.items() if path.is_file()}
        if not {"target", "retain"} <= set(rows):
            return
        gates = self.benchmark.gates(rows)
        write_json_atomic(self._path("target"), rows["target"].model_copy(update={"gates": gates}))
        for gate in gates:
            if not gate.passed:
                message = f"gate failed: {gate.name}: {gate.value:.3g}, needed {gate.condition}"
                self.sink(Notice(message=message, level="warning"))

    def recipe(self, name: str, seed: int, overrides: Overrides) -> Recipe:
        """Return the recipe of a row."""
        settings = {**_fixed(name), **overrides}
        data = self.benchmark.data_settings
        return method_recipe(_method(name), self.models.target, seed, data, settings)

    def tuned(self, name: str) -> Tuned:
        """Return the best settings of a method; trials that were run are not run again."""
        acts_on = METHODS[_method(name)].acts_on
        num_blocks = count_blocks(ModelSettings(name=str(self.models.target)))
        changes = self.benchmark.training_settings
        trials = trials_of(_method(name), acts_on, num_blocks, self.trials, self.layer, changes=changes)

        def score_of(trial: Overrides) -> float:
            reference = self._knowledge_of_target()
            recipe = self.recipe(name, 0, trial)
            unlearned = unlearn_examples(recipe, self.benchmark.tuning(), self.sink)
            return tuning_score(self.benchmark.knowledge(unlearned.loaded), reference)

        return tune(name, trials, score_of, self.folder / "tuning" / f"{name}.json", self.sink)

    def _knowledge_of_target(self) -> Knowledge:
        if self._target_knowledge is None:
            loaded = load_model(ModelSettings(name=str(self.models.target)), pick_device("auto"))
            self._target_knowledge = self.benchmark.knowledge(loaded)
        return self._target_knowledge

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.bench.json"

    def _evaluate(
        self,
        path: Path,
        loaded: LoadedModel,
        role: Any,
        label: str,
        peaks: StagePeaks,
        extra: dict[str, Any],
        seconds: dict[str, float],
    ) -> None:
        retain_log = None if role == "retain" else self.retain_log
        with peaks.stage("evaluation"):
            result, log = self.benchmark.evaluate(loaded, role, label, retain_log, self.sink)
        update = {
            **extra,
            "seconds": {**seconds, "evaluation": sum(result.seconds.values())},
            "memory": peaks.peaks,
            "peak_memory_bytes": max(peaks.peaks.values()),
            "notes": [*result.notes, *peaks.notes],
        }
        write_json_atomic(self.folder / "logs" / path.name.replace(".bench", ""), dict(log))
        # Last, because its presence says that the row is finished.
        write_json_atomic(path, result.model_copy(update=update))


def read_result(path: Path) -> BenchResult:
    """Read one result file."""
    return BenchResult.model_validate_json(path.read_bytes())


def run_table(table: ResultTable, methods: Sequence[str], seeds: Sequence[int]) -> list[BenchResult]:
    """Fill the whole table: retain A first, because the others are measured against it."""
    roles = [role for role in ROLE_LABELS if getattr(table.models, role) is not None]
    for role in roles:
        table.reference_row(role)
    table.gates()
    rows = [table.reference_row(role) for role in roles]
    for seed in seeds:
        rows += [table.method_row(name, seed) for name in methods]
    return rows


def check_methods(names: Sequence[str]) -> None:
    """Raise UsageError for a name that no table knows."""
    allowed = [*METHODS, REFERENCE]
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise UsageError(f"--method: got {unknown[0]!r}", hint=f"allowed: {', '.join(allowed)}")


def _method(name: str) -> str:
    return "falcon" if name == REFERENCE else name


def _fixed(name: str) -> Overrides:
    return {"preset": "reference"} if name == REFERENCE else {}
