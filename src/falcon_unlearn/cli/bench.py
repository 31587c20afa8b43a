"""The command `bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from falcon_unlearn.cli.options import DEFAULT_DISPLAY, DisplayOptions

if TYPE_CHECKING:
    from falcon_unlearn.bench.records import BenchResult
    from falcon_unlearn.events import EventSink


def bench(
    benchmark: Annotated[Literal["tofu", "muse", "wmdp"], Parameter(help="Which benchmark.")],
    model: Annotated[
        str | None, Parameter(help="Model to score; with --prepare or --method the base model.")
    ] = None,
    *,
    data_dir: Annotated[
        str | None, Parameter(metavar="DIR", help="Folder with the benchmark's files; the hub by default.")
    ] = None,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], metavar="PATH", help="Result file, or the table's folder."),
    ] = None,
    tier: Annotated[
        str | None, Parameter(metavar="NAME", help="Size: T-S, T-M, T-L (TOFU), M-S, M-M (MUSE) or full.")
    ] = None,
    split: Annotated[
        str | None, Parameter(metavar="NAME", help="TOFU: forget01, forget05 or forget10.")
    ] = None,
    corpus: Annotated[Literal["News", "Books"], Parameter(help="MUSE: which corpus.")] = "News",
    retain_log: Annotated[
        Path | None, Parameter(metavar="FILE", help="Per-sample log of the retain model.")
    ] = None,
    role: Annotated[str, Parameter(metavar="ROLE", help="What the model is: target, retain, ...")] = "other",
    label: Annotated[str, Parameter(metavar="NAME", help="Name of the row.")] = "",
    task: Annotated[tuple[str, ...], Parameter(metavar="NAME", help="WMDP: task; repeatable.")] = (),
    limit: Annotated[int | None, Parameter(metavar="N", help="WMDP: items of each task.")] = None,
    backend: Annotated[Literal["native", "lm-eval"], Parameter(help="WMDP: whose scorer.")] = "native",
    retain_rows: Annotated[
        int | None, Parameter(metavar="N", help="TOFU: retain questions to score.")
    ] = None,
    prepare: Annotated[bool, Parameter(help="TOFU: train target and retain models, and stop.")] = False,
    method: Annotated[
        tuple[str, ...], Parameter(metavar="NAME", help="TOFU: fill a table with this method; repeatable.")
    ] = (),
    seed: Annotated[
        tuple[int, ...], Parameter(metavar="N", help="TOFU: seed of the table; repeatable.")
    ] = (),
    layer: Annotated[
        int | None, Parameter(metavar="N", help="TOFU: loss layer of the table; tuned by default.")
    ] = None,
    trials: Annotated[int, Parameter(metavar="N", help="TOFU: settings that each method may try.")] = 3,
    aggregate: Annotated[
        Path | None, Parameter(metavar="LOG", help="Only recompute the aggregates of an evaluation log.")
    ] = None,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Score one model, or fill a table of methods."""
    from falcon_unlearn.errors import UsageError

    if aggregate is not None:
        _show_aggregates(aggregate, retain_log, as_json=display.json)
        return
    if model is None:
        raise UsageError("bench: no model given", hint="falcon-unlearn bench tofu MODEL --data-dir DIR")
    if (prepare or method) and benchmark != "tofu":
        raise UsageError(f"--prepare and --method belong to tofu, got {benchmark}")
    with display.progress() as sink:
        if prepare or method:
            rows = _table(
                model, data_dir, tier, split, output, method, seed, layer, trials, retain_rows, sink
            )
        else:
            place = output or Path(f"{benchmark}.bench.json")
            shared = {"role": _role(role), "label": label, "sink": sink}
            rows = [
                _score(benchmark, model, data_dir, place, tier, split, corpus, retain_log, task, limit,
                       backend, retain_rows, shared)
            ]  # fmt: skip
    _show(rows, as_json=display.json)


def _role(role: str) -> str:
    from falcon_unlearn.bench.scoring import ROLES
    from falcon_unlearn.errors import UsageError

    if role not in ROLES:
        raise UsageError(f"--role: got {role!r}", hint=f"allowed: {', '.join(ROLES)}")
    return role


