"""The command `run`."""

from __future__ import annotations

from falcon_unlearn.cli.invocation import invocation
from falcon_unlearn.cli.options import (
    DEFAULT_DISPLAY,
    DEFAULT_RECIPE,
    AuditTier,
    DisplayOptions,
    ModelArgument,
    OutputFolder,
    OutputFormat,
    RecipeOptions,
    ResumeArgument,
)


def run(
    model: ModelArgument = None,
    *,
    output: OutputFolder,
    resume: ResumeArgument = "auto",
    output_format: OutputFormat = None,
    audit: AuditTier = None,
    options: RecipeOptions = DEFAULT_RECIPE,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Run the three steps with evaluation and report."""
    from falcon_unlearn.cli.audit_table import finish_audit
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.ranks import follow, is_silent, leading
    from falcon_unlearn.cli.tables import refuse_collapse, show_run
    from falcon_unlearn.runs import check_output

    recipe, typed = options.with_audit(audit).load(model, output_format=output_format)
    if is_silent():
        follow(recipe)
        return
    check_output(output)
    with leading(recipe), display.progress() as sink:
        from falcon_unlearn.pipeline import run_pipeline

        summary = run_pipeline(
            recipe, output, typed_recipe=typed, command=invocation(), sink=sink, resume=resume
        )
    print_result(summary, show_run, as_json=display.json)
    finish_audit(output, shown=not display.json)
    refuse_collapse(summary)
