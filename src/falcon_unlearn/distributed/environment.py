"""Read what torchrun says about this process; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from falcon_unlearn.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Say which of the processes of a job this one is."""

    rank: int
    size: int
    local_rank: int
    """Position on this machine, which is also the number of its GPU."""
    local_size: int
    host: int
    """Number of the machine."""


def read_place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Return the place of this process in a torchrun job; None outside one.

    Raises:
        UsageError: The job is restarted or grown by torchrun, or its variables are damaged.
    """
    variables = os.environ if environment is None else environment
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return None
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        local_rank = int(variables.get("LOCAL_RANK", rank))
        local_size = int(variables.get("LOCAL_WORLD_SIZE", size))
        host = int(variables.get("GROUP_RANK", 0))
    except ValueError as error:
        raise UsageError(
            f"RANK, WORLD_SIZE, LOCAL_RANK and GROUP_RANK must be integers: {error}",
            hint="Start the job with torchrun, which sets them.",
        ) from error
    if not 0 <= rank < size or not 0 <= local_rank < local_size <= size:
        raise UsageError(
            f"rank {rank} of {size}, {local_rank} of {local_size} on this machine: no job of torchrun"
        )
    return Place(rank, size, local_rank, local_size, host)
