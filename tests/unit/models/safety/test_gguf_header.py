"""GGUF files of strangers: counts and lengths are checked against the file before a library reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.gguf_header import read_gguf_header
from pico import pico_model
from pico_files import write_gguf

U32, TEXT, ARRAY, U64 = 4, 8, 9, 10


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def gguf(entries: list[bytes], infos: list[bytes], data: bytes = b"", **counts: int) -> bytes:
    num_tensors, num_pairs = counts.get("tensors", len(infos)), counts.get("pairs", len(entries))
    head = b"GGUF" + struct.pack("<IQQ", counts.get("version", 3), num_tensors, num_pairs)
    body = head + b"".join(entries) + b"".join(infos)
    return body + bytes(-len(body) % 32) + data


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "pico.gguf", pico_model("llama"))


def test_values_and_shapes_are_those_that_the_library_reads(good):
    header, reader = read_gguf_header(good), GGUFReader(good)
    assert {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors} == dict(header.shapes)
    assert header.values["llama.block_count"] == 6
    assert header.lengths["tokenizer.ggml.tokens"] == 128
    assert header.num_elements == sum(p.numel() for p in pico_model("llama").parameters())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too few"),
        (b"GGML" + bytes(40), "does not start with GGUF"),
        (gguf([], [], version=1), "version 1"),
        (gguf([], [], version=0x03000000), "version 50331648"),
        (gguf([], [], tensors=2**63), "promises 9223372036854775808 tensors"),
        (gguf([], [], tensors=10**6), "promises 1000000 tensors"),
        (gguf([], [], pairs=2**40), "key-value pairs"),
        (gguf([text(b"")[:4] + b"\xff" * 4 + bytes(20)], [], pairs=1), "bytes of text"),
        (gguf([pair(b"k", TEXT, struct.pack("<Q", 2**62))], []), "bytes of text"),
        (gguf([pair(b"k", TEXT, text(b"\xff\xfe"))], []), "not UTF-8"),
        (gguf([pair(b"k", 77, bytes(8))], []), "unknown type 77"),
        (gguf([pair(b"k", U32, bytes(4)), pair(b"k", U32, bytes(4))], []), "twice"),
        (
            gguf([pair(b"k", ARRAY, struct.pack("<IQ", U64, 2**61))], []),
            "promises 2305843009213693952 numbers",
        ),
        (gguf([pair(b"k", ARRAY, struct.pack("<IQ", TEXT, 2**40))], []), "texts"),
        (gguf([pair(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 6 + bytes(20))], []), "too deeply"),
        (gguf([pair(b"llama.block_count", U32, struct.pack("<I", 10**9))], []), "llama.block_count"),
        (
            gguf([pair(b"llama.block_count", U32, struct.pack("<I", 3))], [tensor(b"t", [1])], bytes(4)),
            "hold 1 ten",
        ),
        (gguf([pair(b"llama.embedding_length", U32, struct.pack("<I", 2**31))], []), "embedding_length"),
        (gguf([pair(b"general.alignment", U32, bytes(4))], [tensor(b"t", [1])], bytes(4)), "alignment"),
        (gguf([], [tensor(b"t", [1] * 5)], bytes(4)), "5 dimensions"),
        (gguf([], [tensor(b"t", [2**40, 2**40])], bytes(4)), "behind the end"),
        (gguf([], [tensor(b"t", [0])], bytes(4)), "impossible shape"),
        (gguf([], [tensor(b"t", [33], kind=8)], bytes(64)), "impossible shape"),
        (gguf([], [tensor(b"t", [1], kind=99)], bytes(4)), "unknown type 99"),
        (gguf([], [tensor(b"t", [4], offset=2**62)], bytes(16)), "behind the end"),
        (gguf([], [tensor(b"t", [4]), tensor(b"u", [4], offset=8)], bytes(32)), "overlaps"),
        (gguf([], [tensor(b"t", [1]), tensor(b"t", [1], offset=32)], bytes(64)), "names a tensor twice"),
    ],
)
def test_hostile_headers_are_refused_in_words(tmp_path, content, words):
    path = tmp_path / "evil.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_gguf_header(path)
    assert words in caught.value.message
    assert "evil.gguf" in caught.value.message


def test_a_file_cut_anywhere_is_refused(good, tmp_path):
    whole = good.read_bytes()
    path = tmp_path / "cut.gguf"
    for cut in [*range(0, 4096, 97), *range(4096, len(whole), 4096), len(whole) - 33]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            read_gguf_header(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_the_header_gives_a_header_or_an_error(good, tmp_path_factory, data):
    content = bytearray(good.read_bytes()[:6000])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(content)
    try:
        read_gguf_header(path)
    except ModelError as error:
        assert path.name in error.message
