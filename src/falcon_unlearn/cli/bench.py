"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from falcon_unlearn.cli.bench_show import show_aggregates, show_results
from falcon_unlearn.cli.bench_tables import Filled, TableRequest, fill_table
from falcon_unlearn.cli.options import DEFAULT_DISPLAY, DisplayOptions

if TYPE_CHECKING:
    from falcon_unlearn.bench.records import BenchResult


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
    also: Annotated[
        tuple[Literal["option-text", "robust", "cyclic"], ...],
        Parameter(
            metavar="FORM",
            help="WMDP, MMLU: also by option text without the options shown, without questions whose longest "
            "option is right, over the cyclic orders of the options; repeatable.",
        ),
    ] = (),
    shots: Annotated[int, Parameter(metavar="N", help="MMLU: solved examples before a question.")] = 0,
    retain: Annotated[
        tuple[str, ...],
        Parameter(metavar="FILE", help="WikiText: text the model kept; warns of overlap; repeatable."),
    ] = (),
    limit: Annotated[int | None, Parameter(metavar="N", help="WMDP: items of each task.")] = None,
    backend: Annotated[Literal["native", "lm-eval"], Parameter(help="WMDP: whose scorer.")] = "native",
    retain_rows: Annotated[
        int | None, Parameter(metavar="N", help="TOFU: retain questions to score.")
    ] = None,
    prepare: Annotated[bool, Parameter(help="TOFU, MUSE: train target and retain models, and stop.")] = False,
    epochs: Annotated[
        int | None, Parameter(metavar="N", help="Epochs of the prepared models; more where a gate fails.")
    ] = None,
    learning_rate: Annotated[
        float | None, Parameter(metavar="X", help="Peak learning rate of the prepared models.")
    ] = None,
    method: Annotated[
        tuple[str, ...],
        Parameter(metavar="NAME", help="TOFU, MUSE: fill a table with this method; repeatable."),
    ] = (),
    seed: Annotated[tuple[int, ...], Parameter(metavar="N", help="Seed of the table; repeatable.")] = (),
    layer: Annotated[
        int | None, Parameter(metavar="N", help="Loss layer of the table; tuned by default.")
    ] = None,
    trials: Annotated[int, Parameter(metavar="N", help="Settings that each method may try.")] = 3,
    curves: Annotated[
        bool, Parameter(help="MUSE: also scalability and sustainability (C5, C6) of each method.")
    ] = False,
    aggregate: Annotated[
        Path | None, Parameter(metavar="LOG", help="Only recompute the aggregates of an evaluation log.")
    ] = None,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Score one model, or fill a table of methods."""
    from falcon_unlearn.errors import UsageError

    if aggregate is not None:
        show_aggregates(aggregate, retain_log, as_json=display.json)
        return
    if model is None:
        raise UsageError("bench: no model given", hint="falcon-unlearn bench tofu MODEL --data-dir DIR")
    if (prepare or method) and benchmark == "wmdp":
        raise UsageError("--prepare and --method belong to tofu and muse, got wmdp")
    if curves and (benchmark != "muse" or not method):
        raise UsageError("--curves needs muse and at least one --method")
    filled = Filled([], [])
    with display.progress() as sink:
        if prepare or method:
            request = TableRequest(
                base=model, data_dir=data_dir, tier=tier, split=split, corpus=corpus, output=output,
                methods=method, seeds=seed, layer=layer, trials=trials, retain_rows=retain_rows,
                epochs=epochs, learning_rate=learning_rate, curves=curves,
            )  # fmt: skip
            filled = fill_table(benchmark, request, sink)
        else:
            place = output or Path(f"{benchmark}.bench.json")
            shared = {"role": _role(role), "label": label, "sink": sink}
            row = _score(benchmark, model, data_dir, place, tier, split, corpus, retain_log, task, limit,
                         backend, retain_rows, also, shots, retain, shared)  # fmt: skip
            filled = Filled([row], [])
    show_results(filled.rows, filled.curves, as_json=display.json)


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
    also: tuple[str, ...],
    shots: int,
    retain: tuple[str, ...],
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
    from falcon_unlearn.bench.wmdp.evaluate import WmdpOptions

    return scoring.score_wmdp(
        model,
        data_dir,
        output,
        tasks=tasks,
        options=WmdpOptions(
            limit=limit,
            num_shots=shots,
            cloze="option-text" in also,
            robust="robust" in also,
            cyclic="cyclic" in also,
        ),
        backend=backend,
        retain_files=retain,
        **shared,  # type: ignore[arg-type]
    )
