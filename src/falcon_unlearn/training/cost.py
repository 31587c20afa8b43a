"""Count floating-point operations of caching and training from shapes alone."""

from __future__ import annotations


def cache_flops(tokens: int, block_parameters: int, last_block: int) -> float:
    """Return 2 p (last + 1) per token: every block up to the loss layer runs once."""
    return 2.0 * tokens * block_parameters * (last_block + 1)


def train_flops(tokens: int, block_parameters: int, window_blocks: int, trained_parameters: int) -> float:
    """Return forward, activation-gradient and weight-gradient work, an upper bound.

    2 p w forward, 2 p w for activation gradients (less below the lowest trained matrix) and 2 t for weights,
    per token of forget or retain data.
    """
    return 2.0 * tokens * (2 * block_parameters * window_blocks + trained_parameters)
