"""The peak is that of the part that was measured."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from falcon_unlearn.runs.memory import peak_memory_bytes, reset_peak_memory

SIZE = 200 * 2**20


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux sets a peak back")
def test_a_reset_forgets_the_peak_of_what_came_before():
    if not reset_peak_memory():
        pytest.skip("this kernel does not let a process set its peak back")
    before = peak_memory_bytes()
    values = np.ones(SIZE, dtype=np.uint8)
    assert peak_memory_bytes() - before > 0.9 * SIZE
    del values
    assert reset_peak_memory()
    assert peak_memory_bytes() - before < 0.5 * SIZE


def test_without_a_reset_the_peak_stays(monkeypatch, tmp_path):
    from falcon_unlearn.runs import memory

    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    assert not reset_peak_memory()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert peak_memory_bytes() >= psutil.Process().memory_info().rss * 0.5
