"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from falcon_unlearn.cli.options import (
    DEFAULT_DISPLAY,
    DEFAULT_RECIPE,
    DisplayOptions,
    ModelArgument,
    RecipeOptions,
    ResumeArgument,
)


def evaluate(
    model: ModelArgument = None,
    *,
    original: Annotated[
        str | None, Parameter(metavar="MODEL", help="Model before the change, for the divergence to it.")
    ] = None,
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"],
            metavar="FILE",
            help="Also write the result as JSON; with it, a killed command can go on.",
        ),
    ] = None,
    resume: ResumeArgument = "auto",
    options: RecipeOptions = DEFAULT_RECIPE,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Measure one model."""
    from falcon_unlearn.cli.console import check_result_file, print_result
    from falcon_unlearn.cli.tables import show_evaluation

    recipe, _ = options.load(model)
    check_result_file(output)
    with display.progress() as sink:
        from falcon_unlearn.pipeline import evaluate_model

        result = evaluate_model(recipe, sink=sink, original=original, output=output, resume=resume)
    print_result(result, show_evaluation, as_json=display.json)
