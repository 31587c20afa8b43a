"""What ranks tell each other when collective operations no longer work."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from torch.distributed import HashStore

from falcon_unlearn.distributed import job
from falcon_unlearn.distributed.board import NoticeBoard, is_running
from falcon_unlearn.distributed.environment import Place, read_place
from falcon_unlearn.distributed.team import Team, split_rows
from falcon_unlearn.errors import PeerError, UsageError


@pytest.fixture
def boards():
    store = HashStore()
    made = [NoticeBoard(store, Place(rank, 2, rank, 2, 0)) for rank in range(2)]
    yield made
    for board in made:
        board.close()


def test_one_rank_speaks_and_all_end_with_its_code(boards):
    first, second = boards
    assert second.claim_failure()
    assert not first.claim_failure()
    assert second.settle_exit_code(2) == 2
    assert first.settle_exit_code(5) == 2


def test_without_a_posted_code_the_own_one_counts(boards):
    assert boards[0].settle_exit_code(3, patience=0.0) == 3


def test_a_killed_process_is_told_from_one_that_left(boards):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    boards[0].post("process/1", f"0 {child.pid}")
    assert boards[0].killed_neighbours() == []
    child.kill()
    while is_running(child.pid):
        pass
    assert boards[0].killed_neighbours() == [1]
    assert "rank 1" in boards[0].describe_loss()
    boards[0].post("left/1", "yes")
    assert boards[0].killed_neighbours() == []
    child.wait()


def test_a_peer_that_closes_its_sockets_before_it_is_gone_is_named(boards):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    boards[0].post("process/1", f"0 {child.pid}")
    later = threading.Timer(0.3, child.kill)
    later.start()
    try:
        team = Team(boards[0].place, boards[0])
        with pytest.raises(PeerError, match="rank 1 of the job was lost"), team.peers_may_fail():
            raise RuntimeError("gloo: Connection closed by peer")
    finally:
        later.join()
        child.wait()


def test_a_process_on_another_machine_is_not_judged(boards):
    boards[0].post("process/1", "7 999999")
    assert boards[0].killed_neighbours() == []


def test_waiting_ends_when_another_rank_fails(boards):
    boards[1].claim_failure()
    with pytest.raises(PeerError, match="another process"):
        Team(boards[0].place, boards[0]).meet()


def test_waiting_ends_when_another_rank_falls_silent(boards):
    boards[1].close()
    with pytest.raises(PeerError, match="rank 1"):
        Team(boards[0].place, boards[0], timeout=6.0).meet()


def test_a_team_of_one_changes_nothing():
    team = Team()
    assert team.sum_values([1.5]) == [1.5]
    assert team.weight(3) == 1.0
    assert team.from_leader(lambda: "x") == "x"
    assert team.own_part([1, 2, 3]) == [1, 2, 3]
    assert team.own_rows([4, 5]) == [0, 1]
    team.meet()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rows_are_dealt_once_each_and_evenly(size):
    lengths = [7, 3, 9, 9, 1, 4, 6, 2]
    parts = split_rows(lengths, size)
    assert sorted(row for part in parts for row in part) == list(range(8))
    loads = [sum(lengths[row] for row in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths)


def test_place_comes_from_torchrun():
    assert read_place({}) is None
    variables = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
    }
    assert read_place(variables) == Place(5, 8, 1, 4, 1)


@pytest.mark.parametrize("changes", [{"RANK": "x"}, {"RANK": "8"}, {"LOCAL_RANK": "4"}])
def test_damaged_places_are_refused(changes):
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"} | changes
    with pytest.raises(UsageError, match=r"rank|RANK"):
        read_place(variables)


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        ("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]", PeerError, "lost each"),
        ("the matrix is singular", RuntimeError, "singular"),
    ],
)
def test_a_peer_lost_inside_torch_is_told_from_a_defect(monkeypatch, message, error, told):
    place = Place(0, 2, 0, 2, 0)
    monkeypatch.setattr(job, "read_place", lambda: place)
    monkeypatch.setattr(job, "_join", lambda *_: Team(place))
    with pytest.raises(error, match=told) as found, job.joined(timeout=1.0):
        raise RuntimeError(message)
    assert type(found.value) is error
    assert job.current_team().size == 1
