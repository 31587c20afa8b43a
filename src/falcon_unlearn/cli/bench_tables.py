"""Prepared models and tables of methods, as the command `bench` asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from falcon_unlearn.bench.muse.curves import MuseCurve
    from falcon_unlearn.bench.records import BenchResult
    from falcon_unlearn.bench.table import ResultTable
    from falcon_unlearn.events import EventSink


@dataclass(frozen=True)
class TableRequest:
    """Hold what was asked for."""

    base: str
    data_dir: str | None
    tier: str | None
    split: str | None
    corpus: Literal["News", "Books"]
    output: Path | None
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    layer: int | None
    trials: int
    retain_rows: int | None
    epochs: int | None
    learning_rate: float | None
    curves: bool


@dataclass(frozen=True)
class Filled:
    """Hold the rows of a table and the curves beside it."""

    rows: list[BenchResult]
    curves: list[MuseCurve]


def fill_table(benchmark: str, request: TableRequest, sink: EventSink) -> Filled:
    """Prepare the models of a benchmark; fill its table where methods are given.

    Raises:
        FalconError: The request, the data or a model cannot be used.
    """
    from falcon_unlearn.bench.table import check_methods
    from falcon_unlearn.bench.tuning import check_trials

    check_methods(request.methods)
    check_trials(request.trials)
    return _tofu(request, sink) if benchmark == "tofu" else _muse(request, sink)


def _tofu(request: TableRequest, sink: EventSink) -> Filled:
    from falcon_unlearn.bench.scoring import setting_of
    from falcon_unlearn.bench.tofu.data import HUB_ID, load_tofu
    from falcon_unlearn.bench.tofu.prepare import prepare_tofu
    from falcon_unlearn.bench.tofu.table import TofuBenchmark
    from falcon_unlearn.config.model import ModelSettings
    from falcon_unlearn.training.finetune import FinetuneSettings

    setting = setting_of(request.tier or "T-M", request.split)
    data = load_tofu(request.data_dir or HUB_ID, setting.forget)
    finetuning = _finetuning(FinetuneSettings(), request)
    models = prepare_tofu(ModelSettings(name=request.base), data, setting, sink, finetuning=finetuning)
    if not request.methods:
        return Filled([], [])
    benchmark = TofuBenchmark(data, setting, request.retain_rows)
    return Filled(_rows(_table(f"tofu-{setting.tier}", models, benchmark, request, sink), request), [])


def _muse(request: TableRequest, sink: EventSink) -> Filled:
    from falcon_unlearn.bench.muse.curve_runs import CurveRuns
    from falcon_unlearn.bench.muse.data import HUB_IDS, load_muse
    from falcon_unlearn.bench.muse.prepare import FINETUNING, muse_tier, prepare_muse
    from falcon_unlearn.bench.muse.table import MuseBenchmark
    from falcon_unlearn.config.model import ModelSettings
    from falcon_unlearn.evaluation.subject import Subject
    from falcon_unlearn.models.access import load_tokenizer

    whole = load_muse(request.data_dir or HUB_IDS[request.corpus], request.corpus)
    data = muse_tier(whole, request.tier or "M-S")
    base = ModelSettings(name=request.base)
    models = prepare_muse(base, data, sink, finetuning=_finetuning(FINETUNING, request))
    if not request.methods:
        return Filled([], [])
    benchmark = MuseBenchmark(data, Subject(None, load_tokenizer(base)))
    table = _table(f"muse-{data.setting['tier']}", models, benchmark, request, sink)
    rows = _rows(table, request)
    runs = CurveRuns(table, benchmark) if request.curves else None
    seed = (request.seeds or (0,))[0]
    curves = [curve for name in request.methods for curve in runs.run(name, seed)] if runs else []
    return Filled(rows, curves)


def _table(name: str, models: Any, benchmark: Any, request: TableRequest, sink: EventSink) -> ResultTable:
    from falcon_unlearn.bench.table import ResultTable

    return ResultTable(
        request.output or Path(name),
        models,
        benchmark,
        sink=sink,
        layer=request.layer,
        trials=request.trials,
    )


def _rows(table: ResultTable, request: TableRequest) -> list[BenchResult]:
    from falcon_unlearn.bench.table import run_table

    return run_table(table, request.methods, request.seeds or (0,))


def _finetuning(default: Any, request: TableRequest) -> Any:
    from dataclasses import replace

    from falcon_unlearn.errors import UsageError

    changes: dict[str, Any] = {}
    if request.epochs is not None:
        if request.epochs < 1:
            raise UsageError(f"--epochs: got {request.epochs}", hint="give 1 or more")
        changes["epochs"] = request.epochs
    if request.learning_rate is not None:
        if not 0 < request.learning_rate < 1:
            raise UsageError(f"--learning-rate: got {request.learning_rate}", hint="give one between 0 and 1")
        changes["learning_rate"] = request.learning_rate
    return replace(default, **changes)
