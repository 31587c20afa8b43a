"""The command `unlearn`."""

from __future__ import annotations

from falcon_unlearn.cli.invocation import invocation
from falcon_unlearn.cli.options import (
    DEFAULT_DISPLAY,
    DEFAULT_RECIPE,
    DisplayOptions,
    ModelArgument,
    OutputFolder,
    OutputFormat,
    RecipeOptions,
    ResumeArgument,
)


def unlearn(
    model: ModelArgument = None,
    *,
    output: OutputFolder,
    resume: ResumeArgument = "auto",
    output_format: OutputFormat = None,
    options: RecipeOptions = DEFAULT_RECIPE,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Run steps 1 to 3 without evaluation."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.ranks import follow, is_silent, leading
    from falcon_unlearn.cli.tables import show_run
    from falcon_unlearn.runs import check_output

    recipe, typed = options.load(model, output_format=output_format)
    if is_silent():
        follow(recipe)
        return
    check_output(output)
    with leading(recipe), display.progress() as sink:
        from falcon_unlearn.pipeline import unlearn as unlearn_model

        summary = unlearn_model(
            recipe, output, typed_recipe=typed, command=invocation(), sink=sink, resume=resume
        )
    print_result(summary, show_run, as_json=display.json)
