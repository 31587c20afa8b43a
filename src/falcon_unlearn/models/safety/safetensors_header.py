"""Check the header of a safetensors file without reading a tensor.

The format: eight bytes with the length of the header, the header as a JSON object, the data. The rules are
those of its specification (no hole, no overlap, nothing behind the last tensor); sizes come from the file.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.files import file_size, parse_json_object, reason_of

MAXIMUM_HEADER_BYTES = 32 << 20
"""Largest header read; the format allows 100 MB, published shards stay below 1 MB."""
MAXIMUM_DIMENSIONS = 16
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of unquantised weights."""
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Describe one stored tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of the first byte in the data."""
    end: int

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return every tensor of the file by name.

    Raises:
        ModelError: Naming the file, if it is unreadable, truncated, or not what the format prescribes.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            header = _header_bytes(file, size, path.name)
    except OSError as error:
        raise ModelError(f"model: {path.name}: cannot be read ({reason_of(error)})") from error
    values = parse_json_object(header, path.name)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path.name, "its metadata must be texts")
    entries = {name: _entry(name, value, path.name) for name, value in values.items()}
    _check_layout(entries, size - _LENGTH.size - len(header), path.name)
    return entries


def _header_bytes(file: BinaryIO, size: int, name: str) -> bytes:
    if size < _LENGTH.size:
        raise _damaged(name, f"has {size} bytes, too few for a safetensors file")
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > size - _LENGTH.size:
        raise _damaged(name, f"promises a header of {length} bytes, but has {size - _LENGTH.size} more bytes")
    if length > MAXIMUM_HEADER_BYTES:
        raise _damaged(name, f"has a header of {length} bytes, at most {MAXIMUM_HEADER_BYTES} are read")
    header = file.read(length)
    if not header.startswith(b"{"):
        raise _damaged(name, "is no safetensors file: its header does not start with {")
    return header


def _entry(name: str, value: Any, file: str) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"tensor {name[:80]!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(file, f"tensor {name[:80]!r} has the unknown type {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAXIMUM_DIMENSIONS:
        raise _damaged(file, f"tensor {name[:80]!r} has the impossible shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(file, f"tensor {name[:80]!r} has the impossible offsets {str(offsets)[:80]}")
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    if entry.num_elements * _BITS[dtype] != 8 * (entry.end - entry.begin):
        raise _damaged(
            file, f"tensor {name[:80]!r}: shape and type do not fit its {entry.end - entry.begin} bytes"
        )
    return entry


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(entries: dict[str, TensorEntry], data_bytes: int, file: str) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps the one before it" if entry.begin < position else "leaves a hole before it"
            raise _damaged(file, f"tensor {name[:80]!r} {what}")
        position = entry.end
    if position > data_bytes:
        raise _damaged(file, f"is truncated: {position - data_bytes} bytes of its tensors are missing")
    if position < data_bytes:
        raise _damaged(file, f"holds {data_bytes - position} bytes behind its last tensor")


def _damaged(file: str, problem: str) -> ModelError:
    return ModelError(f"model: {file}: {problem}", hint="The file is damaged; fetch or write it again.")
