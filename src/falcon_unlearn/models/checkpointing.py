"""Recompute blocks in the backward pass instead of keeping what they computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed_blocks(blocks: Sequence[nn.Module], *, active: bool = True) -> Iterator[None]:
    """Keep only the states between the blocks while the context is open: less memory, a second forward pass.

    The switch of transformers works in training mode only, which would turn dropout on; this does not.

    Args:
        blocks: Modules whose inner states are not kept.
        active: False changes nothing.
    """
    if not active:
        yield
        return
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class has its own
