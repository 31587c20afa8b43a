"""Choose the dtype of the window's matrix products by measuring this machine once."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

MINIMUM_GAIN = 1.3
"""bfloat16 must be this much faster to be chosen: a coin toss between dtypes would break repeatability."""

MAXIMUM_SECONDS = 1.0
"""Time after which a measurement stops repeating."""


def matrix_product_speed(
    dtype: torch.dtype, device: torch.device, *, size: int = 1024, repeats: int = 15
) -> float:
    """Measure the best of several square matrix products, in FLOP per second."""
    left = torch.ones(size, size, dtype=dtype, device=device)
    left @ left
    best = float("inf")
    spent = 0.0
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        left @ left
        synchronise(device)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
        if spent > MAXIMUM_SECONDS:
            # Processors without matrix units for bfloat16 take seconds per product; one says enough.
            break
    return 2 * size**3 / best


def resolve_compute_dtype(requested: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype; `auto` takes bfloat16 where its products are clearly faster."""
    if requested != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[requested]
    return torch.bfloat16 if _measured_gain(device.type) >= MINIMUM_GAIN else torch.float32


@lru_cache
def _measured_gain(device: str) -> float:
    """Measure once per process: seconds where bfloat16 is slow, and a table must not change its mind."""
    speeds = [matrix_product_speed(dtype, torch.device(device)) for dtype in (torch.bfloat16, torch.float32)]
    return speeds[0] / speeds[1]


def synchronise(device: torch.device) -> None:
    """Wait for the accelerator, so that a clock sees what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
