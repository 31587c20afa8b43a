"""Two machines, simulated by network namespaces: each sees the other through one virtual cable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid

import pytest
import torch

from pico_files import save_pico
from rank_cases import CHEAP, assert_same, placed
from rank_jobs import TESTS
from rank_worker import run_case

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Yield the names of two namespaces joined by a virtual cable, 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    tag = uuid.uuid4().hex[:6]
    names = [f"falcon{tag}{end}" for end in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "link",
                "add",
                f"v{tag}a",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                f"v{tag}b",
                "netns",
                names[1],
            )
            for number, (name, end) in enumerate(zip(names, "ab", strict=True), 1):
                ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", f"v{tag}{end}")
                ip("-n", name, "link", "set", f"v{tag}{end}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
        yield [(name, f"v{tag}{end}") for name, end in zip(names, "ab", strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines_trace_the_trajectory_of_one_process(tmp_path, machines):
    target = tmp_path / "ranks.pt"
    cases = placed(CHEAP, str(save_pico(tmp_path / "model")))
    worker = [str(TESTS / "rank_worker.py"), str(target), json.dumps(cases)]
    jobs = []
    for number, (name, device) in enumerate(machines):
        launcher = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}"]
        launcher += ["--master-addr=10.77.0.1", "--master-port=29511"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": device,
        }
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
        jobs.append(
            subprocess.Popen(
                [*command, *launcher, *worker],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [job.communicate(timeout=500)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(outputs)
    torch.set_num_threads(1)
    for case, several in zip(cases, torch.load(target), strict=True):
        assert_same(case, run_case(case), several)
