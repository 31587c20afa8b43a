"""Keep the processes of a sweep, so that one signal to the sweep lets all of them save and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
"""What would make a run a rank of the job that the sweep itself may be part of."""


class Processes:
    """Start runs of the command line and wait for them, from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopping = False
        """True once `stop` was called: no process starts any more."""

    def run(
        self, arguments: Sequence[str], log: Path, *, place: Path, environment: Mapping[str, str]
    ) -> int | None:
        """Run the command line to its end and return the exit code; None: the sweep stops, nothing ran.

        Args:
            arguments: What follows the name of the program.
            log: File to which both outputs are appended.
            place: Working folder.
            environment: Variables beside those of this process.
        """
        with log.open("ab") as file:
            command = [sys.executable, "-m", "falcon_unlearn", *arguments]
            process = self._start(command, file, place, environment)
            if process is None:
                return None
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def _start(
        self, command: Sequence[str], log: IO[bytes], place: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self.stopping:
                return None
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(environment),
                cwd=place,
                # Ctrl+C of a terminal goes to a whole group: a run would get it twice, and not save.
                start_new_session=True,
            )
            self._running.add(process)
            return process

    def stop(self) -> None:
        """Ask every run to finish its step, save and end, and start no other."""
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run: this one, without what would make it a rank of a job."""
    return {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES} | dict(extra)
