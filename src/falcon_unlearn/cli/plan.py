"""The command `plan`."""

from __future__ import annotations

from functools import partial

from falcon_unlearn.cli.options import (
    DEFAULT_DISPLAY,
    DEFAULT_RECIPE,
    DisplayOptions,
    ModelArgument,
    RecipeOptions,
)


def plan(
    model: ModelArgument = None,
    *,
    options: RecipeOptions = DEFAULT_RECIPE,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Show the plan and the resolved recipe."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.tables import show_plan

    recipe, _ = options.load(model)
    with display.progress():
        from falcon_unlearn.pipeline import plan_run

        result = plan_run(recipe)
    print_result(result, partial(show_plan, recipe=recipe), as_json=display.json)
