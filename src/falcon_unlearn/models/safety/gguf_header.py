"""Check the header of a GGUF file: every count and length against the size of the file, before any library.

Layout (versions 2 and 3, little-endian): magic, version, number of tensors, number of key-value pairs; the
pairs; for each tensor its name, dimensions, type and offset; the data. Source: GGUF specification of ggml.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.config_bounds import check_depth, check_number
from falcon_unlearn.models.safety.files import file_size, reason_of

MAXIMUM_PAIRS = 2**16
MAXIMUM_TENSORS = 2**18
MAXIMUM_KEY_BYTES = 2**16
MAXIMUM_TEXT_BYTES = 2**24
MAXIMUM_ITEMS = 2**24
MAXIMUM_NESTING = 2
MAXIMUM_DIMENSIONS = 4
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT, _ARRAY = 8, 9
_SMALLEST_PAIR, _SMALLEST_TENSOR = 13, 24
"""Bytes of a pair with an empty key and one byte, and of a tensor without name and dimensions."""


@dataclass(frozen=True)
class GgufHeader:
    """Hold what the header says."""

    values: Mapping[str, Any]
    """Scalars and texts by key."""
    lengths: Mapping[str, int]
    """Number of items of every array by key."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Dimensions of every tensor, innermost first."""

    @property
    def num_elements(self) -> int:
        """Number of elements of all tensors."""
        total = 0
        for shape in self.shapes.values():
            product = 1
            for dimension in shape:
                product *= dimension
            total += product
        return total


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file after checking it against the size of the file.

    Raises:
        ModelError: Naming the file and what is wrong.
    """
    size = file_size(path)
    if size < 24:
        raise _damaged(path.name, f"has {size} bytes, too few for a GGUF file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, path.name).header()
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path.name}: cannot be read ({reason_of(error)})") from error


class _Reader:
    """Read forward through the header; every read is checked against the end of the file."""

    def __init__(self, content: mmap.mmap, name: str) -> None:
        self._content = content
        self._name = name
        self._position = 0
        self._values: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise _damaged(self._name, "is no GGUF file: it does not start with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise _damaged(
                self._name, f"has the GGUF version {version}; 2 and 3 in little-endian order are read"
            )
        num_tensors = self._count(MAXIMUM_TENSORS, _SMALLEST_TENSOR, "tensors")
        num_pairs = self._count(MAXIMUM_PAIRS, _SMALLEST_PAIR, "key-value pairs")
        for _ in range(num_pairs):
            self._pair()
        self._check_numbers(num_tensors)
        tensors = [self._tensor() for _ in range(num_tensors)]
        self._check_data(tensors)
        return GgufHeader(self._values, self._lengths, {name: shape for name, shape, _, _ in tensors})

    def _take(self, count: int) -> bytes:
        if count > len(self._content) - self._position:
            raise _damaged(self._name, f"ends inside its header, at byte {len(self._content)}")
        start = self._position
        self._position += count
        return self._content[start : self._position]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, maximum: int, smallest: int, what: str) -> int:
        """Read a count of things of at least `smallest` bytes each, all of which must still follow."""
        count = int(self._number("<Q"))
        room = (len(self._content) - self._position) // smallest
        if count > min(maximum, room):
            raise _damaged(self._name, f"promises {count} {what}; at most {min(maximum, room)} are possible")
        return count

    def _text(self, maximum: int) -> str:
        length = self._count(maximum, 1, "bytes of text")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(
                self._name, f"holds text that is not UTF-8, before byte {self._position}"
            ) from error

    def _pair(self) -> None:
        key = self._text(MAXIMUM_KEY_BYTES)
        if key in self._values or key in self._lengths:
            raise _damaged(self._name, f"holds the key {key[:80]!r} twice")
        kind = self._number("<I")
        if kind == _ARRAY:
            self._lengths[key] = self._array(0)
        elif kind == _TEXT:
            self._values[key] = self._text(MAXIMUM_TEXT_BYTES)
        else:
            self._values[key] = self._number(self._form(kind))

    def _form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise _damaged(self._name, f"holds a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _array(self, depth: int) -> int:
        if depth > MAXIMUM_NESTING:
            raise _damaged(self._name, "nests arrays too deeply")
        kind = self._number("<I")
        if kind == _ARRAY:
            count = self._count(MAXIMUM_ITEMS, 12, "arrays")
            for _ in range(count):
                self._array(depth + 1)
        elif kind == _TEXT:
            count = self._count(MAXIMUM_ITEMS, 8, "texts")
            for _ in range(count):
                self._take(self._count(MAXIMUM_TEXT_BYTES, 1, "bytes of text"))
        else:
            width = struct.calcsize(self._form(kind))
            count = self._count(MAXIMUM_ITEMS, width, "numbers")
            self._take(count * width)
        return count

    def _check_numbers(self, num_tensors: int) -> None:
        numbers = {key: value for key, value in self._values.items() if type(value) is int}
        for key, value in numbers.items():
            check_number(key, value, self._name)
        check_depth(numbers, self._name, num_tensors)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, dimensions, number of bytes and offset of the next tensor."""
        name = self._text(MAXIMUM_KEY_BYTES)
        num_dimensions = self._number("<I")
        if num_dimensions > MAXIMUM_DIMENSIONS:
            raise _damaged(
                self._name, f"tensor {name[:80]!r} has {num_dimensions} dimensions, at most 4 exist"
            )
        shape = tuple(int(self._number("<Q")) for _ in range(num_dimensions))
        kind, offset = self._number("<I"), self._number("<Q")
        return name, shape, self._num_bytes(name, shape, kind), offset

    def _num_bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if kind not in {int(item) for item in GGMLQuantizationType}:
            raise _damaged(self._name, f"tensor {name[:80]!r} has the unknown type {kind}")
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        product = 1
        for dimension in shape:
            product *= dimension
        if not product or (shape and shape[0] % block):
            raise _damaged(self._name, f"tensor {name[:80]!r} has the impossible shape {list(shape)}")
        return int(product // block * width)

    def _check_data(self, tensors: list[tuple[str, tuple[int, ...], int, int]]) -> None:
        names = {name for name, _, _, _ in tensors}
        if len(names) < len(tensors):
            raise _damaged(self._name, "names a tensor twice")
        alignment = self._values.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20:
            raise _damaged(self._name, f"has the impossible alignment {str(alignment)[:40]}")
        data_bytes = len(self._content) - -(-self._position // alignment) * alignment
        position = 0
        for name, _, num_bytes, offset in sorted(tensors, key=lambda tensor: tensor[3]):
            if offset < position:
                raise _damaged(self._name, f"tensor {name[:80]!r} overlaps the one before it")
            position = offset + num_bytes
            if position > data_bytes:
                raise _damaged(
                    self._name,
                    f"tensor {name[:80]!r} ends {position - data_bytes} bytes behind the end of the file",
                )


def _damaged(file: str, problem: str) -> ModelError:
    return ModelError(f"model: {file}: {problem}", hint="The file is damaged; fetch or write it again.")
