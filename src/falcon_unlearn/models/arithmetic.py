"""Compute a whole model in the dtype that is fast on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psutil
import torch

from falcon_unlearn.models.engine import parameters_in_dtype
from falcon_unlearn.models.precision import resolve_compute_dtype

MEMORY_SHARE = 0.5
"""Largest share of the free memory that a float32 copy of the weights may take."""


@contextmanager
def fast_arithmetic(model: Any) -> Iterator[torch.dtype]:
    """Hold the parameters in float32 where this processor multiplies bfloat16 or float16 slowly.

    The values of the weights stay what they are; sums become more exact. Processors without matrix units for
    bfloat16 are about eight times faster that way. The very same tensors come back afterwards. Nothing
    changes on accelerators, and where a second copy of the weights would not fit.

    Yields:
        The dtype of the arithmetic.
    """
    source = next(model.parameters()).dtype
    device = next(model.parameters()).device
    dtype = torch.float32 if _is_slow(source, device) and _fits(model) else source
    with parameters_in_dtype(list(model.parameters()), dtype):
        yield dtype


def _is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type != "cpu" or dtype not in {torch.bfloat16, torch.float16}:
        return False
    # There is no measurement of float16 on processors: where bfloat16 is slow, float16 is no faster.
    return _measured(device.type) == torch.float32


@lru_cache(maxsize=1)
def _measured(device: str) -> torch.dtype:
    return resolve_compute_dtype("auto", torch.device(device))


def _fits(model: Any) -> bool:
    needed: int = 4 * sum(parameter.numel() for parameter in model.parameters())
    available: int = psutil.virtual_memory().available
    return needed < MEMORY_SHARE * available
