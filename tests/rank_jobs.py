"""Start several ranks as processes, as torchrun would, without its agent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, size: int, port: int, *, hosts: int = 1) -> dict[str, str]:
    """Return what torchrun would set, with the ranks spread over `hosts` machines."""
    local_size = size // hosts
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "GROUP_RANK": str(rank // local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_ranks(
    folder: Path, size: int, cases: list[dict[str, Any]], *, hosts: int = 1
) -> list[dict[str, Any]]:
    """Run `cases` on `size` ranks and return the leader's results."""
    target, port = folder / f"ranks-{size}-{hosts}.pt", free_port()
    command = [sys.executable, str(TESTS / "rank_worker.py"), str(target), json.dumps(cases)]
    processes = [
        subprocess.Popen(
            command,
            env=rank_environment(rank, size, port, hosts=hosts),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, "\n".join(outputs)
    return torch.load(target)
