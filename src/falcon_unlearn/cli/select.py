"""The command `select`."""

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


def select(
    model: ModelArgument = None,
    *,
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
    """Run step 1."""
    from falcon_unlearn.cli.console import check_result_file, print_result
    from falcon_unlearn.cli.tables import show_selection

    recipe, _ = options.load(model)
    check_result_file(output)
    with display.progress() as sink:
        from falcon_unlearn.pipeline import select_layer

        result = select_layer(recipe, sink=sink, output=output, resume=resume)
    print_result(result, show_selection, as_json=display.json)
