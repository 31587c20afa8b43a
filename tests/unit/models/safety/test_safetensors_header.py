"""Safetensors files of strangers: a list of tensors or an error that names the file, never a tensor read."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.safetensors_header import MAXIMUM_HEADER_BYTES, read_header

TENSORS = {
    "a.weight": np.arange(3000, dtype=np.float32).reshape(30, 100),
    "b": np.ones(3, np.int64),
    "c": np.zeros((0, 4), np.float16),
    "d": np.array(1.5),
}


def write(path: Path, header: bytes | dict, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert path.name in caught.value.message
    assert caught.value.exit_code == 2
    return caught.value.message


def test_names_shapes_and_types_are_those_that_the_library_reads(tmp_path):
    path = tmp_path / "good.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    entries = read_header(path)
    with safe_open(path, framework="np") as file:
        assert set(entries) == set(file.keys())
        for name in file.keys():  # a safetensors handle is not iterable itself
            assert list(entries[name].shape) == file.get_slice(name).get_shape()
            assert entries[name].dtype == file.get_slice(name).get_dtype()


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    """Test 2: every 4 KiB boundary, and around the end of the header."""
    whole = save(TENSORS)
    (length,) = struct.unpack("<Q", whole[:8])
    cuts = {0, 1, 7, 8, 9, 8 + length - 1, 8 + length, 8 + length + 1, len(whole) - 1}
    cuts |= set(range(4096, len(whole), 4096))
    assert len(cuts) > 10
    for cut in sorted(cuts):
        path = tmp_path / f"cut-{cut}.safetensors"
        path.write_bytes(whole[:cut])
        refused(path)


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
STRICTER = [b" {}", {"a": FLOAT | {"more": 1}}]
"""What no writer makes and the library lets pass."""


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [
        (b"", b"", 2**63, "promises a header of 9223372036854775808 bytes"),
        (b"", b"", 2**64 - 1, "promises a header"),
        (b"", b"", None, "does not start with {"),
        (b"[1]", b"", None, "does not start with {"),
        (b" {}", b"", None, "does not start with {"),
        (b"{", b"", None, "no valid JSON"),
        (b'{"a": "\xff"}', b"", None, "no UTF-8 text"),
        (b'{"a": ' + b"[" * 100_000, b"", None, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", None, "no valid JSON"),
        (b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}', b"", None, "occurs twice"),
        ({"a": 1}, b"", None, "needs dtype, shape and data_offsets"),
        ({"a": FLOAT | {"more": 1}}, bytes(8), None, "needs dtype, shape and data_offsets"),
        ({"a": FLOAT | {"dtype": "X9"}}, bytes(8), None, "unknown type 'X9'"),
        ({"a": FLOAT | {"dtype": ["F32"]}}, bytes(8), None, "unknown type"),
        ({"a": FLOAT | {"shape": [-2]}}, bytes(8), None, "impossible shape"),
        ({"a": FLOAT | {"shape": [True, 2]}}, bytes(8), None, "impossible shape"),
        ({"a": FLOAT | {"shape": [2.0]}}, bytes(8), None, "impossible shape"),
        ({"a": FLOAT | {"shape": [2**62, 2**62]}}, bytes(8), None, "do not fit its 8 bytes"),
        ({"a": FLOAT | {"shape": [1] * 40}}, bytes(8), None, "impossible shape"),
        ({"a": FLOAT | {"data_offsets": [8, 0]}}, bytes(8), None, "do not fit"),
        ({"a": FLOAT | {"data_offsets": [0, 8, 16]}}, bytes(8), None, "impossible offsets"),
        ({"a": FLOAT, "b": FLOAT}, bytes(8), None, "overlaps"),
        ({"a": FLOAT, "b": FLOAT | {"data_offsets": [4, 12]}}, bytes(12), None, "overlaps"),
        ({"a": FLOAT | {"data_offsets": [8, 16]}}, bytes(16), None, "leaves a hole"),
        ({"a": FLOAT}, bytes(9), None, "holds 1 bytes behind its last tensor"),
        ({"a": FLOAT}, bytes(7), None, "1 bytes of its tensors are missing"),
        ({"a": FLOAT, "__metadata__": {"n": 1}}, bytes(8), None, "metadata"),
        ({"a": FLOAT, "__metadata__": []}, bytes(8), None, "metadata"),
    ],
)
def test_every_broken_header_is_refused_in_words(tmp_path, header, data, length, words):
    path = write(tmp_path / "evil.safetensors", header, data, length)
    assert words in refused(path)
    if header not in STRICTER:
        # The library agrees that such a file cannot be read, so nothing usable is refused.
        with pytest.raises(SafetensorError), safe_open(path, framework="np"):
            pass


def test_a_huge_header_is_refused_without_being_read(tmp_path):
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAXIMUM_HEADER_BYTES + 1) + b"{")
        file.truncate(MAXIMUM_HEADER_BYTES + 100)
    assert "at most" in refused(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """Test 9: a pipe would block for ever, a loop of links never end."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "no regular file" in refused(tmp_path / "pipe.safetensors")
    assert "no regular file" in refused(tmp_path / "folder.safetensors")
    assert "cannot be read" in refused(tmp_path / "loop.safetensors")
    assert "cannot be read" in refused(tmp_path / "absent.safetensors")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_give_a_list_or_an_error(tmp_path_factory, content, framed):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(content) // 2) + content if framed else content)
    try:
        read_header(path)
    except ModelError as error:
        assert path.name in error.message


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_passes_the_check_is_readable_by_the_library(tmp_path_factory, data):
    """Flip bytes of a good file: whenever the check lets it pass, safetensors opens it too."""
    content = bytearray(save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.uint8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except ModelError:
        return
    with safe_open(path, framework="np") as file:
        assert file.keys()
