"""Copy large files without copying their bytes where the file system can."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Literal

CopyMode = Literal["auto", "reflink", "hardlink", "copy"]
"""`auto` tries a reflink, then a hard link, then copies; the others do the one thing, or copy."""
_FICLONE = 0x40049409
"""Linux: let a file share the blocks of another until one of them is written."""


def share_file(source: Path, destination: Path, mode: CopyMode = "auto") -> str:
    """Make `destination` hold the bytes of `source`, and say how: reflink, hardlink or copy.

    A reflink costs nothing and both files stay independent. A hard link costs nothing, but is one file under
    two names: whoever writes into one of them in place changes the other too.

    Raises:
        OSError: The file system refused to copy.
    """
    real = source.resolve()
    if mode in {"auto", "reflink"} and _reflink(real, destination):
        return "reflink"
    if mode in {"auto", "hardlink"}:
        try:
            os.link(real, destination)
        except OSError:
            # Another file system, or one without hard links.
            pass
        else:
            return "hardlink"
    shutil.copyfile(real, destination)
    return "copy"


def copy_file(source: Path, destination: Path, mode: CopyMode = "auto") -> None:
    """Copy a file that will be written to afterwards: by reflink where possible, never by hard link."""
    if mode == "copy" or not _reflink(source.resolve(), destination):
        shutil.copyfile(source, destination)


def _reflink(source: Path, destination: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as read, destination.open("xb") as write:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
    except FileExistsError:
        raise
    except OSError:
        destination.unlink(missing_ok=True)
        return False
    return True
