"""The ranks of one run, and the sums over them. Alone, every sum is the value itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from falcon_unlearn.distributed.board import LOST_HINT, NoticeBoard, describe_lost
from falcon_unlearn.distributed.environment import Place
from falcon_unlearn.errors import PeerError

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")
ALONE = Place(rank=0, size=1, local_rank=0, local_size=1, host=0)
_DEATH_SECONDS = 2.0
_POLL_SECONDS = 0.05


class Team:
    """Know the own rank, split work, sum tensors and wait for each other."""

    def __init__(
        self,
        place: Place = ALONE,
        board: NoticeBoard | None = None,
        *,
        leaders: Any = None,
        hosts: Sequence[int] = (0,),
        timeout: float = 600.0,
    ) -> None:
        """Describe a team.

        Args:
            place: Which rank this is.
            board: Notice board; None only for a team of one.
            leaders: Process group of the first rank of every machine; None with one machine.
            hosts: Number of the machine of every rank.
            timeout: Seconds after which a silent rank counts as lost.
        """
        self.place, self.board, self.leaders, self.timeout = place, board, leaders, timeout
        self.hosts = list(hosts)
        self._meetings = self._folders = 0

    @property
    def leads(self) -> bool:
        """Tell whether this rank writes, evaluates and speaks."""
        return self.place.rank == 0

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return self.place.size

    def own_part(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return every size-th item, beginning at the own rank."""
        return list(items[self.place.rank :: self.size])

    def own_rows(self, lengths: Sequence[int]) -> list[int]:
        """Return which rows of a batch this rank works on, so that all ranks have about as many tokens."""
        return split_rows(lengths, self.size)[self.place.rank]

    def next_folder(self) -> int:
        """Count the folders taken from the first rank of this machine."""
        self._folders += 1
        return self._folders

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, in place."""
        if self.size > 1:
            with self.peers_may_fail():
                dist.all_reduce(tensor)
        return tensor

    def sum_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return sums of named tensors over all ranks; started together, then awaited."""
        if self.size > 1:
            tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
            with self.peers_may_fail():
                works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors.values()]
                for work in works:
                    work.wait()
        return tensors

    def sum_values(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        summed: list[float] = self.sum_tensor(torch.tensor(values, dtype=torch.float64)).tolist()
        return summed

    def weight(self, count: int) -> float:
        """Return the share of this rank in a mean over tokens: its count over the count of all ranks."""
        if self.size == 1:
            return 1.0
        return count / max(1.0, self.sum_values([count])[0])

    def meet(self) -> None:
        """Wait until all ranks are here, however long they work; a rank that is lost ends the wait.

        Raises:
            PeerError: A rank failed, or gave no sign of life for the team's timeout.
        """
        if self.board is None or self.size == 1:
            return
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        with self.peers_may_fail():
            self.board.count(key, 1)
            self._wait(lambda board: board.count(key) >= self.size)

    def _wait(self, is_over: Callable[[NoticeBoard], bool]) -> None:
        board = self.board
        assert board is not None
        seen, since = board.beats(), time.monotonic()
        while not is_over(board):
            if board.has_failed():
                raise PeerError("another process of the job failed")
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - since > self.timeout:
                silent = [rank for rank, beats in board.beats().items() if beats == seen[rank]]
                if silent:
                    raise PeerError(describe_lost(silent), hint=LOST_HINT)
                seen, since = board.beats(), time.monotonic()

    def from_leader(self, compute: Callable[[], ValueT]) -> ValueT:
        """Let the leader alone compute something, and return it on every rank."""
        value = compute() if self.leads else None
        self.meet()
        return self.share(cast(ValueT, value))

    def share(self, value: ValueT) -> ValueT:
        """Return the leader's value on every rank; it must be picklable."""
        if self.size == 1:
            return value
        holder = [value]
        with self.peers_may_fail():
            dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
        return holder[0]

    def _killed_neighbours(self) -> list[int]:
        """Return the killed ranks on this machine; such a process is there longer than its sockets."""
        if self.board is None:
            return []
        deadline = time.monotonic() + _DEATH_SECONDS
        while not (killed := self.board.killed_neighbours()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return killed

    @contextmanager
    def peers_may_fail(self) -> Iterator[None]:
        """Turn what torch says when a peer is gone into a PeerError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_about_peers(error):
                raise
            if killed := self._killed_neighbours():
                raise PeerError(describe_lost(killed), hint=LOST_HINT) from error
            raise PeerError(
                f"the processes of the job lost each other ({_first_line(error)})",
                hint="A process ended, a machine or its network is gone, or one rank took longer than "
                "runtime.rank_timeout.",
            ) from error


def split_rows(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Deal rows to `size` ranks, longest first to the rank with the fewest tokens; ascending per rank."""
    heap = [(0, rank) for rank in range(size)]
    parts: list[list[int]] = [[] for _ in range(size)]
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, rank = heappop(heap)
        parts[rank].append(row)
        heappush(heap, (tokens + lengths[row], rank))
    return [sorted(part) for part in parts]


def _is_about_peers(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
