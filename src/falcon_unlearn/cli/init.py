"""The command `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def init(
    path: Annotated[Path, Parameter(help="File to write; falcon.yaml if not given.")] = Path("falcon.yaml"),
    /,
) -> None:
    """Write the commented recipe to `path`."""
    from falcon_unlearn.config.template import commented_recipe
    from falcon_unlearn.errors import UsageError
    from falcon_unlearn.runs import write_text_atomic

    text = commented_recipe()
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: exists already", hint="Name another file, or remove this one.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    write_text_atomic(path, text)
    print(f"Wrote {path}. Fill in the lines marked REQUIRED, then: falcon-unlearn validate --recipe {path}")
