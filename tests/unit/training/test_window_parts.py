"""Window steps in parts: whatever targets and negatives are drawn from, the run is that of whole steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from falcon_unlearn.errors import UsageError
from falcon_unlearn.training import session
from tiny_runs import merge, run_session, tiny_data, tiny_engine, tiny_recipe

CASES = {
    "falcon": {},
    "several negatives": {"objective": {"negatives": 3}},
    "a target per batch": {"objective": {"offset": {"granularity": "batch"}}},
    "a target per token": {"objective": {"offset": {"granularity": "token"}}},
    "reference mode": {"objective": {"offset": {"mode": "reference"}}},
    "rmu": {"method": "rmu", "objective": {"rmu": {"coefficient": 40.0}}},
    "circuit breakers": {"method": "circuit_breakers", "objective": {"retain_multiplier": 1.0}},
}
# Plain descent: Adam would blow differences of rounding up where gradients are tiny.
TRAIN = {"optimizer": "sgd", "learning_rate": 0.05, "steps": 4, "batch_size": 5}


def run(folder, case, **train):
    recipe = tiny_recipe(**merge(merge({"train": TRAIN}, CASES[case]), {"train": train}))
    return run_session(folder, recipe, tiny_data(2, (6, 24), prompt_tokens=3))


@pytest.mark.parametrize("maximum_tokens", [1, 60])
@pytest.mark.parametrize("case", CASES)
def test_steps_in_parts_equal_whole_steps(case, maximum_tokens, tmp_path):
    whole = run(tmp_path, case)
    parts = run(tmp_path, case, micro_batch_tokens=maximum_tokens)
    for name, value in whole.changed.items():
        change = float((value - whole.original[name]).abs().max())
        # An unsquared distance has a direction as gradient; where hardly anything moved, rounding decides it.
        share = 1e-2 if case == "circuit breakers" else 1e-4
        assert change > 0 and float((parts.changed[name] - value).abs().max()) <= share * change, name
    for row, other in zip(whole.result.history, parts.result.history, strict=True):
        for key in set(row) - {"seconds"}:
            near = 1e-2 if case == "circuit breakers" else 1e-3
            assert other[key] == pytest.approx(row[key], rel=near, abs=1e-4), key


def test_fewer_tokens_go_through_the_window_at_a_time(tmp_path):
    engine = tiny_engine()
    sizes = []
    forward = engine.forward

    def counted(states_BLD, position_ids_BL=None):
        if torch.is_grad_enabled():
            sizes.append(states_BLD.shape[0] * states_BLD.shape[1])
        return forward(states_BLD, position_ids_BL)

    engine.forward = counted
    recipe = tiny_recipe(train={**TRAIN, "micro_batch_tokens": 60})
    run_session(tmp_path, recipe, tiny_data(1, (6, 24)), engine=engine)
    assert sizes and max(sizes) <= 60


def test_several_processes_refuse_parts():
    recipe = tiny_recipe(train={"micro_batch_tokens": 60})
    with pytest.raises(UsageError, match="with 2 processes"):
        session._check_parts(recipe, SimpleNamespace(size=2))
    session._check_parts(recipe, SimpleNamespace(size=1))
