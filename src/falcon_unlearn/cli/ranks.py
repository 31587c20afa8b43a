"""One voice for all ranks of a distributed job."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from falcon_unlearn.distributed.environment import read_place
from falcon_unlearn.errors import UsageError

if TYPE_CHECKING:
    from falcon_unlearn.config.recipe import Recipe
    from falcon_unlearn.distributed.board import NoticeBoard

DISTRIBUTED_COMMANDS = ("run", "unlearn")


def prepare_rank(arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Make torch quiet in a job, and refuse commands that know nothing of other ranks.

    Raises:
        UsageError: The command would run once per rank.
    """
    place = read_place()
    if place is None or place.size == 1:
        return
    # torch's own warnings about sockets and groups would come once per rank.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    command = next((argument for argument in arguments if argument in commands), None)
    if command is not None and command not in DISTRIBUTED_COMMANDS:
        raise UsageError(
            f"{command}: runs in one process, this is a job of {place.size}",
            hint=f"Start it without torchrun; {' and '.join(DISTRIBUTED_COMMANDS)} work with several.",
        )


@contextmanager
def leading(recipe: Recipe) -> Iterator[None]:
    """Join a job of torchrun as its leader while the context is open; do nothing outside one."""
    if read_place() is None:
        yield
        return
    from falcon_unlearn.distributed.job import joined

    with joined(timeout=recipe.runtime.rank_timeout, device=recipe.runtime.device):
        yield


def follow(recipe: Recipe) -> None:
    """Work for the leader of a job until it has written everything."""
    from falcon_unlearn.distributed.job import joined
    from falcon_unlearn.pipeline.following import follow_run

    with joined(timeout=recipe.runtime.rank_timeout, device=recipe.runtime.device):
        follow_run(recipe)


def is_silent() -> bool:
    """Tell whether another rank shows progress and results."""
    place = read_place()
    return place is not None and place.rank > 0


def may_tell() -> bool:
    """Tell whether this process tells its failure: in a job, the first rank that fails does."""
    if read_place() is None:
        return True
    board = _board()
    return not is_silent() if board is None else board.claim_failure()


@contextmanager
def last_words() -> Iterator[None]:
    """Ignore SIGTERM in a job from the first failure on.

    torchrun asks all ranks to end as soon as one has; this one is about to, with words and its own exit code.
    """
    try:
        yield
    except BaseException:
        if _board() is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


def settle_exit_code(code: int) -> int:
    """Return the exit code of the rank that told the failure, which is the same on all ranks."""
    board = _board()
    return code if board is None else board.settle_exit_code(code)


def lost_ranks() -> str | None:
    """Say which ranks were killed while this one was asked to end; None if none was."""
    board = _board()
    return None if board is None else board.describe_loss()


def _board() -> NoticeBoard | None:
    # Imported already by whatever joined a job; otherwise there is none, and torch need not be loaded.
    job: Any = sys.modules.get("falcon_unlearn.distributed.job")
    return None if job is None else job.current_board()
