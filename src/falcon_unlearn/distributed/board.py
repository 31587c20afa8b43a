"""The notice board of a job: who has arrived, who failed first, and who is still alive.

It lives in torchrun's own key-value store, which outlives a killed rank, and never in a collective operation,
which cannot work any more when it is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from falcon_unlearn.distributed.environment import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

BEAT_SECONDS = 2.0
"""Time between two signs of life of a rank."""
FIRST_FAILURE = "first-failure"
LOST_HINT = (
    "The system may have killed it for want of memory. The same command goes on from the last saved state."
)


class NoticeBoard:
    """Post and read the few facts that ranks must share outside collective operations."""

    def __init__(self, store: Store, place: Place) -> None:
        """Post that this rank exists, and keep posting that it lives."""
        self._store, self.place = store, place
        self._closed = threading.Event()
        self._speaks = False
        store.set(f"process/{place.rank}", f"{place.host} {psutil.Process().pid}")
        threading.Thread(target=self._beat, name="falcon-heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self.place.rank}", 1)
            except RuntimeError:
                return

    def close(self) -> None:
        """Stop the signs of life."""
        self._closed.set()

    def count(self, key: str, increment: int = 0) -> int:
        """Add to a counter and return it."""
        return self._store.add(key, increment)

    def post(self, key: str, text: str) -> None:
        """Write a text that `read` of any rank returns."""
        self._store.set(key, text)

    def read(self, key: str) -> str | None:
        """Return a posted text, or None as long as there is none."""
        return self._store.get(key).decode() if self._store.check([key]) else None

    def claim_failure(self) -> bool:
        """Tell whether this rank is the first to fail, and so the one that speaks.

        Where the board is out of reach, the first rank of every machine speaks.
        """
        try:
            self._speaks = self.count(FIRST_FAILURE, 1) == 1
        except RuntimeError:
            return self.place.local_rank == 0
        return self._speaks

    def settle_exit_code(self, own: int, *, patience: float = 2.0) -> int:
        """Post the exit code of the rank that spoke, and return it on the others; `own` if there is none."""
        self.leave()
        deadline = time.monotonic() + patience
        try:
            if self._speaks:
                self.post("exit-code", str(own))
            while (text := self.read("exit-code")) is None and time.monotonic() < deadline:
                time.sleep(0.05)
        except RuntimeError:
            return own
        return own if text is None else int(text)

    def has_failed(self) -> bool:
        """Tell whether any rank has failed."""
        return self.count(FIRST_FAILURE) > 0

    def leave(self) -> None:
        """Post that this rank ends in an orderly way, so that nobody takes it for killed."""
        try:
            self.post(f"left/{self.place.rank}", "yes")
        except RuntimeError:
            return

    def killed_neighbours(self) -> list[int]:
        """Return the ranks on this machine whose process ended without leaving."""
        try:
            return [rank for rank in range(self.place.size) if self._was_killed(rank)]
        except RuntimeError:
            return []

    def describe_loss(self) -> str | None:
        """Say which ranks on this machine were killed; None if none was."""
        killed = self.killed_neighbours()
        return describe_lost(killed) if killed else None

    def _was_killed(self, rank: int) -> bool:
        text = self.read(f"process/{rank}")
        if text is None or self.read(f"left/{rank}") is not None:
            return False
        host, pid = map(int, text.split())
        return host == self.place.host and not is_running(pid)

    def beats(self) -> dict[int, int]:
        """Return the number of signs of life of every rank."""
        return {rank: self.count(f"beat/{rank}") for rank in range(self.place.size)}


def describe_lost(ranks: Sequence[int]) -> str:
    """Say that ranks were lost."""
    return f"rank {', '.join(map(str, ranks))} of the job was lost: its process ended without a word"


def is_running(pid: int) -> bool:
    """Tell whether a process exists and has not ended."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False
