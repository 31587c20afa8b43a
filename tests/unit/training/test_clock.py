"""The clock of the wall may jump or stand still: states, names and results do not depend on it."""

from __future__ import annotations

import os
import time

import pytest

from falcon_unlearn.events import Notice, TrainingStepped
from falcon_unlearn.runs import Snapshots, open_work, staged_folder, write_text_atomic
from killed_sessions import Killed, assert_equal, recipe_of, session

YEAR = 3.2e7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {
        method: session(recipe_of(method), tmp_path_factory.mktemp("whole")) for method in ("falcon", "npo")
    }


@pytest.mark.parametrize("method", ["falcon", "npo"])
@pytest.mark.parametrize("direction", [-1, 1])
def test_a_clock_that_jumps_between_and_during_runs_changes_nothing(
    method, direction, tmp_path, monkeypatch, whole
):
    jumps = [0.0]
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + jumps[-1])
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    events, kills = [], [3, 5]

    def sink(event):
        events.append(event)
        if isinstance(event, TrainingStepped):
            jumps.append(jumps[-1] + direction * YEAR)
            if event.step in kills:
                kills.remove(event.step)
                raise Killed

    recipe = recipe_of(method)
    for _ in range(2):
        with pytest.raises(Killed):
            session(recipe, tmp_path, sink, open_work(tmp_path / ".out.work", {"r": 1}))
        jumps.append(-jumps[-1])  # the next process starts at another time altogether
    resumed = session(recipe, tmp_path, sink, open_work(tmp_path / ".out.work", {"r": 1}))
    assert_equal(whole[method], resumed)
    steps = [event.step for event in events if isinstance(event, TrainingStepped)]
    # Killed before steps 3 and 5 were saved: the newest state was found both times, by number and not by age.
    assert steps == [1, 2, 3, 3, 4, 5, 5, 6]
    assert not [e for e in events if isinstance(e, Notice) and e.level == "warning"]


def test_the_newest_state_is_the_one_with_the_highest_number_whatever_its_time_of_change(tmp_path):
    snapshots = Snapshots(tmp_path, "f", keep=3)
    for number in (1, 2, 3):
        snapshots.save(number, lambda folder, n=number: (folder / "a").write_text(str(n)))
        newest = snapshots.newest().path
        for path in (newest, newest / "a"):
            os.utime(path, (2e9 - number * YEAR, 2e9 - number * YEAR))
    assert Snapshots(tmp_path, "f").newest().number == 3


def test_runs_that_start_in_the_same_instant_share_no_name(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    recipe, names = recipe_of("falcon"), []
    for name in ("a", "b"):
        with staged_folder(tmp_path / name) as staging:
            names.append(staging.name.removeprefix(f".{name}."))
            found = session(recipe, tmp_path, work=open_work(tmp_path / f".{name}.work", {"r": 1}))
            assert_equal(whole["falcon"], found)
            (staging / "x").write_text(name)
    states = [
        {path.name for path in (tmp_path / f".{name}.work" / "training").iterdir()} for name in ("a", "b")
    ]
    assert states[0].isdisjoint(states[1]) and names[0] != names[1]
    assert [(tmp_path / name / "x").read_text() for name in ("a", "b")] == ["a", "b"]


def test_two_states_and_two_files_of_one_instant_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    used, real = [], os.replace

    def watched(source, target):
        used.append(os.fspath(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    first, second = Snapshots(tmp_path, "f"), Snapshots(tmp_path, "f")
    for snapshots in (first, second):
        snapshots.save(7, lambda folder: (folder / "a").write_text("x"))
        write_text_atomic(tmp_path / "note.txt", "x")
    assert len(used) == len(set(used)) == 4
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("00000007-")]) == 2
