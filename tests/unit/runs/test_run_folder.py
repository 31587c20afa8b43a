"""Output folders: one writer, all or nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from falcon_unlearn.errors import PrerequisiteError, UsageError
from falcon_unlearn.runs import check_output, free_disk_check, staged_folder
from falcon_unlearn.runs import folder as folder_module


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_success_renames_everything_into_place(tmp_path):
    with staged_folder(tmp_path / "out") as staging:
        assert staging.parent == tmp_path
        assert staging.name.startswith(".out.partial-")
        assert not (tmp_path / "out").exists()
        (staging / "falcon").mkdir()
        (staging / "falcon" / "a.json").write_text("{}")
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "falcon" / "a.json").read_text() == "{}"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_any_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), staged_folder(tmp_path / "new" / "deep" / "out") as staging:
        (staging / "half").write_text("x")
        raise error
    assert names(tmp_path) == set()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_commit_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(PrerequisiteError, match="No space left"), staged_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("x")
        monkeypatch.setattr(os, call, fail)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EBUSY])
def test_a_file_system_that_cannot_rename_is_told_and_nothing_is_copied_instead(tmp_path, monkeypatch, code):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    with (
        pytest.raises(PrerequisiteError, match=os.strerror(code)),
        staged_folder(tmp_path / "out") as staging,
    ):
        (staging / "a").write_text("x")
        monkeypatch.setattr(os, "rename", fail)
    assert names(tmp_path) == set()


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as staging:
        (staging / "a").touch()
    assert names(tmp_path / "out") == {"a"}


def test_targets_in_use_are_refused_and_untouched(tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / ".hidden").touch()
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = names(tmp_path)
    for name, words in [
        ("used", "output folder in use"),
        ("file", "is a file"),
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("loop", "symbolic link"),
        ("file/below", "not a folder|Not a directory"),
        ("x" * 300, "too long"),
        ("a\nb", "control characters"),
        ("a\0b", "control characters"),
    ]:
        with pytest.raises(UsageError, match=words) as caught, staged_folder(tmp_path / name):
            raise AssertionError("the block must not run")
        assert caught.value.exit_code == 2
    assert names(tmp_path) == before
    assert names(tmp_path / "real") == set()
    with pytest.raises(UsageError, match="root"):
        check_output(Path("/"))


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="no permission to write"):
        check_output(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError), staged_folder(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_file_system_is_told(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match="Read-only file system"), staged_folder(tmp_path / "out"):
        pass


def test_a_folder_created_meanwhile_is_not_overwritten(tmp_path):
    with (
        pytest.raises(UsageError, match=r"in use|created by another"),
        staged_folder(tmp_path / "out") as staging,
    ):
        (staging / "a").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert names(tmp_path / "out") == {"theirs"}
    assert names(tmp_path) == {"out"}


HOLDER = """
import signal, sys, time
from pathlib import Path
from falcon_unlearn.runs import staged_folder
# A shell's background job inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with staged_folder(Path(sys.argv[1])) as staging:
    (staging / "weights").write_text("x" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""


def hold(output: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_process_is_refused_and_remains_of_a_killed_one_are_removed(tmp_path):
    process = hold(tmp_path / "out")
    try:
        with pytest.raises(UsageError, match="another process is writing"), staged_folder(tmp_path / "out"):
            raise AssertionError("the block must not run")
        assert any(name.startswith(".out.partial-") for name in names(tmp_path))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert any(name.startswith(".out.partial-") for name in names(tmp_path))
    with staged_folder(tmp_path / "out") as staging:
        (staging / "mine").touch()
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"mine"}


def test_an_interrupted_process_cleans_up(tmp_path):
    process = hold(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    assert names(tmp_path) == set()


def test_only_our_own_remains_are_removed(tmp_path):
    keep = [".out.partial-mine", ".other.partial-" + uuid.uuid4().hex, "out.partial-" + uuid.uuid4().hex]
    for name in keep:
        (tmp_path / name).mkdir()
    (tmp_path / (".out.partial-" + "0" * 32)).mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == {"out", *keep}


def test_two_outputs_side_by_side_do_not_disturb_each_other(tmp_path):
    with staged_folder(tmp_path / "a") as first, staged_folder(tmp_path / "b") as second:
        (first / "1").touch()
        (second / "2").touch()
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == ({"1"}, {"2"})


def test_every_file_reaches_the_disk_before_the_rename(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(folder_module, "sync_file", lambda path: events.append(path.name))
    rename = os.rename

    def renamed(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    with staged_folder(tmp_path / "out") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "b").touch()
        (staging / "a").touch()
    assert sorted(events[:-1]) == ["a", "b"]
    assert events[-1] == "rename"


def test_free_disk(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10 * 2**30})
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda folder: usage)
    free_disk_check(tmp_path / "not" / "yet", 5 * 2**30)
    free_disk_check(tmp_path, 10 * 2**30, headroom=1.0)
    with pytest.raises(
        PrerequisiteError, match=r"12\.0 GiB of free disk space are needed, 10\.0 GiB are free"
    ) as caught:
        free_disk_check(tmp_path / "not" / "yet", 6 * 2**30)
    assert caught.value.exit_code == 3


def test_the_lock_does_not_wait(tmp_path):
    process = hold(tmp_path / "out")
    started = time.monotonic()
    try:
        with pytest.raises(UsageError), staged_folder(tmp_path / "out"):
            pass
        assert time.monotonic() - started < 5
    finally:
        process.kill()
        process.wait()
