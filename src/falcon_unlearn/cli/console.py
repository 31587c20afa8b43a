"""Standard output carries results; standard error carries progress: live on a terminal, plain elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as LiveProgress
from rich.text import Text

from falcon_unlearn.cli.terminal import clean
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import (
    Event,
    EventSink,
    Notice,
    Progress,
    StageFinished,
    StageStarted,
    TrainingStepped,
    ignore_events,
)

PLAIN_WIDTH = 120
"""Columns of tables where the output is not a terminal and COLUMNS is not set."""
_SILENT = {
    # Bars of other libraries would draw over ours, and their notes are not addressed to our user.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
_SHOWN_METRICS = (
    ("forget_loss", "forget", ".3f"),
    ("retain_loss", "retain", ".4f"),
    ("conflict_share", "conflicts", ".0%"),
    ("retain_drift", "drift", ".4f"),
)
ResultT = TypeVar("ResultT", bound=BaseModel)


def make_console(stream: IO[str]) -> Console:
    """Build a console that prints text as it is: no markup, no automatic highlighting."""
    fixed = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(
        file=stream, markup=False, highlight=False, emoji=False, width=PLAIN_WIDTH if fixed else None
    )


def print_result(record: ResultT, show: Callable[[ResultT, Console], None], *, as_json: bool) -> None:
    """Print a result on standard output, for people or as one JSON document."""
    if as_json:
        print(record.model_dump_json(indent=2))
    else:
        show(record, make_console(sys.stdout))


def check_result_file(path: Path | None) -> None:
    """Refuse a result file that exists or whose folder does not, before any work is done.

    Where a result is in place, what a kill left beside it is removed, and the refusal says so.

    Raises:
        UsageError: naming the file.
    """
    if path is None:
        return
    if path.exists() or path.is_symlink():
        from falcon_unlearn.runs import remove_finished

        left = remove_finished(path)
        hint = "Name another file, or remove this one." + (f"\n{left}" if left else "")
        raise UsageError(f"{path}: exists already", hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")


@contextmanager
def progress_sink(*, quiet: bool, verbose: bool, stream: IO[str] | None = None) -> Iterator[EventSink]:
    """Yield a sink: nothing, a live display or plain lines, by flags and terminal."""
    stream = sys.stderr if stream is None else stream
    with _silenced_libraries():
        if quiet:
            yield ignore_events
        elif stream.isatty() and os.environ.get("TERM") != "dumb":
            with LiveSink(make_console(stream), verbose=verbose) as live:
                yield live
        else:
            yield PlainSink(stream, verbose=verbose)


@contextmanager
def _silenced_libraries() -> Iterator[None]:
    added = [name for name in _SILENT if name not in os.environ]
    os.environ.update({name: _SILENT[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def format_seconds(seconds: float) -> str:
    """Write a duration: `4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class StepTimer:
    """Estimate the remaining time from the steps seen so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def describe(self, event: TrainingStepped) -> str:
        """Describe a step: losses, conflict share, retain drift and the remaining time."""
        parts = [
            f"{label} {event.metrics[key]:{form}}"
            for key, label, form in _SHOWN_METRICS
            if key in event.metrics
        ]
        now = self._clock()
        if self._first is None or event.step <= self._first[0]:
            self._first = (event.step, now)
        done = event.step - self._first[0]
        if done > 0 and event.step < event.total:
            remaining = (now - self._first[1]) / done * (event.total - event.step)
            parts.append(f"{format_seconds(remaining)} left")
        return "  ".join(parts)


class PlainSink:
    """Write one line per event worth reading, for logs and pipes."""

    def __init__(
        self, stream: IO[str], *, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._verbose = verbose
        self._clock = clock
        self._timer = StepTimer(clock)
        self._last = float("-inf")

    def __call__(self, event: Event) -> None:
        """Write the line of `event`, if it is due."""
        match event:
            case StageStarted():
                self._write(f"[{event.stage}] {event.message}")
                self._last = self._clock()
            case StageFinished():
                self._write(_finished(event))
            case Progress():
                if self._due(event.done == event.total, seconds=5.0):
                    self._write(f"[{event.stage}] {event.done}/{event.total} {event.message}".rstrip())
            case TrainingStepped():
                line = self._timer.describe(event)
                tenth = max(1, event.total // 10)
                if self._due(event.step in {1, event.total} or event.step % tenth == 0, seconds=30.0):
                    self._write(f"[train] step {event.step}/{event.total}  {line}")
            case Notice():
                self._write(f"{event.level}: {event.message}" if event.level == "warning" else event.message)

    def _due(self, always: bool, *, seconds: float) -> bool:
        now = self._clock()
        if always or self._verbose or now - self._last >= seconds:
            self._last = now
            return True
        return False

    def _write(self, line: str) -> None:
        print(clean(line), file=self._stream, flush=True)


def _finished(event: StageFinished) -> str:
    return f"[{event.stage}] {event.message or 'done'} ({format_seconds(event.seconds)})"


class LiveSink:
    """Draw one bar per running stage, and leave a line for every finished one."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._progress = LiveProgress(
            TextColumn("{task.fields[stage]:<9}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._verbose = verbose
        self._timer = StepTimer()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveSink:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        """Stop drawing and restore the terminal."""
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Draw `event`."""
        match event:
            case StageStarted():
                self._update(event.stage, description=event.message)
            case StageFinished():
                self._close(event)
            case Progress():
                self._update(event.stage, event.done, event.total, event.message)
            case TrainingStepped():
                line = self._timer.describe(event)
                self._update("train", event.step, event.total, line)
                if self._verbose:
                    self._print(f"step {event.step}/{event.total}  {line}", "dim")
            case Notice():
                warning = event.level == "warning"
                self._print(f"warning: {event.message}" if warning else event.message, "yellow" * warning)

    def _update(
        self, stage: str, done: int | None = None, total: int | None = None, description: str = ""
    ) -> None:
        text = " ".join(clean(description).split())
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(text, total=None, stage=clean(stage))
        self._progress.update(self._tasks[stage], completed=done, total=total, description=text or None)

    def _close(self, event: StageFinished) -> None:
        if (task := self._tasks.pop(event.stage, None)) is not None:
            self._progress.remove_task(task)
        self._print(_finished(event), "dim")

    def _print(self, line: str, style: str) -> None:
        self._progress.console.print(Text(clean(line), style=style))
