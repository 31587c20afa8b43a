"""The command `validate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from falcon_unlearn.cli.options import (
    DEFAULT_DISPLAY,
    DEFAULT_RECIPE,
    DisplayOptions,
    ModelArgument,
    RecipeOptions,
)


def validate(
    model: ModelArgument = None,
    *,
    recipe_only: Annotated[bool, Parameter(help="Do not open the data files.")] = False,
    options: RecipeOptions = DEFAULT_RECIPE,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Check the settings, and unless told otherwise the data."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.tables import show_data, show_valid_recipe

    recipe, _ = options.load(model, check=not recipe_only)
    if recipe_only:
        print_result(recipe, show_valid_recipe, as_json=display.json)
        return
    with display.progress() as sink:
        from falcon_unlearn.pipeline import validate_data

        result = validate_data(recipe, sink=sink)
    print_result(result, show_data, as_json=display.json)
