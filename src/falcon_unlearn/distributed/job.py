"""Join the job that torchrun started, and leave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from falcon_unlearn.distributed.board import NoticeBoard
from falcon_unlearn.distributed.environment import Place, read_place
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.errors import PeerError

_SOLO = Team()
_current: Team = _SOLO
_board: NoticeBoard | None = None


def current_team() -> Team:
    """Return the team of this process: of one outside `joined`, like torch's own default process group."""
    return _current


def current_board() -> NoticeBoard | None:
    """Return the board of the job that was joined and not left in an orderly way."""
    return _board


@contextmanager
def joined(*, timeout: float, device: str = "auto") -> Iterator[Team]:
    """Join the job of torchrun's environment while the context is open; a team of one outside a job.

    Args:
        timeout: Seconds after which a collective operation, or a silent rank, counts as lost.
        device: The recipe's device; CUDA ranks take the GPU of their local rank.

    Raises:
        PeerError: The ranks do not find each other in time, or lose each other while the context is open.
    """
    global _current, _board
    place = read_place()
    if place is None:
        yield _SOLO
        return
    team = _join(place, timeout, device)
    _current, _board = team, team.board
    try:
        # A split window talks to its peers inside torch, where no operation of ours explains a failure.
        with team.peers_may_fail():
            yield team
            team.meet()
    finally:
        _current = _SOLO
        if team.board is not None:
            team.board.close()
    _leave(team)
    _board = None


def _leave(team: Team) -> None:
    """Leave in an orderly way: post it, and give the process group back."""
    if team.board is not None:
        team.board.leave()
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(place: Place, timeout: float, device: str) -> Team:
    limit = timedelta(seconds=timeout)
    uses_cuda = torch.cuda.is_available() and device in {"auto", "cuda"}
    if uses_cuda:
        torch.cuda.set_device(place.local_rank)
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
        # Numbers and control data travel over gloo, whatever carries the gradients.
        backend = "cpu:gloo,cuda:nccl" if uses_cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        board = NoticeBoard(PrefixStore("falcon", store), place)
        hosts = _hosts(place)
        firsts = [hosts.index(host) for host in sorted(set(hosts), key=hosts.index)]
        leaders = dist.new_group(firsts, backend="gloo", timeout=limit) if len(firsts) > 1 else None
    except RuntimeError as error:
        text = str(error).strip().splitlines()
        raise PeerError(
            f"rank {place.rank} of {place.size} could not join the job: {text[0][:200] if text else error}",
            hint="Check --rdzv-endpoint, the firewall, and that every machine starts the same command.",
        ) from error
    return Team(place, board, leaders=leaders, hosts=hosts, timeout=timeout)


def _hosts(place: Place) -> list[int]:
    """Return the number of the machine of every rank."""
    hosts: list[int] = [0] * place.size
    dist.all_gather_object(hosts, place.host)
    return hosts
