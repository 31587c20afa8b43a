"""Work folders: one identity each, differences shown field by field, finished pieces given back once."""

from __future__ import annotations

import json
import os

import pytest

from falcon_unlearn.errors import PrerequisiteError, UsageError
from falcon_unlearn.results import LayerValue
from falcon_unlearn.runs import open_work, work_path
from falcon_unlearn.runs.identity import code_identity, differences
from falcon_unlearn.runs.work import IDENTITY

IDENTITY_A = {
    "recipe": {"train": {"steps": 3, "modules": ["a", "b"]}},
    "weights": {"m": "00"},
    "code": {"v": "1"},
}


def record(value=0.1):
    return LayerValue(layer=1, value=value, low=0, high=1, probability_best=1 / 3, candidate=True)


def test_a_record_is_computed_once_and_comes_back_equal(tmp_path):
    path = work_path(tmp_path / "out")
    assert path.name == ".out.work"
    first = open_work(path, IDENTITY_A).record("x", LayerValue, record)
    again = open_work(path, IDENTITY_A).record("x", LayerValue, lambda: pytest.fail("computed again"))
    assert first == again
    work = open_work(path, IDENTITY_A)
    assert work.value("dtype", lambda: "float32") == "float32"
    assert open_work(path, IDENTITY_A).value("dtype", lambda: "bfloat16") == "float32"
    work.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recipe": {"train": {"steps": 4, "modules": ["a", "b"]}}}, "recipe.train.steps: 3 then, 4 now"),
        (
            {"recipe": {"train": {"steps": 3, "modules": ["a"]}}},
            "recipe.train.modules[1]: 'b' then, absent now",
        ),
        ({"weights": {"m": "11"}}, "weights.m: '00' then, '11' now"),
        ({"code": {"v": "1", "torch": "2"}}, "code.torch: absent then, '2' now"),
    ],
)
def test_another_identity_is_refused_with_the_difference_and_nothing_is_lost(change, line, tmp_path):
    path = tmp_path / ".out.work"
    open_work(path, IDENTITY_A).record("x", LayerValue, record)
    for resume in ("auto", "must"):
        with pytest.raises(UsageError) as caught:
            open_work(path, {**IDENTITY_A, **change}, resume)
        assert line in caught.value.message
        assert "--resume never" in caught.value.hint
    assert open_work(path, IDENTITY_A).record("x", LayerValue, lambda: pytest.fail("lost")) == record()
    assert open_work(path, {**IDENTITY_A, **change}, "never").get("x") is None


def test_must_insists_on_something_to_go_on_from(tmp_path):
    with pytest.raises(UsageError, match="no unfinished work"):
        open_work(tmp_path / ".out.work", IDENTITY_A, "must")
    assert os.listdir(tmp_path) == []


def test_many_differences_are_counted(tmp_path):
    path = tmp_path / ".out.work"
    open_work(path, {str(n): n for n in range(20)}).put("piece", {"v": 1})
    with pytest.raises(UsageError, match="and 12 more"):
        open_work(path, {str(n): n + 1 for n in range(20)})


def test_a_folder_of_somebody_else_is_never_removed(tmp_path):
    path = tmp_path / ".out.work"
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    for resume in ("auto", "never"):
        with pytest.raises(UsageError, match=r"holds 'thesis\.txt'"):
            open_work(path, IDENTITY_A, resume)
    assert (path / "thesis.txt").read_text() == "mine"
    (tmp_path / "file.work").write_text("x")
    (tmp_path / "link.work").symlink_to(path)
    for name in ("file.work", "link.work"):
        with pytest.raises(UsageError, match=r"no folder|holds"):
            open_work(tmp_path / name, IDENTITY_A, "never")


def test_a_damaged_identity_is_not_trusted(tmp_path):
    path = tmp_path / ".out.work"
    open_work(path, IDENTITY_A)
    (path / IDENTITY).write_text('{"recipe":')
    with pytest.raises(UsageError, match="damaged"):
        open_work(path, IDENTITY_A)
    assert open_work(path, IDENTITY_A, "never").is_empty


def test_a_kill_before_the_identity_was_whole_leaves_nothing_in_the_way(tmp_path):
    path = tmp_path / ".out.work"
    path.mkdir()
    (path / f".{IDENTITY}.0123.tmp").write_text("{")
    assert open_work(path, IDENTITY_A).is_empty
    assert sorted(os.listdir(path)) == [IDENTITY]


def test_a_record_of_another_shape_is_computed_again(tmp_path):
    path, events = tmp_path / ".out.work", []
    open_work(path, IDENTITY_A).put("x", {"record": {"layer": "one"}, "seconds": 1})
    assert open_work(path, IDENTITY_A, sink=events.append).record("x", LayerValue, record) == record()
    assert events[-1].level == "warning"


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    work = open_work(tmp_path / ".out.work", IDENTITY_A)
    work.put("a", {"value": 1})

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(PrerequisiteError, match="No space left"):
            work.put("b", {"value": 2})
    again = open_work(tmp_path / ".out.work", IDENTITY_A)
    assert (again.get("a"), again.get("b")) == ({"value": 1}, None)


def test_differences_of_equal_trees_are_empty_also_after_json():
    assert differences(json.loads(json.dumps(IDENTITY_A)), IDENTITY_A) == []


def test_the_code_is_identified_by_its_sources(tmp_path):
    identity = code_identity()
    assert len(identity["sources"]) == 64
    assert identity["torch"] != "absent"
