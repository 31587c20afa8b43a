"""Compile the blocks of a window with torch.compile while a context is open; nothing is renamed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

COMPILERS = ("g++", "c++", "clang++", "cl")


def missing_compiler(device: torch.device) -> str | None:
    """Say what torch.compile lacks here for a device; None: nothing that can be told beforehand."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    found = any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS) if name)
    return None if found else "no C++ compiler is installed"


def failed_compilation(device: torch.device) -> str | None:
    """Say why one small function cannot be compiled and run on a device; None: it can.

    A compiler that is found may still lack headers, a linker or, for triton, a compiler of its own.
    """
    try:
        torch.compile(_twice)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"torch.compile fails here ({(lines or [type(error).__name__])[0][:200]})"
    return None


def _twice(values: torch.Tensor) -> torch.Tensor:
    return values * 2


@contextmanager
def compiled_blocks(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let `blocks` run compiled forward and backward passes inside the context, whatever the batch's shape.

    Only the call is replaced: parameters, their names and the modules stay the same.
    """
    changed = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block, _ in changed:
            block.forward = torch.compile(block.forward, dynamic=True)
        yield
    finally:
        for block, before in changed:
            block.__dict__.pop("forward", None)
            if before is not None:
                block.forward = before
