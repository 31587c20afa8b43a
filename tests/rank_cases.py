"""Runs whose trajectory must not depend on the number of ranks, and how to compare them."""

from __future__ import annotations

import pytest

SCOPES = ("tensor", "layer", "global")


def case(scope: str, *, shard: str = "never", **changes) -> dict:
    return {
        "objective": {"conflict": {"scope": scope}, **changes.pop("objective", {})},
        "runtime": {"shard": shard, "cache_batch_tokens": 64},
        # Adam divides by the size of the gradient, so rounding a tiny one moves a weight by up to the
        # learning rate; the bound of 1e-6 holds for rates of this size.
        "train": {"learning_rate": 1e-3, **changes.pop("train", {})},
        **changes,
    }


CHEAP = [
    case("tensor", objective={"negatives": 3}),
    case("global", shard="window"),
    case("layer", streamed=True),
]
# Optimizers that step by a sign are left out: a gradient that is zero up to rounding has no sign.
MATRIX = [
    *(case(scope, shard=shard) for scope in SCOPES for shard in ("never", "window")),
    case("tensor", objective={"negatives": 3, "offset": {"directions": 4, "granularity": "batch"}}),
    case("tensor", objective={"offset": {"directions": 4, "granularity": "token"}}),
    case("layer", shard="window", train={"batch_size": 3}),
    case("tensor", train={"maximum_retain_drift": 1e-5}),
    case("tensor", shard="window", train={"maximum_retain_drift": 1e-5}),
    *(case(scope, streamed=True) for scope in SCOPES),
    case("tensor", streamed=True, objective={"negatives": 3}),
    case("tensor", method="rmu"),
    case("tensor", method="circuit_breakers"),
]


def placed(cases: list[dict], model: str) -> list[dict]:
    """Return `cases`; those that are read block by block read the model folder `model`."""
    return [entry | {"streamed": model} if entry.get("streamed") else entry for entry in cases]


def assert_same(case: dict, single: dict, several: dict) -> None:
    # The gradient of an unsquared distance is a unit vector, and that of a state which has hardly moved is
    # a unit vector of rounding errors: circuit breakers amplify what all methods have.
    bound = 5e-5 if case.get("method") == "circuit_breakers" else 1e-6
    for name, tensor in single["changed"].items():
        assert (tensor - several["changed"][name]).abs().max() < bound, (case, name)
    assert single["status"] == several["status"]
    assert len(single["history"]) == len(several["history"])
    for one, other in zip(single["history"], several["history"], strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=2e-5)
    assert single["facts"]["trained"] == several["facts"]["trained"]
    assert single["facts"]["flops"] == several["facts"]["flops"]


def assert_moved(result: dict) -> None:
    assert min(result["moved"].values()) > 1e-3, "nothing moved, so nothing was proved"
