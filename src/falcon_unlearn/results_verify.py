"""The record of `verify`: what was checked in a finished run, and what came out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.results import EnvironmentDifference, Record

VERIFY_VERSION = 1


class Check(Record):
    """State the outcome of one check."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    """What was compared, what differs, or why it was skipped."""


class MetricCheck(Record):
    """Compare one recorded number with the one measured again."""

    set: str
    metric: str
    recorded: float
    now: float
    status: Literal["passed", "failed"]


class VerifyResult(Record):
    """Record one verification."""

    version: int = VERIFY_VERSION
    run: str
    """Name of the run folder, never a path."""
    passed: bool
    """No check failed; skipped ones say why."""
    checks: list[Check]
    changed_tensors: list[str] | None
    """Tensors whose bits differ from the base; None when no base was given."""
    metrics: list[MetricCheck] = Field(default_factory=list)
    environment: list[EnvironmentDifference] = Field(default_factory=list)
    """Differences to the recorded environment, the gravest first."""
    tolerance: str = ""
    """What counted as equal for the metrics."""
