from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

from falcon_unlearn.errors import UsageError
from falcon_unlearn.optimizers import OPTIMIZERS, SignMomentum, SophiaReference, build_optimizer


def gradient_series(num_steps: int, scale: float) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_steps, 6)) * scale


def run(optimizer_class, start: np.ndarray, series: np.ndarray, **settings) -> np.ndarray:
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = optimizer_class([parameter], **settings)
    for gradient in series:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0])
def test_sophia_reference_equals_its_formula(scale: float) -> None:
    start, series = np.linspace(-1, 1, 6), gradient_series(25, scale)
    weights, curvature, momentum = start.copy(), np.zeros(6), np.zeros(6)
    for gradient in series:
        curvature = 0.99 * curvature + 0.01 * gradient**2
        for _ in range(2):
            momentum = 0.965 * momentum + 0.035 * gradient
        weights = weights * (1 - 1e-3 * 1e-3)
        ratio = np.minimum(1.0, np.abs(momentum) / (4608 * curvature + 1e-15))
        weights = weights - 1e-3 * np.sign(momentum) * ratio
    np.testing.assert_allclose(run(SophiaReference, start, series, lr=1e-3), weights, rtol=0, atol=1e-14)


def test_sophia_reference_clips_below_the_documented_gradient_size() -> None:
    for size, is_sign_step in ((1.4e-3, True), (1.6e-3, False)):
        moved = run(SophiaReference, np.zeros(6), np.full((1, 6), size), lr=1e-3, weight_decay=0.0)
        assert np.allclose(moved, -1e-3, rtol=1e-9) is is_sign_step
    steady = run(SophiaReference, np.zeros(6), np.full((2000, 6), 1e-3), lr=1.0, weight_decay=0.0)
    longer = run(SophiaReference, np.zeros(6), np.full((2001, 6), 1e-3), lr=1.0, weight_decay=0.0)
    np.testing.assert_allclose(steady - longer, 1 / (4608 * 1e-3), rtol=1e-6)


def test_sign_momentum_equals_its_formula() -> None:
    start, series = np.linspace(-1, 1, 6), gradient_series(25, 0.1)
    weights, momentum = start.copy(), np.zeros(6)
    for gradient in series:
        momentum = 0.8 * momentum + 0.2 * gradient
        weights = (1 - 0.01 * 0.1) * weights - 0.01 * np.sign(momentum)
    ours = run(SignMomentum, start, series, lr=0.01, momentum=0.8, weight_decay=0.1)
    np.testing.assert_allclose(ours, weights, rtol=0, atol=1e-14)


def test_a_weight_without_gradient_history_does_not_move() -> None:
    series = np.zeros((3, 6))
    for optimizer_class in (SignMomentum, SophiaReference):
        moved = run(optimizer_class, np.ones(6), series, lr=0.1, weight_decay=0.0)
        np.testing.assert_array_equal(moved, 1.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_survives_a_checkpoint_bit_for_bit(name: str) -> None:
    series = torch.from_numpy(gradient_series(12, 1e-2)).float()

    def step(parameters: list[torch.nn.Parameter], optimizer, gradients: torch.Tensor) -> None:
        for gradient in gradients:
            parameters[0].grad, parameters[1].grad = gradient.clone(), gradient[:2].clone()
            optimizer.step()

    def fresh() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(torch.ones(6)), torch.nn.Parameter(torch.ones(2))]
        return parameters, build_optimizer(name, parameters, 1e-3, momentum=0.7)

    straight, optimizer = fresh()
    step(straight, optimizer, series)

    first, optimizer = fresh()
    step(first, optimizer, series[:5])
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    resumed, optimizer = fresh()
    for target, source in zip(resumed, first, strict=True):
        target.data.copy_(source.data)
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    step(resumed, optimizer, series[5:])
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


@pytest.mark.parametrize("optimizer_class", [SignMomentum, SophiaReference])
def test_parameters_without_gradient_are_left_alone(optimizer_class) -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    parameters[0].grad = torch.ones(3)
    optimizer = optimizer_class(parameters, lr=0.1)
    optimizer.step()
    assert float(parameters[0][0].detach()) < 1.0
    assert torch.equal(parameters[1], torch.ones(3))
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("optimizer_class", [SignMomentum, SophiaReference])
def test_closure_is_evaluated_with_gradients(optimizer_class) -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = optimizer_class([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 4.0
    assert float(parameter.detach()) < 2.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = build_optimizer(name, [parameter], 0.01)
    for _ in range(50):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    # Far above its clipping range the reference variant moves by about lr / (4608 |g|) only.
    assert float(parameter.detach().square().sum()) < 1.999


def test_defaults_leave_untouched_weights_in_place_except_in_the_reference() -> None:
    decays = {
        name: build_optimizer(name, [torch.nn.Parameter(torch.ones(1))], 0.1).param_groups[0]["weight_decay"]
        for name in OPTIMIZERS
    }
    assert decays == {"adamw": 0.0, "sgd": 0.0, "sign_momentum": 0.0, "sophia_reference": 1e-3}


def test_settings_reach_the_optimizer() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1))]
    adamw = build_optimizer("adamw", parameters, 0.1, weight_decay=0.2, momentum=0.5).param_groups[0]
    assert (adamw["lr"], adamw["weight_decay"], adamw["betas"]) == (0.1, 0.2, (0.5, 0.999))
    sophia = build_optimizer("sophia_reference", parameters, 0.1, weight_decay=0.0).param_groups[0]
    assert (sophia["weight_decay"], sophia["betas"], sophia["rho"]) == (0.0, (0.965, 0.99), 0.9)


def test_generators_of_parameters_are_accepted() -> None:
    module = torch.nn.Linear(2, 2)
    assert len(build_optimizer("sgd", module.parameters(), 0.1).param_groups[0]["params"]) == 2


def test_bad_settings_are_named() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(UsageError, match="got 'adamv'") as raised:
        build_optimizer("adamv", parameters, 0.1)
    assert "adamw" in str(raised.value.hint)
    with pytest.raises(UsageError, match="learning_rate"):
        build_optimizer("adamw", parameters, 0.0)
    with pytest.raises(UsageError, match="learning_rate"):
        build_optimizer("adamw", parameters, float("nan"))
    with pytest.raises(UsageError, match="momentum"):
        build_optimizer("sgd", parameters, 0.1, momentum=1.0)
    with pytest.raises(UsageError, match="weight_decay"):
        build_optimizer("sgd", parameters, 0.1, weight_decay=-1.0)
    with pytest.raises(UsageError, match="no parameters"):
        build_optimizer("sgd", [], 0.1)
    with pytest.raises(UsageError, match=r"betas\[0\]"):
        SophiaReference(parameters, betas=(1.0, 0.99))


def test_copies_share_no_state() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = SophiaReference([parameter], lr=0.1)
    optimizer.step()
    frozen = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    moved = optimizer.state_dict()["state"][0]["momentum"]
    assert not torch.equal(frozen["state"][0]["momentum"], moved)
