"""Let every rank read what all ranks cached: one folder per machine, and an exchange between machines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from falcon_unlearn.distributed.team import Team
from falcon_unlearn.errors import PeerError


class StateStore(Protocol):
    """Hold one tensor per sample."""

    def read(self, index: int) -> Tensor:
        """Return the tensor of a sample."""

    def write(self, index: int, states_LD: Tensor) -> None:
        """Store the tensor of a sample."""


@contextmanager
def machine_folder(team: Team, folder: Path) -> Iterator[Path]:
    """Give all ranks of a machine one folder: `folder` on the leader's machine, a temporary one elsewhere.

    Args:
        team: The ranks.
        folder: Existing folder of the leader; other ranks may give anything.

    Raises:
        PeerError: The first rank of this machine named no folder in time.
    """
    if team.size == 1 or team.leads:
        _announce(team, folder)
        yield folder
        return
    if team.place.local_rank == 0:
        with TemporaryDirectory(prefix="falcon-") as own:
            _announce(team, Path(own))
            yield Path(own)
        return
    yield _await_folder(team)


def _key(team: Team, number: int) -> str:
    return f"folder/{team.place.host}/{number}"


def _announce(team: Team, folder: Path) -> None:
    if team.board is not None and team.size > 1:
        number = team.board.count(f"folders/{team.place.host}", 1)
        team.board.post(_key(team, number), str(folder.absolute()))


def _await_folder(team: Team) -> Path:
    """Return the folder that the first rank of this machine announced since the last one taken."""
    board = team.board
    assert board is not None
    number = team.next_folder()
    deadline = time.monotonic() + team.timeout
    while (text := board.read(_key(team, number))) is None:
        if board.has_failed() or time.monotonic() > deadline:
            raise PeerError("the first process of this machine named no folder for the cached states")
        time.sleep(0.05)
    return Path(text)


def exchange_states(team: Team, stores: Sequence[StateStore], batches: Sequence[Sequence[int]]) -> None:
    """Copy the states that other machines cached into the stores of this one.

    Args:
        team: The ranks; batch number i was computed by rank i modulo their number.
        stores: Stores whose rows are to be complete on every machine.
        batches: All batches of samples.
    """
    team.meet()
    if team.leaders is None:
        return
    hosts = team.hosts
    firsts = {host: hosts.index(host) for host in hosts}
    with team.peers_may_fail():
        if team.place.local_rank == 0:
            for number, batch in enumerate(batches):
                owner = hosts[number % team.size]
                for store in stores:
                    _copy_batch(team, store, batch, owner, firsts[owner])
    team.meet()


def _copy_batch(team: Team, store: StateStore, batch: Sequence[int], owner: int, source: int) -> None:
    for index in batch:
        states_LD = store.read(index).clone()
        # As bytes: not every backend knows every dtype.
        dist.broadcast(states_LD.view(torch.uint8), src=source, group=team.leaders)
        if team.place.host != owner:
            store.write(index, states_LD)
