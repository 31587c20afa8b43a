"""A Ray that does not start is tried again, and then told as what it is: something the machine lacks."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.sweep import ray_engine


class FakeRay(SimpleNamespace):
    """Stand in for Ray: its first `failures` starts end as Ray's own do when a node is late."""

    def __init__(self, failures: int) -> None:
        super().__init__(failures=failures, started=[], ended=0)

    def is_initialized(self) -> bool:
        return False

    def init(self, **arguments) -> None:
        self.started.append(arguments)
        if len(self.started) <= self.failures:
            raise Exception("The current node timed out during startup.\nThis could happen because")

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def install(failures: int) -> FakeRay:
        fake = FakeRay(failures)
        monkeypatch.setitem(sys.modules, "ray", fake)
        return fake

    return install


def test_a_late_node_is_tried_again(installed):
    fake = installed(failures=1)
    with ray_engine._session():
        assert len(fake.started) == 2
        assert fake.ended == 1, "the half-started session was not left"
    assert fake.ended == 2


def test_a_start_that_fails_for_good_is_a_missing_prerequisite(installed):
    fake = installed(failures=99)
    with pytest.raises(PrerequisiteError, match="Ray could not start: The current node timed out") as found:
        with ray_engine._session():
            raise AssertionError("the sweep ran without Ray")
    assert found.value.exit_code == 3
    assert "--engine optuna" in found.value.hint
    assert len(fake.started) == fake.ended == ray_engine.START_ATTEMPTS


def test_a_cluster_out_of_reach_is_named(installed, monkeypatch):
    fake = installed(failures=99)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(PrerequisiteError, match=r"cluster at 10\.0\.0\.1:6379"), ray_engine._session():
        pass
    assert all("include_dashboard" not in arguments for arguments in fake.started)


def test_interruption_is_not_taken_for_a_failed_start(installed, monkeypatch):
    fake = installed(failures=0)

    def interrupted(**arguments) -> None:
        fake.started.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "init", interrupted)
    with pytest.raises(KeyboardInterrupt), ray_engine._session():
        pass
    assert len(fake.started) == 1
