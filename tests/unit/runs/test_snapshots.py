"""Saved states: whatever fails while one is written, the one before counts and nothing half is left."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from falcon_unlearn.errors import FalconError
from falcon_unlearn.runs import Snapshots
from falcon_unlearn.runs.snapshots import MANIFEST_FILE

STAGES = ["mkdir", "fill", "half", "fsync", "manifest", "replace", "rename", "folder fsync"]


def save(snapshots, number, size=100):
    def fill(folder):
        (folder / "a").write_bytes(bytes([number]) * size)
        (folder / "b").write_text(str(number))

    snapshots.save(number, fill)


def content(snapshot):
    return (snapshot.path / "a").read_bytes()


def fail_at(stage, code, patched):
    """Let one system call of the writer fail, the n-th where the stage says so."""
    calls = []

    def fail(*arguments, **named):
        raise OSError(code, os.strerror(code))

    def fail_call(name, number):
        real = getattr(os, name)

        def counted(*arguments, **named):
            calls.append(name)
            return fail() if len(calls) == number else real(*arguments, **named)

        patched.setattr(os, name, counted)

    places = {
        "mkdir": ("mkdir", 1),
        "fsync": ("fsync", 1),
        "manifest": ("fsync", 2),
        "replace": ("replace", 1),
    }
    places |= {"rename": ("rename", 1), "folder fsync": ("fsync", 4)}
    if stage in places:
        fail_call(*places[stage])
    return fail


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_every_stage_keeps_the_states_before_and_leaves_nothing(
    stage, code, tmp_path, monkeypatch
):
    snapshots = Snapshots(tmp_path, "f")
    save(snapshots, 1)
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patched, pytest.raises(FalconError, match="could not be written"):
        fail = fail_at(stage, code, patched)

        def fill(folder):
            (folder / "a").write_bytes(b"half")
            if stage in {"fill", "half"}:
                fail()

        snapshots.save(2, fill)
    after = sorted(os.listdir(tmp_path))
    # After the rename the new state is whole; only its durability was in doubt.
    assert [name for name in after if name.startswith("00000001")] == before
    assert not [name for name in after if "tmp" in name]
    found = snapshots.newest()
    assert found.number == (2 if stage == "folder fsync" else 1)
    save(snapshots, 3)
    assert snapshots.newest().number == 3


def test_a_file_size_limit_in_the_middle_of_a_state(tmp_path):
    save(Snapshots(tmp_path, "f"), 1)
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from falcon_unlearn.errors import FalconError\n"
        "from falcon_unlearn.runs import Snapshots\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "def fill(folder):\n"
        "    (folder / 'small').write_bytes(b'x' * 10)\n"
        "    (folder / 'large').write_bytes(b'x' * 50000)\n"
        "try:\n"
        "    Snapshots(Path(sys.argv[1]), 'f').save(2, fill)\n"
        "except FalconError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 3
    assert [name[:8] for name in os.listdir(tmp_path)] == ["00000001"]
    assert Snapshots(tmp_path, "f").newest().number == 1


def damage(path, kind):
    manifest = path / MANIFEST_FILE
    if kind == "no manifest":
        manifest.unlink()
    elif kind == "truncated manifest":
        manifest.write_bytes(manifest.read_bytes()[:50])
    elif kind == "truncated file":
        (path / "a").write_bytes(b"")
    elif kind == "changed file":
        (path / "a").write_bytes(b"\0" * 100)
    elif kind == "missing file":
        (path / "b").unlink()
    else:
        values = json.loads(manifest.read_text())
        values |= {"newer version": {"version": 99}, "other run": {"fingerprint": "g"}}[kind]
        manifest.write_text(json.dumps(values))


KINDS = [
    ("no manifest", "manifest is missing"),
    ("truncated manifest", "manifest is damaged"),
    ("truncated file", "has 0 bytes instead of 100"),
    ("changed file", "a was changed"),
    ("missing file", "b is missing"),
    ("newer version", "newer version of falcon-unlearn"),
    ("other run", "another run"),
]


@pytest.mark.parametrize(("kind", "words"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_state_that_cannot_be_used_is_told_skipped_and_kept(kind, words, tmp_path):
    events = []
    snapshots = Snapshots(tmp_path, "f", sink=events.append)
    save(snapshots, 1)
    save(snapshots, 2)
    newest = snapshots.newest().path
    damage(newest, kind)
    found = snapshots.newest()
    assert (found.number, content(found)) == (1, b"\1" * 100)
    assert [event.level for event in events] == ["warning"]
    assert words in events[0].message
    assert newest.is_dir()


def test_two_sound_states_are_kept_and_damaged_ones_never_push_them_out(tmp_path):
    snapshots = Snapshots(tmp_path, "f")
    for number in range(1, 6):
        save(snapshots, number)
    assert snapshots.numbers() == [4, 5]
    damage(snapshots.newest().path, "no manifest")
    save(snapshots, 6)
    assert snapshots.numbers() == [4, 6]
    assert len(os.listdir(tmp_path)) == 3


def test_remains_of_a_killed_writer_are_removed_and_foreign_names_stay(tmp_path):
    save(Snapshots(tmp_path, "f"), 1)
    (tmp_path / "00000002-abcdef01.tmp-1234").mkdir()
    (tmp_path / "notes").mkdir()
    assert Snapshots(tmp_path, "f").newest().number == 1
    assert sorted(name[:8] for name in os.listdir(tmp_path)) == ["00000001", "notes"]


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    snapshots = Snapshots(tmp_path, "f")
    save(snapshots, 1)
    manifest = snapshots.newest().path / MANIFEST_FILE
    (tmp_path / "a").write_text("outside")
    manifest.write_text(manifest.read_text().replace('"a"', '"../a"'))
    assert snapshots.newest().number == 1  # the name is cut to its last part, which is the file inside