def _score(
    benchmark: str,
    model: str,
    data_dir: str | None,
    output: Path,
    tier: str | None,
    split: str | None,
    corpus: Literal["News", "Books"],
    retain_log: Path | None,
    tasks: tuple[str, ...],
    limit: int | None,
    backend: Literal["native", "lm-eval"],
    retain_rows: int | None,
    shared: dict[str, object],
) -> BenchResult:
    from falcon_unlearn.bench import scoring

    if benchmark == "tofu":
        return scoring.score_tofu(
            model,
            data_dir,
            scoring.setting_of(tier, split),
            output,
            retain_log=retain_log,
            retain_rows=retain_rows,
            **shared,  # type: ignore[arg-type]
        )
    if benchmark == "muse":
        return scoring.score_muse(
            model,
            data_dir,
            tier,
            output,
            corpus=corpus,
            retain_log=retain_log,
            **shared,  # type: ignore[arg-type]
        )
    return scoring.score_wmdp(
        model,
        data_dir,
        output,
        tasks=tasks,
        limit=limit,
        backend=backend,
        **shared,  # type: ignore[arg-type]
    )


def _table(
    base: str,
    data_dir: str | None,
    tier: str | None,
    split: str | None,
    output: Path | None,
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    layer: int | None,
    trials: int,
    retain_rows: int | None,
    sink: EventSink,
) -> list[BenchResult]:
    from falcon_unlearn.bench.scoring import setting_of
    from falcon_unlearn.bench.tofu.data import HUB_ID, load_tofu
    from falcon_unlearn.bench.tofu.prepare import prepare_tofu
    from falcon_unlearn.bench.tofu.table import REFERENCE, TofuTable, run_table
    from falcon_unlearn.bench.tuning import check_trials
    from falcon_unlearn.config.catalogue import METHODS
    from falcon_unlearn.config.model import ModelSettings
    from falcon_unlearn.errors import UsageError

    unknown = sorted(set(methods) - {*METHODS, REFERENCE})
    if unknown:
        raise UsageError(f"--method: got {unknown[0]!r}", hint=f"allowed: {', '.join([*METHODS, REFERENCE])}")
    check_trials(trials)
    setting = setting_of(tier or "T-M", split)
    data = load_tofu(data_dir or HUB_ID, setting.forget)
    models = prepare_tofu(ModelSettings(name=base), data, setting, sink)
    if not methods:
        return []
    folder = output or Path(f"tofu-{setting.tier}")
    table = TofuTable(
        folder, models, data, setting, retain_rows=retain_rows, sink=sink, layer=layer, trials=trials
    )
    return run_table(table, methods, seeds or (0,))


def _show(rows: list[BenchResult], *, as_json: bool) -> None:
    from rich import box
    from rich.table import Table

    from falcon_unlearn.cli.console import make_console
    from falcon_unlearn.cli.terminal import clean

    if as_json:
        print("[" + ",\n".join(row.model_dump_json(indent=2) for row in rows) + "]")
        return
    console = make_console(sys.stdout)
    for row in rows:
        table = Table(title=clean(row.label), box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("metric", "value", "interval", "should be", "note"):
            table.add_column(column, overflow="fold")
        for metric in row.metrics:
            value = "-" if metric.value is None else f"{metric.value:.4g}"
            interval = "" if metric.low is None else f"{metric.low:.4g} to {metric.high:.4g}"
            table.add_row(metric.name, value, interval, metric.desired, clean(metric.note))
        console.print(table)
        for note in row.notes:
            console.print(clean(note))


def _show_aggregates(log: Path, retain_log: Path | None, *, as_json: bool) -> None:
    from rich import box
    from rich.table import Table

    from falcon_unlearn.cli.console import make_console
    from falcon_unlearn.metrics.open_unlearning import aggregate_log

    aggregates = aggregate_log(log, retain_log)
    if as_json:
        from json import dumps

        print(dumps({name: vars(entry) for name, entry in aggregates.items()}, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("metric", "recomputed", "in the log", "samples", "note"):
        table.add_column(column, overflow="fold")
    for name, entry in aggregates.items():
        values = ["-" if v is None else repr(v) for v in (entry.value, entry.published)]
        table.add_row(name, *values, str(entry.num_samples), entry.note)
    make_console(sys.stdout).print(table)
