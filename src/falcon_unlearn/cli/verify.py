"""The command `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from falcon_unlearn.cli.options import DEFAULT_DISPLAY, DisplayOptions

if TYPE_CHECKING:
    from rich.console import Console

    from falcon_unlearn.results_verify import VerifyResult

_STYLES = {"passed": "green", "failed": "red", "skipped": "dim"}


def verify(
    folder: Annotated[Path, Parameter(help="Output folder of a run.")],
    /,
    *,
    base: Annotated[
        str | None, Parameter(metavar="MODEL", help="Original model, to prove which tensors changed.")
    ] = None,
    data: Annotated[
        tuple[Path, ...],
        Parameter(metavar="FILE", help="File or folder with the texts and sets of the run. Repeatable."),
    ] = (),
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Check a finished run."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.errors import GateError, UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="Give the --output folder of a run.")
    with display.progress() as sink:
        from falcon_unlearn.pipeline.verifying import verify_run

        result = verify_run(folder, base=base, data=data, sink=sink)
    print_result(result, show_verification, as_json=display.json)
    failed = [check.name for check in result.checks if check.status == "failed"]
    if failed:
        raise GateError(
            f"{result.run}: not as recorded: {', '.join(failed)}",
            hint="The folder was changed after the run, or base or data are others than those of the run.",
        )


def show_verification(result: VerifyResult, console: Console) -> None:
    """Show checks, numbers and differences of environment."""
    from falcon_unlearn.cli.tables import line, new_table, table_row

    checks = new_table(None, "check", "outcome", "detail")
    for check in result.checks:
        table_row(checks, check.name, check.status, check.detail, style=_STYLES[check.status])
    console.print(checks)
    if result.metrics:
        numbers = new_table(f"Numbers, {result.tolerance}", "set", "metric", "recorded>", "now>", "outcome")
        for one in result.metrics:
            values = (f"{one.recorded:.6g}", f"{one.now:.6g}")
            table_row(numbers, one.set, one.metric, *values, one.status, style=_STYLES[one.status])
        console.print(numbers)
    if result.environment:
        table = new_table("Differences to the recorded environment", "grade", "what", "recorded", "now")
        for difference in result.environment:
            table_row(table, difference.grade, difference.name, difference.recorded, difference.now)
        console.print(table)
    else:
        line(console, "The environment is the recorded one.")
