"""What a sweep leaves behind besides its runs."""

from __future__ import annotations

from typing import Any, Literal

from falcon_unlearn.results import SCHEMA_VERSION, Record


class Trial(Record):
    """Say what became of one point."""

    name: str
    point: dict[str, Any]
    """Value by recipe key."""
    status: Literal["finished", "failed", "missing"]
    folder: str
    """Run folder, relative to that of the sweep."""
    seconds: float = 0.0
    """Wall time of the attempt that finished, in this or an earlier process."""
    message: str = ""
    """Last words of a failed run."""


class SweepResult(Record):
    """Record a sweep."""

    version: int = SCHEMA_VERSION
    engine: str
    trials: list[Trial]
    comparison: str | None = None
    """Folder of the table, relative to that of the sweep."""
    note: str = ""
    """Why there is no table."""
