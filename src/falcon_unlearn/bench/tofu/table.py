"""The table of methods on one TOFU setting: reference models, tuning, seeds. Every finished row is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.tofu.data import TofuData, forget_rows, retained_rows
from falcon_unlearn.bench.tofu.evaluate import evaluate_tofu
from falcon_unlearn.bench.tofu.gates import tofu_gates
from falcon_unlearn.bench.tofu.log import write_log
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.bench.tofu.training import method_recipe, unlearn_rows
from falcon_unlearn.bench.tofu.tuning import Tuned, tune_method
from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, Notice, StageStarted
from falcon_unlearn.metrics.open_unlearning_log import EvaluationLog, read_log
from falcon_unlearn.models.access import LoadedModel, load_model, pick_device
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
    ) -> None:
        """Remember what the rows have in common; `layer` fixes the loss layer of methods on states."""
        self.folder, self.models, self.data, self.setting = folder, models, data, setting
        self.retain_rows, self.sink, self.layer = retain_rows, sink, layer
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
            self._evaluate(path, loaded, role, names[role], retain_log=role != "retain")
        return read_result(path)

    def method_row(self, name: str, seed: int) -> BenchResult:
        """Tune a method if that was not done, unlearn with one seed, and evaluate."""
        method = "falcon" if name == REFERENCE else name
        path = self._path(f"{name}-seed-{seed}")
        if path.is_file():
            return read_result(path)
        tuned = self._tuned(name, method)
        self.sink(StageStarted(stage="bench", message=f"{name}, seed {seed}"))
        recipe = method_recipe(method, self.models.target, seed, {**self._fixed(name), **tuned.overrides})
        unlearned = unlearn_rows(
            recipe, forget_rows(self.data, self.setting), retained_rows(self.data, self.setting), self.sink
        )
        training = unlearned.session.result
        extra = {
            "method": name,
            "seed": seed,
            "recipe": {
                **{key: str(value) for key, value in {**self._fixed(name), **tuned.overrides}.items()},
                "layer": str(unlearned.layer) if METHODS[method].acts_on == "states" else "all",
                "tuning trials": str(tuned.trials),
                "trained parameters": str(training.trained_parameters),
            },
        }
        seconds = {"cache": training.seconds_cache, "train": training.seconds_train}
        self._evaluate(
            path, unlearned.loaded, "unlearned", name, retain_log=True, extra=extra, seconds=seconds
        )
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
        return tune_method(
            method,
            METHODS[method].acts_on,
            self._fixed(name),
            self.models.target,
            self.data,
            self.setting,
            self.folder / "tuning" / f"{name}.json",
            self.sink,
        )

    def _fixed(self, name: str) -> dict[str, Any]:
        fixed: dict[str, Any] = {}
        if name == REFERENCE:
            fixed["preset"] = "reference"
        if self.layer is not None and METHODS.get(name, METHODS["falcon"]).acts_on == "states":
            fixed["selection.layer"] = self.layer
        return fixed

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
        *,
        retain_log: bool,
        extra: dict[str, Any] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> None:
        result, log = evaluate_tofu(
            loaded,
            self.data,
            self.setting,
            retain_log=self._log() if retain_log else None,
            sink=self.sink,
            retain_rows=self.retain_rows,
            role=role,
            label=label,
        )
        result = result.model_copy(update={**(extra or {}), "seconds": {**(seconds or {}), **result.seconds}})
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
