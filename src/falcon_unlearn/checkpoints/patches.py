"""Put new values into a copy of a safetensors file, tensor by tensor; its header stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from falcon_unlearn.checkpoints.sharing import CopyMode, copy_file
from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.safetensors_header import TensorEntry, read_header

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE_BYTES = 2**24


def patch_shard(source: Path, destination: Path, changed: Mapping[str, Tensor], copies: CopyMode) -> None:
    """Write a copy of `source` in which the tensors of `changed` have their new values.

    The copy is made by the operating system, and only the bytes of the changed tensors are written over: all
    other bytes, header and metadata included, stay identical.

    Raises:
        ModelError: A tensor has another shape on disk.
    """
    ranges = _ranges(source, changed)
    copy_file(source, destination, copies)
    destination.chmod(0o644)
    with destination.open("r+b") as file:
        for begin, entry, tensor in ranges:
            file.seek(begin)
            for piece in _pieces(tensor, entry):
                file.write(piece)


def patched_sha256(source: Path, changed: Mapping[str, Tensor]) -> str:
    """Return the sha256 that `patch_shard` would give its file, without writing one."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for begin, entry, tensor in _ranges(source, changed):
            _update(digest, file, begin - file.tell())
            for piece in _pieces(tensor, entry):
                digest.update(piece)
            file.seek(entry.end - entry.begin, 1)
        _update(digest, file, None)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, file: object, count: int | None) -> None:
    left = count
    while left is None or left > 0:
        data: bytes = file.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))  # type: ignore[attr-defined]
        if not data:
            return
        digest.update(data)
        left = None if left is None else left - len(data)


def _ranges(source: Path, changed: Mapping[str, Tensor]) -> list[tuple[int, TensorEntry, Tensor]]:
    """Return where each tensor's bytes begin in the file, its entry and its new values, in file order."""
    entries = read_header(source)
    data_start = source.stat().st_size - max(entry.end for entry in entries.values())
    ranges = []
    for name, tensor in changed.items():
        entry = entries[name]
        if entry.shape != tuple(tensor.shape):
            raise ModelError(
                f"tensor {name!r} has shape {list(entry.shape)} on disk and {list(tensor.shape)} in the model"
            )
        if entry.dtype not in _DTYPES:
            raise ModelError(f"tensor {name!r} is stored as {entry.dtype}, which cannot be written")
        ranges.append((data_start + entry.begin, entry, tensor))
    return sorted(ranges, key=lambda item: item[0])


def _pieces(tensor: Tensor, entry: TensorEntry) -> Iterator[bytes]:
    """Yield the bytes of a tensor in the dtype of the file, some megabytes at a time."""
    rows = tensor.detach().reshape(-1)
    step = _PIECE_BYTES // 8
    for start in range(0, len(rows), step):
        piece = rows[start : start + step].to("cpu", _DTYPES[entry.dtype]).contiguous()
        yield piece.view(torch.uint8).numpy().tobytes()
