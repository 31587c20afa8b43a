"""One process and several trace the same trajectory, whatever is decided per tensor, layer or globally."""

from __future__ import annotations

import pytest
import torch

from pico_files import save_pico
from rank_cases import CHEAP, MATRIX, assert_moved, assert_same, placed
from rank_jobs import run_ranks
from rank_worker import run_case


def compare(folder, size: int, cases: list[dict], *, hosts: int = 1) -> None:
    torch.set_num_threads(1)
    cases = placed(cases, str(save_pico(folder / "model")))
    singles = [run_case(entry) for entry in cases]
    for entry, single in zip(cases, singles, strict=True):
        if entry.get("streamed"):
            # Read from disk or held in memory: one process gets the same tensors.
            held = run_case({**entry, "streamed": False})
            for name, tensor in single["changed"].items():
                assert torch.equal(tensor, held["changed"][name])
    jobs = run_ranks(folder, size, cases, hosts=hosts)
    for case, single, several in zip(cases, singles, jobs, strict=True):
        assert_same(case, single, several)
        if single["status"] == "completed":
            assert_moved(single)


@pytest.mark.enable_socket
def test_two_ranks_trace_the_trajectory_of_one(tmp_path):
    compare(tmp_path, 2, CHEAP)


@pytest.mark.enable_socket
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_matrix_of_scopes_and_methods(tmp_path, size):
    compare(tmp_path, size, MATRIX)


@pytest.mark.enable_socket
@pytest.mark.slow
def test_two_machines_of_two_ranks_exchange_their_stores(tmp_path):
    compare(tmp_path, 4, CHEAP, hosts=2)
