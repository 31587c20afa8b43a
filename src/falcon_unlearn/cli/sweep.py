"""The command `sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from falcon_unlearn.cli.options import DEFAULT_DISPLAY, DisplayOptions, ModelArgument, RecipeOptions

if TYPE_CHECKING:
    from rich.console import Console

    from falcon_unlearn.sweep.records import SweepResult

Several = Parameter(metavar="V,V", help="One or more values, separated by commas. Repeatable.")


def sweep(
    model: ModelArgument = None,
    *,
    output: Annotated[
        Path,
        Parameter(name=["--output", "-o"], metavar="DIR", help="Folder of the sweep; it may go on there."),
    ],
    vary: Annotated[
        tuple[str, ...],
        Parameter(metavar="KEY.PATH=V,V", help="Values of any setting of the recipe. Repeatable."),
    ] = (),
    method: Annotated[tuple[str, ...], Several] = (),
    seed: Annotated[tuple[str, ...], Several] = (),
    forget: Annotated[tuple[str, ...], Parameter(metavar="[NAME=]FILE", help="As for `run`.")] = (),
    retain: Annotated[tuple[str, ...], Parameter(metavar="[NAME=]FILE", help="As for `run`.")] = (),
    recipe: Annotated[Path | None, Parameter(metavar="YAML", help="Recipe file; see `init`.")] = None,
    set: Annotated[tuple[str, ...], Parameter(metavar="KEY.PATH=VALUE", help="As for `run`.")] = (),
    workers: Annotated[int, Parameter(metavar="N", help="Runs at a time; 1 by default.")] = 1,
    engine: Annotated[
        Literal["optuna", "ray"], Parameter(help="optuna (here) or ray (here or a cluster).")
    ] = "optuna",
    cores: Annotated[float, Parameter(metavar="X", help="Ray: processor cores of one run.")] = 1.0,
    gpus: Annotated[float, Parameter(metavar="X", help="Ray: GPUs of one run.")] = 0.0,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Run all combinations and compare them."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.errors import FalconError, UsageError
    from falcon_unlearn.sweep.points import parse_list, parse_variation
    from falcon_unlearn.sweep.running import SweepSettings, run_sweep

    if workers < 1:
        raise UsageError(f"--workers: got {workers}, at least 1 is needed")
    variations: dict[str, list[Any]] = {}
    for key, values in [
        ("method", parse_list(method, "--method")),
        ("seed", parse_list(seed, "--seed")),
        *map(parse_variation, vary),
    ]:
        if key in variations and values:
            raise UsageError(f"{key}: is varied twice", hint="Put all its values into one flag.")
        if values:
            variations[key] = values
    options = RecipeOptions(forget=forget, retain=retain, recipe=recipe, set=set)
    check_points(options, model, variations)
    shared = run_arguments(options, model)
    settings = SweepSettings(engine, workers, cores, gpus)
    with display.progress() as sink:
        result = run_sweep(shared, variations, output, settings, sink=sink)
    print_result(result, show_sweep, as_json=display.json)
    failed = [trial.name for trial in result.trials if trial.status != "finished"]
    if failed:
        raise FalconError(
            f"{len(failed)} of {len(result.trials)} runs did not finish, first {failed[0]}",
            hint=f"See {output / 'logs'}; the same command runs them again.",
        )


def check_points(options: RecipeOptions, model: str | None, variations: dict[str, list[Any]]) -> None:
    """Refuse a point whose recipe cannot be used before the first run starts."""
    import dataclasses
    import json

    from falcon_unlearn.sweep.points import make_points

    for point in make_points(variations):
        own = tuple(f"{key}={json.dumps(value)}" for key, value in point.items())
        dataclasses.replace(options, set=(*options.set, *own)).load(model)


def run_arguments(options: RecipeOptions, model: str | None) -> list[str]:
    """Return the flags of `run` that repeat `options`."""
    flags = [] if model is None else ["--model", model]
    if options.recipe is not None:
        flags += ["--recipe", str(options.recipe)]
    for flag, values in (("--forget", options.forget), ("--retain", options.retain), ("--set", options.set)):
        for value in values:
            flags += [flag, value]
    return flags


def show_sweep(result: SweepResult, console: Console) -> None:
    """Show one row per run."""
    from rich import box
    from rich.table import Table

    from falcon_unlearn.cli.console import format_seconds
    from falcon_unlearn.cli.terminal import clean

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "status", "time"):
        table.add_column(heading)
    for trial in result.trials:
        table.add_row(clean(trial.name), trial.status, format_seconds(trial.seconds))
    console.print(table)
    if result.comparison:
        console.print(f"Table: {result.comparison}", soft_wrap=True)
    sys.stdout.flush()
