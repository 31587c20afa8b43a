"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from falcon_unlearn.cli.options import DEFAULT_DISPLAY, DisplayOptions, OutputFolder


def export(
    delta: Annotated[Path, Parameter(metavar="DELTA", help="Folder of a run with --output-format delta.")],
    *,
    base: Annotated[str, Parameter(metavar="MODEL", help="The base model: local folder or hub id.")],
    output: OutputFolder,
    revision: Annotated[
        str | None, Parameter(metavar="REV", help="Branch, tag or commit of a hub model.")
    ] = None,
    copies: Annotated[
        Literal["auto", "reflink", "hardlink", "copy"],
        Parameter(metavar="HOW", help="How untouched weight files get there; `copy`: independent files."),
    ] = "auto",
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Make a whole model from a delta and its base."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.tables import show_export
    from falcon_unlearn.config.model import ModelSettings
    from falcon_unlearn.runs import check_output

    check_output(output)
    with display.progress():
        from falcon_unlearn.pipeline import export_model

        result = export_model(delta, ModelSettings(name=base, revision=revision), output, copies=copies)
    print_result(result, show_export, as_json=display.json)
