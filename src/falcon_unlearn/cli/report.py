"""The command `report`."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(
    folder: Annotated[Path, Parameter(help="Output folder of a run.")],
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"], metavar="FILE", help="HTML file; otherwise the one in the folder."
        ),
    ] = None,
    json: Annotated[bool, Parameter(help="Print the result as one JSON document.")] = False,
) -> None:
    """Render the report of `folder`."""
    from falcon_unlearn.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="Give the --output folder of a run.")
    from falcon_unlearn.report import render_report

    path = render_report(folder, output)
    print(json_text.dumps({"report": str(path)}) if json else path)
