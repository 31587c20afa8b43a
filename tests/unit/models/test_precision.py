from __future__ import annotations

import pytest
import torch

from falcon_unlearn.models import precision
from falcon_unlearn.models.precision import matrix_product_speed, resolve_compute_dtype

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unmeasured():
    precision._measured_gain.cache_clear()
    yield
    precision._measured_gain.cache_clear()


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_named_dtype_is_taken_without_measuring(name, dtype, monkeypatch):
    monkeypatch.setattr(precision, "matrix_product_speed", lambda *_: pytest.fail("measured"))
    assert resolve_compute_dtype(name, CPU) == dtype


@pytest.mark.parametrize(
    ("gain", "dtype"),
    [(0.5, torch.float32), (1.25, torch.float32), (1.35, torch.bfloat16), (8, torch.bfloat16)],
)
def test_auto_takes_bfloat16_only_where_it_is_clearly_faster(gain, dtype, monkeypatch):
    speeds = {torch.float32: 100.0, torch.bfloat16: 100.0 * gain}
    monkeypatch.setattr(precision, "matrix_product_speed", lambda dtype, device: speeds[dtype])
    assert resolve_compute_dtype("auto", CPU) == dtype


def test_a_process_measures_once(monkeypatch):
    speeds = iter([130.0, 100.0])
    monkeypatch.setattr(precision, "matrix_product_speed", lambda dtype, device: next(speeds))
    assert {resolve_compute_dtype("auto", CPU) for _ in range(3)} == {torch.bfloat16}


def test_speed_is_flop_per_second_of_the_best_repeat(monkeypatch):
    ticks = iter([0.0, 0.375, 10.0, 10.0625, 20.0, 20.5])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert matrix_product_speed(torch.float32, CPU, size=16, repeats=3) == 2 * 16**3 / 0.0625


def test_slow_products_are_not_repeated(monkeypatch):
    ticks = iter([0.0, 2.0])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert matrix_product_speed(torch.float32, CPU, size=16, repeats=3) == 2 * 16**3 / 2.0
