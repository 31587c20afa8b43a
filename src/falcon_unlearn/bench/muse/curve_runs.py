"""Run C5 and C6: unlearn more and more at once, and one request after another, with the settings of a table.

Points that are there are not evaluated again. Their files are named so that no comparison takes them for
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from falcon_unlearn.bench.muse.curves import (
    CurvePoint,
    Kind,
    MuseCurve,
    curve_points,
    curve_records,
    point_data,
)
from falcon_unlearn.bench.muse.table import MuseBenchmark
from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.table import ResultTable, read_result
from falcon_unlearn.bench.unlearning import unlearn_examples
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.events import StageStarted
from falcon_unlearn.models.access import LoadedModel, load_model, pick_device
from falcon_unlearn.runs import write_json_atomic


class CurveRuns:
    """Fill the folder `curves` of a table."""

    def __init__(self, table: ResultTable, benchmark: MuseBenchmark) -> None:
        """Remember the table, whose tuned settings are used."""
        self.table, self.benchmark = table, benchmark
        self.folder = table.folder / "curves"
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, name: str, seed: int) -> list[MuseCurve]:
        """Return C5 and C6 of a method, and write them."""
        found: list[MuseCurve] = []
        for kind in get_args(Kind):
            points = curve_points(self.benchmark.data, kind)
            results = self._results(name, seed, points)
            curves = curve_records(points, results, name)
            plain = {"curves": [curve.model_dump(mode="json") for curve in curves]}
            write_json_atomic(self.folder / f"{name}-seed-{seed}-{kind}.json", plain)
            found += curves
        return found

    def _results(self, name: str, seed: int, points: Sequence[CurvePoint]) -> list[BenchResult]:
        model: LoadedModel | None = None
        paths = [self.folder / f"{name}-seed-{seed}-{point.kind}-{point.step}.point.json" for point in points]
        for number, (point, path) in enumerate(zip(points, paths, strict=True)):
            # A chain starts anew after an interruption: its models are not kept.
            open_paths = paths[number:] if point.kind == "sust" else [path]
            if all(found.is_file() for found in open_paths):
                continue
            started_from = model if point.start == "previous" else None
            model = self._unlearn(name, seed, point, started_from)
            if not path.is_file():
                self._evaluate(model, name, seed, point, path)
        return [read_result(path) for path in paths]

    def _unlearn(self, name: str, seed: int, point: CurvePoint, model: LoadedModel | None) -> LoadedModel:
        message = f"{name}, {point.kind} {point.step}: {len(point.unlearn)} articles"
        self.table.sink(StageStarted(stage="bench", message=message))
        recipe = self.table.recipe(name, seed, self.table.tuned(name).overrides)
        sets = self.benchmark.sets(point.unlearn, self.benchmark.data.require("raw/retain1"))
        return unlearn_examples(recipe, sets, self.table.sink, model).loaded

    def _evaluate(self, model: LoadedModel, name: str, seed: int, point: CurvePoint, path: Path) -> None:
        data = point_data(self.benchmark.data, point)
        result, log = self.benchmark.evaluate_on(
            data,
            model,
            "unlearned",
            f"{name} {point.kind} {point.step}",
            self._reference(point),
            self.table.sink,
        )
        result = result.model_copy(update={"method": name, "seed": seed})
        write_json_atomic(self.folder / "logs" / path.name.replace(".point", ""), dict(log))
        write_json_atomic(path, result)

    def _reference(self, point: CurvePoint) -> Path:
        """Return the log of retain model A on what is forgotten up to this point, the same in C5 and C6."""
        path = self.folder / "logs" / f"retain-A-{point.step}.json"
        if not path.is_file():
            retain = self.table.models.retain
            loaded = load_model(ModelSettings(name=str(retain)), pick_device("auto"))
            data = point_data(self.benchmark.data, point)
            _, log = self.benchmark.evaluate_on(data, loaded, "retain", "retain A", None, self.table.sink)
            write_json_atomic(path, dict(log))
        return path
