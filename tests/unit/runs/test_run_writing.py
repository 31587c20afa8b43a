"""Single files: old content or new content, never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.errors import DataError, FalconError, NumericalError, PrerequisiteError, UsageError
from falcon_unlearn.results import CorpusCount, DataResult, LayerValue
from falcon_unlearn.runs import (
    capture_environment,
    fingerprint,
    format_bytes,
    public_name,
    public_text,
    sha256_file,
    slug,
    write_json_atomic,
    write_text_atomic,
)

NAMES = [
    "../x",
    "/abs",
    "a/b",
    "CON",
    "con.txt",
    ".",
    "..",
    "",
    ".hidden",
    "x" * 300,
    "a\nb",
    "caf\u00e9",
    "\u0430bc",
    "a b",
    "x.",
    "-",
]


@pytest.mark.parametrize("name", NAMES)
def test_slugs_of_hostile_names(name):
    assert is_safe(slug(name))


def is_safe(name: str) -> bool:
    reserved = name.split(".")[0].upper() in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) is not None and not reserved


@given(st.text(st.characters(), max_size=200), st.text(st.characters(), max_size=200))
def test_slugs_are_safe_distinct_and_stable(first, second):
    assert is_safe(slug(first))
    assert slug(slug(first)) == slug(first)
    if first != second:
        assert slug(first) != slug(second)


@pytest.mark.parametrize("name", ["smollm2-135m", "a.b_c", "Qwen2.5-7B", "x"])
def test_good_names_stay(name):
    assert slug(name) == name


def test_text_is_written_as_utf8_with_unix_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "caf\u00e9\r\nx\n")
    assert path.read_bytes() == "caf\u00e9\r\nx\n".encode()
    write_text_atomic(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EXDEV, errno.ENOSYS])
def test_a_failing_system_call_leaves_the_old_file(tmp_path, monkeypatch, function, code):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(FalconError, match=r"could not be written|cannot be written"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == []


def test_a_file_size_limit_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    code = """
import resource, signal, sys
from pathlib import Path
from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.runs import write_text_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text_atomic(Path(sys.argv[1]), "x" * 5000)
except PrerequisiteError as error:
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    assert done.returncode == 3
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(PrerequisiteError, match="could not be written"):
        write_text_atomic(tmp_path / "missing" / "a.txt", "x")


def test_records_round_trip_as_json(tmp_path):
    count = CorpusCount(
        name="a", role="forget", source="f.jsonl", sha256="0", read=1, too_short=0, cut=0,
        duplicates=0, overlapping=0, training=1, held_out=0, tokens=9,
    )  # fmt: skip
    record = DataResult(corpora=[count], warnings=["caf\u00e9"])
    path = tmp_path / "data.json"
    write_json_atomic(path, record)
    assert DataResult.model_validate_json(path.read_text()) == record
    write_json_atomic(path, {"b": 1, "a": [None]})
    assert json.loads(path.read_text()) == {"b": 1, "a": [None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, value):
    layer = LayerValue(layer=1, value=value, low=0, high=1, probability_best=0, candidate=True)
    with pytest.raises(NumericalError, match="not finite"):
        write_json_atomic(tmp_path / "a.json", layer)
    with pytest.raises(NumericalError):
        fingerprint(part={"x": value})
    assert os.listdir(tmp_path) == []


def test_file_hashes(tmp_path):
    path = tmp_path / "a.bin"
    data = os.urandom(3_000_001)
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()
    with pytest.raises(DataError, match="cannot be read"):
        sha256_file(tmp_path / "missing")


def test_fingerprints_ignore_order_and_notice_every_change():
    base = fingerprint(recipe={"a": 1, "b": [1, 2]}, seed=0)
    assert fingerprint(seed=0, recipe={"b": [1, 2], "a": 1}) == base
    others = [
        fingerprint(recipe={"a": 1, "b": [2, 1]}, seed=0),
        fingerprint(recipe={"a": 1, "b": [1, 2]}, seed=1),
        fingerprint(recipe={"a": "1", "b": [1, 2]}, seed=0),
        fingerprint(recipe={"a": 1.5, "b": [1, 2]}, seed=0),
    ]
    assert len({base, *others}) == 5
    assert len(base) == 64


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/someone/data/forget.jsonl", "forget.jsonl"),
        ("~/data/forget.jsonl", "forget.jsonl"),
        ("../data/forget.jsonl", "forget.jsonl"),
        ("C:\\Users\\someone\\forget.jsonl", "forget.jsonl"),
        ("/home/someone/models/tiny/", "tiny"),
        ("org/model", "org/model"),
        ("self", "self"),
        ("/", "."),
        ("org/hf_abcdefghijklmnop", "org/[token]"),
    ],
)
def test_public_names(value, public):
    assert public_name(value) == public


def test_public_text_hides_home_and_tokens(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert (
        public_text("a /home/someone/x hf_abcdefgh1234 /home/someoneelse")
        == "a ~/x [token] /home/someoneelse"
    )


def test_environment_is_recorded_without_torch_and_without_names():
    code = (
        "import sys; from falcon_unlearn.runs import capture_environment as c;"
        "print(c('cpu', 2, 7).model_dump_json()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    record = json.loads(done.stdout)
    assert record["packages"]["torch"]
    assert (record["threads"], record["seed"], record["device"]) == (2, 7, "cpu")
    assert record["memory_bytes"] > 2**20
    assert 1 <= record["cores"] <= (os.cpu_count() or 1)
    assert str(Path.home()) not in done.stdout
    assert capture_environment("cpu", 1).seed is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_for_people(value, text):
    assert format_bytes(value) == text


def test_permission_is_the_users_affair(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        write_text_atomic(tmp_path / "a.txt", "x")
