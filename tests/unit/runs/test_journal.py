"""The journal: every finished record survives, a torn last line is dropped, other damage is named."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.errors import DataError, FalconError, NumericalError, PrerequisiteError
from falcon_unlearn.runs import Journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
RECORDS = st.lists(st.tuples(st.text(max_size=6), st.dictionaries(st.text(max_size=4), JSON, max_size=3)))


@settings(deadline=None, max_examples=40)
@given(rows=RECORDS)
def test_what_was_appended_is_read_and_the_last_record_of_a_key_wins(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("journal") / "rows.jsonl"
    for key, record in rows:
        Journal(path).append(key, record)
    assert Journal(path).read() == json.loads(json.dumps(dict(rows)))


def test_without_a_file_there_is_nothing(tmp_path):
    assert Journal(tmp_path / "rows.jsonl").read() == {}


def test_a_replayed_append_changes_nothing(tmp_path):
    path = filled(tmp_path)
    before = Journal(path).read()
    for key, record in before.items():
        Journal(path).append(key, record)
    assert Journal(path).read() == before


def filled(folder, count=3):
    path = folder / "rows.jsonl"
    journal = Journal(path)
    for number in range(count):
        journal.append(f"row {number}", {"value": number / 3, "text": "a\nb\u2028c"})
    return path


def test_a_last_line_torn_at_any_byte_is_dropped_with_a_warning_and_work_goes_on(tmp_path):
    whole = filled(tmp_path).read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(whole[:cut])
        events = []
        assert list(Journal(path, events.append).read()) == ["row 0", "row 1"]
        assert [event.level for event in events] == ["warning"]
        assert "line 3" in events[0].message
        Journal(path).append("row 2", {"value": 2 / 3, "text": "a\nb\u2028c"})
        assert path.read_bytes() == whole


@pytest.mark.parametrize("number", [1, 2])
def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path, number):
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"value", b"worth")
    path.write_bytes(b"".join(lines))
    for use in (lambda: Journal(path).read(), lambda: Journal(path).append("x", {})):
        with pytest.raises(DataError, match=f"line {number}: damaged"):
            use()
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"[]\n", b"{}\n", b"\n", b'{"entry":[1,{}],"sha256":""}\n', b"[" * 9000]
)
def test_foreign_bytes_are_never_taken_for_a_record(tmp_path, line):
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes() + line)
    assert len(Journal(path).read()) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(tmp_path, value):
    path = filled(tmp_path)
    before = path.read_bytes()
    with pytest.raises(NumericalError, match="row x"):
        Journal(path).append("row x", {"value": value})
    assert path.read_bytes() == before


@pytest.mark.parametrize("stage", ["open", "half", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_system_call_leaves_the_earlier_records_and_the_journal_usable(
    tmp_path, monkeypatch, stage, code
):
    path = filled(tmp_path)
    before = path.read_bytes()
    journal = Journal(path)

    def fail(*arguments, **named):
        raise OSError(code, os.strerror(code))

    real_write = os.write
    written = []

    def write_half(descriptor, data):
        if written:
            fail()
        written.append(data)
        return real_write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        if stage == "open":
            patched.setattr(type(path), "open", fail)
        else:
            patched.setattr(
                os, "write" if stage == "half" else "fsync", write_half if stage == "half" else fail
            )
        with pytest.raises(FalconError, match=r"could not be|cannot be"):
            journal.append("new", {"value": 1})
    assert path.read_bytes() == before
    journal.append("new", {"value": 1})
    assert Journal(path).read()["new"] == {"value": 1}
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    # Real refusals by the kernel: a device that is always full, and a limit on the size of files.
    if os.path.exists("/dev/full"):
        (tmp_path / "full").symlink_to("/dev/full")
        journal = Journal(tmp_path / "full")
        journal._checked = True  # /dev/full cannot be read to its end
        with pytest.raises(PrerequisiteError, match="No space left"):
            journal.append("a", {})
    path = filled(tmp_path)
    size = path.stat().st_size
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from falcon_unlearn.errors import FalconError\n"
        "from falcon_unlearn.runs import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "try:\n"
        "    Journal(Path(sys.argv[1])).append('new', {'text': 'x' * 500})\n"
        "except FalconError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == 3
    assert path.stat().st_size == size
    assert len(Journal(path).read()) == 3
