"""The folder of this package in the user's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "FALCON_CACHE"


def cache_folder() -> Path:
    """Return the folder of this package in the user's cache, by the rules of the platform."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared and os.path.isabs(shared):
        return Path(shared) / "falcon-unlearn"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "falcon-unlearn"
    local = os.environ.get("LOCALAPPDATA")
    if sys.platform == "win32" and local:
        return Path(local) / "falcon-unlearn" / "Cache"
    return Path.home() / ".cache" / "falcon-unlearn"
