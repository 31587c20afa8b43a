"""A model computes in float32 where bfloat16 is slow, and gets its own tensors back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from falcon_unlearn.models import arithmetic
from falcon_unlearn.models.arithmetic import fast_arithmetic
from tiny_runs import tiny_engine


@pytest.fixture
def model():
    return tiny_engine().model.to(torch.bfloat16)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 5, 7, 9]])).logits


def test_slow_bfloat16_is_replaced_and_comes_back(model, monkeypatch):
    monkeypatch.setattr(arithmetic, "_measured", lambda device: torch.float32)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    rounded = logits(model)
    with fast_arithmetic(model) as dtype:
        exact = logits(model)
    assert dtype == torch.float32
    assert exact.dtype == torch.float32
    reference = tiny_engine().model.to(torch.bfloat16).float()
    torch.testing.assert_close(exact, logits(reference))
    assert (rounded.float() - exact).abs().max() > 0
    for name, parameter in model.named_parameters():
        pointer, value = before[name]
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)


def test_fast_bfloat16_stays(model, monkeypatch):
    monkeypatch.setattr(arithmetic, "_measured", lambda device: torch.bfloat16)
    with fast_arithmetic(model) as dtype:
        assert dtype == torch.bfloat16
        assert logits(model).dtype == torch.bfloat16


def test_a_copy_that_does_not_fit_is_not_made(model, monkeypatch):
    monkeypatch.setattr(arithmetic, "_measured", lambda device: torch.float32)
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(arithmetic.psutil, "virtual_memory", lambda: memory)
    with fast_arithmetic(model) as dtype:
        assert dtype == torch.bfloat16


def test_an_error_inside_brings_the_tensors_back(model, monkeypatch):
    monkeypatch.setattr(arithmetic, "_measured", lambda device: torch.float32)
    with pytest.raises(ZeroDivisionError), fast_arithmetic(model):
        raise ZeroDivisionError
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
