"""The command as typed, in a form that may be published."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextvars import ContextVar

from falcon_unlearn.config.paths import public_name, public_text
from falcon_unlearn.distributed.environment import read_place

_ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of this invocation."""
    _ARGUMENTS.set(tuple(arguments))


def invocation() -> str:
    """Return a shell command that repeats this one, absolute paths cut to their last part."""
    return shlex.join(["falcon-unlearn", *(public_text(_publish(a)) for a in _ARGUMENTS.get())])


def repeat_command() -> str:
    """Return the command as typed, to go on with unfinished work; for the terminal, not for publication."""
    kept = list(_ARGUMENTS.get())
    # Started again with `--resume never`, it would throw away what it should go on with.
    for at in [i for i, argument in enumerate(kept) if argument == "--resume"][::-1]:
        del kept[at : at + 2]
    return shlex.join([*_program(), *(a for a in kept if not a.startswith("--resume="))])


def _program() -> list[str]:
    """Return what starts this program: its name, or torchrun with the shape of the job."""
    place = read_place()
    if place is None:
        return ["falcon-unlearn"]
    machines = place.size // place.local_size
    several = [f"--nnodes={machines}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:PORT"]
    shape = [f"--nproc-per-node={place.local_size}", *(several if machines > 1 else [])]
    return ["torchrun", *shape, "-m", "falcon_unlearn"]


def _publish(argument: str) -> str:
    """Shorten `/a/b`, `NAME=/a/b` and `--flag=/a/b`."""
    name, equals, value = argument.rpartition("=")
    if os.path.isabs(value) or value.startswith("~"):
        return f"{name}{equals}{public_name(value)}"
    return argument
