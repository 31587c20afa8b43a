from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.conflict import Gramian, compute_gramians, gramian, resolve_conflict
from falcon_unlearn.conflict.rules import CombinationWeights
from falcon_unlearn.errors import NumericalError, UsageError

LAYERS = {"blocks.5.down": 5, "blocks.6.down": 6, "blocks.6.up": 6}
GROUPS = {
    "tensor": [["blocks.5.down"], ["blocks.6.down"], ["blocks.6.up"]],
    "layer": [["blocks.5.down"], ["blocks.6.down", "blocks.6.up"]],
    "global": [["blocks.5.down", "blocks.6.down", "blocks.6.up"]],
}


def gradients(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"blocks.5.down": (3, 4), "blocks.6.down": (2, 5), "blocks.6.up": (7,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def flat(tensors: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in names])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), scope=st.sampled_from(sorted(GROUPS)))
def test_every_group_follows_the_formula_in_float64(seed: int, scope: str) -> None:
    forget, retain = gradients(seed), gradients(seed + 1)
    resolved = resolve_conflict(
        forget, retain, scope=scope, layers=LAYERS, conflict_weights=(0.8, 1.2), aligned_weights=(0.1, 1.9)
    )
    num_conflicts = 0
    for names in GROUPS[scope]:
        forget_P, retain_P = flat(forget, names), flat(retain, names)
        inner = forget_P @ retain_P
        if inner < 0:
            num_conflicts += 1
            expected = 0.8 * (forget_P - inner / (retain_P @ retain_P) * retain_P) + 1.2 * retain_P
        else:
            expected = 0.1 * forget_P + 1.9 * retain_P
        torch.testing.assert_close(flat(resolved.gradients, names), expected, rtol=1e-10, atol=1e-12)
    assert resolved.conflict_share == pytest.approx(num_conflicts / len(GROUPS[scope]))
    assert list(resolved.gradients) != [] and resolved.gradients.keys() == forget.keys()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), scope=st.sampled_from(sorted(GROUPS)))
def test_projection_never_opposes_retention_in_float32(seed: int, scope: str) -> None:
    forget, retain = gradients(seed, torch.float32), gradients(seed + 1, torch.float32)
    resolved = resolve_conflict(
        forget, retain, scope=scope, layers=LAYERS, conflict_weights=(1.0, 0.0), aligned_weights=(1.0, 0.0)
    )
    for names in GROUPS[scope]:
        projected, retain_P = flat(resolved.gradients, names).double(), flat(retain, names).double()
        assert float(projected @ retain_P) >= -1e-6 * float(flat(forget, names).norm() * retain_P.norm())


def test_cosines_are_reported_per_tensor_in_every_scope() -> None:
    forget, retain = gradients(0), gradients(1)
    for scope in GROUPS:
        resolved = resolve_conflict(forget, retain, scope=scope, layers=LAYERS)
        for name in forget:
            expected = torch.cosine_similarity(forget[name].reshape(-1), retain[name].reshape(-1), dim=0)
            assert resolved.cosines[name] == pytest.approx(float(expected), abs=1e-12)
        assert len(resolved.gramians) == len(resolved.weights) == len(GROUPS[scope])


def test_gramians_equal_the_joint_gradient() -> None:
    forget, retain = gradients(2), gradients(3)
    joint = compute_gramians(forget, retain, "global")["global"]
    names = list(forget)
    forget_P, retain_P = flat(forget, names), flat(retain, names)
    assert joint == pytest.approx(
        (float(forget_P @ forget_P), float(forget_P @ retain_P), float(retain_P @ retain_P))
    )
    layers = compute_gramians(forget, retain, "layer", layers=LAYERS)
    assert list(layers) == ["layer.5", "layer.6"]


