"""Find and read single tensors of a safetensors checkpoint; at most one shard is mapped at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.inventory import INDEX_FILE, SINGLE_FILE, read_index
from falcon_unlearn.models.safety.safetensors_header import read_header


def tensor_locations(folder: Path) -> dict[str, str]:
    """Return the shard file name of every tensor of a checkpoint, read from headers only.

    Raises:
        ModelError: A header or the index is damaged, or the index names a file outside the folder.
    """
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    # transformers prefers the single file where both exist.
    if index.is_file() and not single.is_file():
        return read_index(index)
    locations: dict[str, str] = {}
    for path in [single] if single.is_file() else sorted(folder.glob("*.safetensors")):
        locations |= dict.fromkeys(read_header(path), path.name)
    return locations


class CheckpointTensors:
    """Read tensors of a checkpoint on demand, as lazily mapped views where the platform can."""

    def __init__(self, folder: Path) -> None:
        """Read names and shards; no tensor is read yet."""
        self.folder = folder
        self.locations = tensor_locations(folder)
        self.bytes_read = 0
        """Bytes handed out so far, repeated reads included."""
        self.seconds = 0.0
        """Wall time inside `read`, which maps; pages are read when first touched."""
        self._replaced: dict[str, Tensor] = {}
        self._checked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Tell whether the checkpoint has a tensor `name`."""
        return name in self.locations

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor, shard by shard. Views are private: writing to one leaves the file alone.

        Raises:
            ModelError: A shard is missing or damaged, or a tensor holds values that are not finite.
        """
        from safetensors import SafetensorError, safe_open

        shards: dict[str, list[str]] = {}
        for name in names:
            if name in self._replaced:
                yield name, self._replaced[name]
            else:
                shards.setdefault(self.locations[name], []).append(name)
        for shard_name, members in shards.items():
            started = time.perf_counter()
            try:
                with safe_open(self.folder / shard_name, framework="pt") as shard:
                    tensors = [(name, shard.get_tensor(name)) for name in members]
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"model: the shard {shard_name!r} could not be read ({type(error).__name__})",
                    hint="The checkpoint is incomplete or damaged.",
                ) from error
            while tensors:
                name, tensor = tensors.pop(0)
                self._check_finite(name, tensor)
                self.bytes_read += tensor.nbytes
                self.seconds += time.perf_counter() - started
                yield name, tensor
                started = time.perf_counter()

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Hand out `tensors` instead of what the checkpoint holds while the context is open."""
        saved = dict(self._replaced)
        self._replaced |= tensors
        try:
            yield
        finally:
            self._replaced = saved

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Hand out `tensors` from now on."""
        self._replaced |= tensors

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if name in self._checked or not tensor.is_floating_point():
            return
        # A sum reads the values once; the element-wise test is 100 times slower for bfloat16 on processors.
        total = tensor.sum(dtype=torch.float32)
        if not bool(torch.isfinite(total)) and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"model: the tensor {name!r} holds values that are not finite",
                hint="The checkpoint is damaged.",
            )
        self._checked.add(name)
