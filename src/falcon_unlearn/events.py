"""Progress events. Library code emits them; only the command line shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """Announce a pipeline stage."""

    stage: str
    """Stable name: prepare, data, select, cache, train, write, evaluate, report."""
    message: str


@dataclass(frozen=True, kw_only=True)
class StageFinished:
    """Close a pipeline stage."""

    stage: str
    seconds: float
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Count work done inside a stage."""

    stage: str
    done: int
    total: int
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingStepped:
    """Carry the diagnostics of one optimisation step."""

    step: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Tell the user something that needs no action (`info`) or attention (`warning`)."""

    message: str
    level: Literal["info", "warning"] = "info"


Event = StageStarted | StageFinished | Progress | TrainingStepped | Notice
EventSink = Callable[[Event], None]


def ignore_events(event: Event) -> None:
    """Drop `event`; the default sink of library calls."""
    del event