def test_accumulation_does_not_lose_the_sign_in_half_precision() -> None:
    # In bfloat16 the sum of these products stalls at 256; the true inner product is slightly negative.
    forget = {"w": torch.ones(4002, dtype=torch.bfloat16)}
    retain = {"w": torch.cat([torch.ones(2000), -torch.ones(2002)]).to(torch.bfloat16)}
    assert compute_gramians(forget, retain, "tensor")["w"] == Gramian(4002.0, -2.0, 4002.0)


def test_chunks_change_nothing(monkeypatch) -> None:
    forget, retain = gradients(4), gradients(5)
    whole = compute_gramians(forget, retain, "tensor")
    monkeypatch.setattr(gramian, "_CHUNK_ELEMENTS", 3)
    for name, parts in compute_gramians(forget, retain, "tensor").items():
        assert parts == pytest.approx(whole[name], rel=1e-13)


def test_reduce_sums_over_shards() -> None:
    forget, retain = gradients(6), gradients(7)
    whole = compute_gramians(forget, retain, "global")["global"]
    shards = [
        (
            {n: t.reshape(-1)[part] for n, t in forget.items()},
            {n: t.reshape(-1)[part] for n, t in retain.items()},
        )
        for part in (slice(0, 3), slice(3, None))
    ]
    tables: list[torch.Tensor] = []
    for shard in shards:
        compute_gramians(*shard, "tensor", reduce=lambda table: tables.append(table) or table)
    reduced = compute_gramians(*shards[0], "global", reduce=lambda table: table + tables[1])["global"]
    assert tables[0].shape == (3, 3)
    assert reduced == pytest.approx(whole)


def test_first_step_has_no_retain_gradient_and_follows_the_forget_gradient() -> None:
    forget = gradients(0)
    zero = {name: torch.zeros_like(value) for name, value in forget.items()}
    resolved = resolve_conflict(forget, zero)
    assert resolved.conflict_share == 0.0
    assert set(resolved.cosines.values()) == {None}
    assert all(torch.equal(resolved.gradients[name], forget[name]) for name in forget)


def test_a_function_serves_as_rule() -> None:
    forget, retain = gradients(0), gradients(1)
    resolved = resolve_conflict(forget, retain, rule=lambda products: CombinationWeights(0.0, 2.0))
    assert all(torch.equal(resolved.gradients[name], 2 * retain[name]) for name in retain)


def test_inputs_are_not_changed_and_results_carry_no_graph() -> None:
    forget, retain = gradients(0), gradients(1)
    copies = {name: value.clone() for name, value in forget.items()}
    for value in forget.values():
        value.requires_grad_(True)
    resolved = resolve_conflict(forget, retain)
    assert all(torch.equal(forget[name], copies[name]) for name in forget)
    assert not any(value.requires_grad for value in resolved.gradients.values())


def test_denormal_retain_gradient_stays_finite() -> None:
    forget = {"w": torch.tensor([1.0, 1.0])}
    retain = {"w": torch.tensor([-1e-44, 0.0])}
    resolved = resolve_conflict(forget, retain)
    torch.testing.assert_close(resolved.gradients["w"], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradients_name_the_tensor(bad: float) -> None:
    forget, retain = gradients(0), gradients(1)
    retain["blocks.6.up"][2] = bad
    with pytest.raises(NumericalError, match=r"blocks\.6\.up"):
        resolve_conflict(forget, retain)


def test_bad_arguments_are_named() -> None:
    forget, retain = gradients(0), gradients(1)
    with pytest.raises(UsageError, match="tensor, layer, global"):
        resolve_conflict(forget, retain, scope="block")
    with pytest.raises(UsageError, match=r"blocks\.6\.down"):
        resolve_conflict(forget, retain, scope="layer", layers={"blocks.5.down": 5})
    with pytest.raises(UsageError, match="shapes"):
        resolve_conflict(forget, {name: value[:1] for name, value in retain.items()})
    with pytest.raises(UsageError, match="in one only"):
        resolve_conflict(forget, {"blocks.5.down": retain["blocks.5.down"]})
    with pytest.raises(UsageError, match="no gradients"):
        resolve_conflict({}, {})
