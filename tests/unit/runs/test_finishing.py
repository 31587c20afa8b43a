"""Finished and unfinished work are told apart wherever a process was killed; left-overs go with a notice."""

from __future__ import annotations

import os

import pytest

from falcon_unlearn.errors import PrerequisiteError, UsageError
from falcon_unlearn.results import LayerValue
from falcon_unlearn.runs import check_output, open_work, remove_finished, staged_folder, work_path
from falcon_unlearn.runs import folder as folder_module
from falcon_unlearn.runs.finishing import FINISHED, IDENTITY, is_finished

A, B = {"recipe": 1}, {"recipe": 2}


class Killed(BaseException):
    pass


def value():
    return LayerValue(layer=1, value=0.1, low=0, high=1, probability_best=1 / 3, candidate=True)


def run(output, identity=A, sink=None, **options):
    """Do what the pipeline does: stage, work, announce, commit, remove."""
    extra = {"sink": sink} if sink else {}
    with staged_folder(output) as staging:
        work = open_work(work_path(output), identity, **options, **extra)
        work.record("piece", LayerValue, value)
        (staging / "model").write_text("weights")
        work.announce(staging)
    work.remove()


def in_fork(action):
    """Run `action` in a fork and return its exit code; 9 stands for the kill."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_in(output, monkeypatch, moment):
    """Run in a fork that ends at once before or after one call of the operating system."""
    real, name, wanted = {
        "before the rename": (os.rename, "rename", ".partial-"),
        "after the rename": (os.rename, "rename", ".partial-"),
        "during the removal": (os.unlink, "unlink", "finished.jsonl"),
        "late in the removal": (os.unlink, "unlink", IDENTITY),
        "at the end of the removal": (os.rmdir, "rmdir", ".work"),
    }[moment]

    def killed(path, *arguments, **named):
        hit = wanted in os.fspath(path)
        if hit and moment == "before the rename":
            os._exit(9)
        real(path, *arguments, **named)
        if hit and moment != "at the end of the removal":
            os._exit(9)

    def before_rmdir(path, *arguments, **named):
        if wanted in os.fspath(path):
            os._exit(9)
        real(path, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, name, before_rmdir if name == "rmdir" else killed)
        assert in_fork(lambda: run(output)) == 9


AFTER = ["after the rename", "during the removal", "late in the removal", "at the end of the removal"]


@pytest.mark.parametrize("moment", AFTER)
def test_a_kill_after_the_commit_leaves_what_the_refusal_removes_and_names(moment, tmp_path, monkeypatch):
    output = tmp_path / "out"
    kill_in(output, monkeypatch, moment)
    assert (output / "model").read_text() == "weights"
    assert work_path(output).exists()
    with pytest.raises(UsageError, match="output folder in use") as caught:
        check_output(output)
    # With the mark gone, an empty folder is left: the next run with this output takes it.
    if moment != "at the end of the removal":
        assert ".out.work, left beside it by a process that was killed" in caught.value.hint
        assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("moment", AFTER)
def test_with_the_output_moved_away_another_recipe_may_start(moment, tmp_path, monkeypatch):
    output, events = tmp_path / "out", []
    kill_in(output, monkeypatch, moment)
    output.rename(tmp_path / "kept")
    run(output, B, sink=events.append)
    assert sorted(os.listdir(tmp_path)) == ["kept", "out"]
    told = [event.message for event in events if "no unfinished work" in event.message]
    assert len(told) == (moment in {"after the rename", "during the removal"})


def test_a_kill_before_the_commit_leaves_unfinished_work_that_only_its_own_command_may_use(
    tmp_path, monkeypatch
):
    output = tmp_path / "out"
    kill_in(output, monkeypatch, "before the rename")
    assert (work_path(output) / FINISHED).is_file()
    assert not is_finished(work_path(output))
    # The first command removes the staging folder, and must not make the work look finished by that.
    for _ in range(2):
        with pytest.raises(UsageError, match="unfinished work of another run"):
            run(output, B)
    taken = []
    with staged_folder(output):
        work = open_work(work_path(output), A)
        taken.append(work.record("piece", LayerValue, lambda: pytest.fail("computed again")))
    assert taken == [value()]


@pytest.mark.parametrize("stage", ["fsync", "rename"])
def test_a_failed_commit_leaves_unfinished_work(stage, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if stage == "fsync":
            patched.setattr(folder_module, "sync_file", full)
        else:
            patched.setattr(os, "rename", full)
        with pytest.raises(PrerequisiteError, match="No space left"):
            run(output)
    assert sorted(os.listdir(tmp_path)) == [".out.work"]
    assert not is_finished(work_path(output))
    with pytest.raises(UsageError, match="unfinished work of another run"):
        run(output, B)
    run(output)
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_mark_that_cannot_be_withdrawn_keeps_the_staging_folder(tmp_path, monkeypatch):
    output = tmp_path / "out"
    kill_in(output, monkeypatch, "before the rename")
    real = os.unlink

    def refuse(path, *arguments, **named):
        if FINISHED in os.fspath(path):
            raise OSError(30, "Read-only file system")
        real(path, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        with pytest.raises(Killed), staged_folder(output):
            raise Killed
    assert [name for name in os.listdir(tmp_path) if ".partial-" in name]
    assert not is_finished(work_path(output))


def test_must_finds_nothing_in_finished_work_and_the_same_command_may_go_on(tmp_path, monkeypatch):
    output = tmp_path / "out"
    kill_in(output, monkeypatch, "after the rename")
    output.rename(tmp_path / "kept")
    with pytest.raises(UsageError, match="another run"), staged_folder(output):
        open_work(work_path(output), B, "must")
    run(output)
    assert sorted(os.listdir(tmp_path)) == ["kept", "out"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"moved": 3}', '{"moved": null}', '{"a": ' * 5000, "\0\xff"]
)
def test_a_damaged_mark_counts_as_unfinished(content, tmp_path):
    work = open_work(tmp_path / ".out.work", A)
    work.put("piece", {"v": 1})
    (work.path / FINISHED).write_text(content, encoding="latin-1")
    assert not is_finished(work.path)
    assert remove_finished(tmp_path / "out") == ""
    assert open_work(work.path, A).get("piece") == {"v": 1}


def test_a_link_is_never_followed(tmp_path, monkeypatch):
    kill_in(tmp_path / "out", monkeypatch, "after the rename")
    (tmp_path / ".out.work").rename(tmp_path / "elsewhere")
    (tmp_path / ".out.work").symlink_to(tmp_path / "elsewhere")
    assert remove_finished(tmp_path / "out") == ""
    assert (tmp_path / "elsewhere" / IDENTITY).is_file()


def test_a_result_file_is_delivered_in_one_step(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    work = open_work(work_path(output), A)
    work.put("piece", {"v": 1})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(PrerequisiteError, match="No space left"):
            work.deliver(value(), output)
    assert not output.exists() and not is_finished(work.path)
    again = open_work(work_path(output), A)
    assert again.get("piece") == {"v": 1}
    again.deliver(value(), output)
    assert LayerValue.model_validate_json(output.read_bytes()) == value()
    assert is_finished(again.path)
    assert ".result.json.work" in remove_finished(output)
    assert sorted(os.listdir(tmp_path)) == ["result.json"]
