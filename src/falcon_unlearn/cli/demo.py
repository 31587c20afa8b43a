"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from falcon_unlearn.cli.invocation import invocation
from falcon_unlearn.cli.options import (
    DEFAULT_DISPLAY,
    AuditTier,
    DisplayOptions,
    ResumeArgument,
    SeedArgument,
    parse_seed,
)

DEFAULT_OUTPUT = "falcon-demo"


def demo(
    *,
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "--output-dir", "-o"],
            metavar="DIR",
            help=f"New folder for the result; otherwise {DEFAULT_OUTPUT}, or {DEFAULT_OUTPUT}-2 and so on.",
        ),
    ] = None,
    seed: SeedArgument = None,
    resume: ResumeArgument = "auto",
    audit: AuditTier = None,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Run the demonstration."""
    from falcon_unlearn.cli.audit_table import finish_audit
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.tables import refuse_collapse, show_run
    from falcon_unlearn.errors import UsageError
    from falcon_unlearn.runs import check_output

    target = output if output is not None else free_folder(Path(DEFAULT_OUTPUT))
    check_output(target)
    number = parse_seed(seed) or 0
    if number < 0:
        raise UsageError(f"--seed: got {number}, an integer >= 0 is needed")
    with display.progress() as sink:
        from falcon_unlearn.demo.run import run_demo

        summary = run_demo(
            target,
            seed=number,
            sink=sink,
            command=invocation(),
            resume=resume,
            audit=audit or "quick",
        )
    print_result(summary, show_run, as_json=display.json)
    finish_audit(target, shown=not display.json)
    refuse_collapse(summary)


def free_folder(base: Path) -> Path:
    """Return `base`, or `base-2`, `base-3` ... : the first that does not exist."""
    candidate, number = base, 1
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate
