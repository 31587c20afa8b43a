"""Prove which tensors of a checkpoint differ from those of another, bit by bit, one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.inventory import take_inventory
from falcon_unlearn.models.shards import tensor_locations


def changed_tensors(base: Path, changed: Path) -> list[str]:
    """Return the names of all tensors whose bits differ, sorted; memory is that of the two copies of one.

    Args:
        base: Folder of the original checkpoint.
        changed: Folder of the changed one.

    Raises:
        ModelError: A folder is damaged, or the two hold different tensors, shapes or types.
    """
    first, second = take_inventory(base).tensors, take_inventory(changed).tensors
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ModelError(
            f"the checkpoints hold different tensors, {len(odd)} are in one only, first {odd[0]!r}",
            hint="Give the model that the run started from.",
        )
    for name in sorted(first):
        if (first[name].shape, first[name].dtype) != (second[name].shape, second[name].dtype):
            raise ModelError(
                f"tensor {name!r} is {first[name].dtype} {list(first[name].shape)} in the base and "
                f"{second[name].dtype} {list(second[name].shape)} in the run",
                hint="Give the model that the run started from.",
            )
    before, after = tensor_locations(base), tensor_locations(changed)
    return [
        name
        for name in sorted(first)
        if not _same_bits(_tensor(base / before[name], name), _tensor(changed / after[name], name))
    ]


def _tensor(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare bytes: equal numbers may have different bits (signed zeros), and NaN equals nothing."""
    return first.flatten().view(torch.uint8).equal(second.flatten().view(torch.uint8))
