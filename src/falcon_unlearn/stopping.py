"""Let SIGTERM and Ctrl+C end a run between two steps. Only `stop_signals` touches handlers; the library never
calls it, the command line does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """Unwind the stack on SIGTERM, so that staging folders and locks are removed."""


class StopRequest:
    """Remember that the user or the system asked the process to end."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, if one came."""
        self._postponed = 0

    def receive(self, number: int) -> None:
        """Take a signal: raise now, or at the end of the step that runs; leave the process on a second one.

        Raises:
            KeyboardInterrupt: SIGINT outside a step.
            Terminated: SIGTERM outside a step.
        """
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if not self._postponed:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal came."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise Terminated

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Let what happens inside finish first; `check` after it raises what came meanwhile."""
        self._postponed += 1
        try:
            yield
        finally:
            self._postponed -= 1


_CURRENT: ContextVar[StopRequest | None] = ContextVar("stop_request", default=None)


def current_stop() -> StopRequest:
    """Return the request that `stop_signals` serves, or one that never comes."""
    return _CURRENT.get() or StopRequest()


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a `StopRequest` while the context is open; the handlers come back after.

    A handler that was changed meanwhile stays. Outside the main thread, where Python allows no handlers, the
    request never comes.
    """
    request = StopRequest()
    token = _CURRENT.set(request)

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        request.receive(number)

    in_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handle) for number in SIGNALS} if in_main else {}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
        _CURRENT.reset(token)
