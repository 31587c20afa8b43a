from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from falcon_unlearn.config.objective import ConflictSettings
from falcon_unlearn.events import TrainingStepped
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.training.batches import stack_rows
from falcon_unlearn.training.diagnostics import state_diagnostics
from falcon_unlearn.training.loop import combine, silence_rounding_noise
from falcon_unlearn.training.session import unlearn_window
from tiny_runs import LAYER, parameters_of, run_session, tiny_corpus, tiny_data, tiny_engine, tiny_recipe

TRAINED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]


def train(folder, **changes):
    return run_session(folder, tiny_recipe(train=changes))


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# --- utility budget ---------------------------------------------------------------------------------------


def new_maxima(losses):
    """Return every step whose loss exceeds all before it, with a budget that only this step breaks."""
    return [
        (step, (max(losses[:step]) + losses[step]) / 2)
        for step in range(2, len(losses))
        if losses[step] > 1.01 * max(losses[:step])
    ]


def test_the_budget_rolls_back_to_the_last_parameters_inside_it(tmp_path):
    losses = [row["retain_loss"] for row in train(tmp_path, steps=8).result.history]
    assert losses[0] < 1e-9, "nothing has moved before the first step"
    cases = new_maxima(losses)
    assert len(cases) >= 2
    for outside, budget in (cases[0], cases[-1]):
        kept = train(tmp_path, steps=8, maximum_retain_drift=budget)
        assert kept.result.status == "stopped_on_budget"
        assert kept.result.kept_step == outside - 1
        assert kept.result.steps_done == outside + 1
        # The loss of step s is measured before its update: s updates lead to the parameters it belongs to.
        assert equal(kept.changed, train(tmp_path, steps=outside - 1).changed)
        assert [row["retain_loss"] for row in kept.result.history] == losses[:outside]


def test_the_parameters_after_the_last_step_are_checked_too(tmp_path):
    # A retain set of one batch, so that the last step's batch tells what one step more would have seen.
    data = replace(tiny_data(), retain=(tiny_corpus("r", 4, (12, 12), 100),))
    losses = [
        row["retain_loss"]
        for row in run_session(tmp_path, tiny_recipe(train={"steps": 8}), data).result.history
    ]
    outside, budget = new_maxima(losses)[0]
    limited = tiny_recipe(train={"steps": outside, "maximum_retain_drift": budget})
    kept = run_session(tmp_path, limited, data)
    assert kept.result.status == "stopped_on_budget"
    assert (kept.result.kept_step, kept.result.steps_done) == (outside - 1, outside)
    assert len(kept.result.history) == outside
    shorter = run_session(tmp_path, tiny_recipe(train={"steps": outside - 1}), data)
    assert equal(kept.changed, shorter.changed)


def test_a_generous_budget_changes_nothing(tmp_path):
    free, kept = train(tmp_path), train(tmp_path, maximum_retain_drift=2.0)
    assert kept.result.status == "completed" and kept.result.kept_step == kept.result.steps_done == 6
    assert equal(free.changed, kept.changed)


# --- optimizers, rates, precision -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", [0.25, 0.5 * 5 / 6, 0.75 * 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_the_rate_warms_up_and_falls_as_scheduled(schedule, shares, tmp_path):
    history = train(tmp_path, warmup_steps=4, learning_rate=1e-3, schedule=schedule).result.history
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-3 * share for share in shares])


def test_the_scheduled_rate_is_the_one_that_is_applied(tmp_path):
    """Sign steps move every weight by the rate, so the distance travelled is the sum of the rates."""
    session = train(tmp_path, optimizer="sign_momentum", schedule="linear", learning_rate=1e-3, steps=2)
    moved = torch.cat([(session.changed[n] - session.original[n]).abs().flatten() for n in TRAINED])
    distances = torch.tensor([1e-3 + 0.5e-3, 1e-3 - 0.5e-3])
    assert ((moved[:, None] - distances).abs().min(1).values < 1e-6).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "sign_momentum", "sophia_reference"])
def test_every_optimizer_runs_and_moves_only_the_trained_tensors(optimizer, tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    session = run_session(tmp_path, tiny_recipe(train={"optimizer": optimizer, "steps": 3}), engine=engine)
    assert list(session.changed) == TRAINED
    for name, p in engine.model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in TRAINED), name


@pytest.mark.parametrize("optimizer", ["sign_momentum", "sophia_reference"])
def test_sign_steps_have_the_size_of_the_rate(optimizer, tmp_path):
    rate = 1e-3
    session = run_session(
        tmp_path, tiny_recipe(train={"optimizer": optimizer, "steps": 1, "learning_rate": rate})
    )
    for name in TRAINED:
        moved = (session.changed[name] - session.original[name]).abs()
        assert moved.max() <= rate * 1.001
        if optimizer == "sign_momentum":
            assert moved.min() >= rate * 0.99, "every weight moves by the rate"


def test_plain_gradient_descent_takes_the_combined_gradient(tmp_path):
    """At step 0 the retain gradient is zero, so one SGD step is the forget gradient itself."""
    session = run_session(tmp_path, tiny_recipe(train={"optimizer": "sgd", "steps": 1, "learning_rate": 0.5}))
    half = run_session(tmp_path, tiny_recipe(train={"optimizer": "sgd", "steps": 1, "learning_rate": 0.25}))
    for name in TRAINED:
        full_step = session.changed[name] - session.original[name]
        half_step = half.changed[name] - half.original[name]
        assert full_step.abs().max() > 1e-4
        assert (full_step - 2 * half_step).abs().max() < 1e-6


def test_float32_masters_keep_steps_that_bfloat16_would_lose(tmp_path):
    rate, steps = 1e-5, 4
    session = train(tmp_path, compute_dtype="bfloat16", learning_rate=rate, steps=steps)
    assert session.result.compute_dtype == "bfloat16"
    for name in TRAINED:
        old, new = session.original[name], session.changed[name]
        moved = (new - old).abs()
        assert float(moved.median()) > 0.3 * rate and float(moved.max()) < 1.5 * rate * steps
        # In bfloat16 itself nearly every weight would have stayed.
        assert (new.bfloat16() == old.bfloat16()).float().mean() > 0.9


def test_bfloat16_compute_goes_the_way_of_float32(tmp_path):
    single, half = (train(tmp_path, compute_dtype=dtype) for dtype in ("float32", "bfloat16"))
    for name in TRAINED:
        moves = [(s.changed[name] - s.original[name]).flatten() for s in (single, half)]
        assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.9


# --- repeatability ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(tmp_path):
    first, again = (run_session(tmp_path, tiny_recipe(seed=5)) for _ in range(2))
    assert equal(first.changed, again.changed)
    rows = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in s.result.history] for s in (first, again)
    ]
    assert rows[0] == rows[1]
    assert not equal(first.changed, run_session(tmp_path, tiny_recipe(seed=6)).changed)


def test_the_global_random_state_plays_no_part(tmp_path):
    torch.manual_seed(1)
    first = run_session(tmp_path)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert equal(first.changed, run_session(tmp_path).changed)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_the_cache_pass_change_nothing_beyond_rounding(tmp_path):
    wide, narrow = (
        run_session(tmp_path, tiny_recipe(runtime={"cache_batch_tokens": tokens})) for tokens in (4096, 64)
    )
    for name in TRAINED:
        assert (wide.changed[name] - narrow.changed[name]).abs().max() < 1e-6
        assert (wide.changed[name] - wide.original[name]).abs().max() > 1e-3


# --- diagnostics ------------------------------------------------------------------------------------------

KEYS = {
    "step",
    "domain",
    "forget_loss",
    "retain_loss",
    "conflict_share",
    "forget_norm",
    "forget_norm_frozen",
    "retain_norm",
    "sink_norm",
    "retain_drift",
    "retain_cosine_distance",
    "learning_rate",
    "seconds",
    *(f"cosine:{name}" for name in TRAINED),
}


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_every_step_reports_every_number(compute_dtype, tmp_path):
    events = []
    engine = tiny_engine()
    recipe = tiny_recipe(train={"compute_dtype": compute_dtype})
    session = unlearn_window(engine, tiny_data(2), recipe, LAYER, tmp_path, events.append)
    history = session.result.history
    assert [row["step"] for row in history] == list(range(6))
    assert [row["domain"] for row in history] == [0, 1, 0, 1, 0, 1]
    for row in history:
        assert set(row) == KEYS
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["conflict_share"] <= 1
        assert all(-1 <= row[f"cosine:{name}"] <= 1 for name in TRAINED)
    assert history[0]["conflict_share"] == 0, "before the first update there is no retain gradient"
    stepped = [event for event in events if isinstance(event, TrainingStepped)]
    assert [event.metrics for event in stepped] == history
    assert [(event.step, event.total) for event in stepped] == [(i + 1, 6) for i in range(6)]


def test_the_forget_loss_falls_and_the_retain_multiplier_holds_the_drift_down(tmp_path):
    drifts = {}
    for multiplier in (0.0, 30.0):
        recipe = tiny_recipe(
            objective={"retain_multiplier": multiplier}, train={"steps": 30, "learning_rate": 2e-2}
        )
        history = run_session(tmp_path, recipe).result.history
        assert history[-1]["forget_loss"] < history[0]["forget_loss"] - 0.1
        drifts[multiplier] = history[-1]["retain_loss"]
    assert drifts[30.0] < 0.5 * drifts[0.0]


def test_state_diagnostics_by_token_class():
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(2, 4, 3, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    sinks = torch.zeros_like(mask)
    sinks[:, 0] = True
    forget = StateBatch(old, mask, mask & ~sinks, sinks, (0, 1), 0, 3)
    retain = StateBatch(old.flip(0), mask, mask, sinks, (0, 1), -1, 3)
    measured = state_diagnostics(new, forget, new, retain)
    norms = np.linalg.norm(new.double().numpy(), axis=-1)
    counted, ordinary, sink = (mask & ~sinks).numpy(), (mask & ~sinks).numpy(), sinks.numpy()
    frozen = np.linalg.norm(old.flip(0).double().numpy(), axis=-1)
    change = np.linalg.norm((new - old.flip(0)).double().numpy(), axis=-1)
    products = (new.double() * old.flip(0).double()).sum(-1).numpy()
    distance = 1 - products / norms / frozen
    assert measured == pytest.approx(
        {
            "forget_norm": norms[counted].mean(),
            "forget_norm_frozen": np.linalg.norm(old.double().numpy(), axis=-1)[counted].mean(),
            "retain_norm": norms[ordinary].mean(),
            "sink_norm": norms[sink].mean(),
            "retain_drift": (change / frozen)[mask.numpy()].mean(),
            "retain_cosine_distance": distance[mask.numpy()].mean(),
        },
        rel=1e-5,
    )


# --- small parts ------------------------------------------------------------------------------------------


def test_stack_rows_pads_on_the_right():
    stacked, mask = stack_rows([torch.ones(2, 3), torch.full((4, 3), 2.0)])
    assert stacked.shape == (2, 4, 3) and mask.tolist() == [[True, True, False, False], [True] * 4]
    assert stacked[0, 2:].abs().sum() == 0 and stacked[1].unique().tolist() == [2.0]
    flags, _ = stack_rows([torch.tensor([True]), torch.tensor([True, True])])
    assert flags.dtype == torch.bool and flags.tolist() == [[True, False], [True, True]]


def test_rounding_noise_in_the_retain_gradient_is_silenced_by_its_relative_size():
    forget = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.zeros(4)}
    retain = {"a": torch.full((4,), 0.9e-5), "b": torch.full((4,), -1.1e-5), "c": torch.full((4,), 1e-9)}
    silenced = silence_rounding_noise(forget, retain)
    assert not silenced["a"].any()
    assert torch.equal(silenced["b"], retain["b"]) and torch.equal(silenced["c"], retain["c"])


def test_at_the_first_step_all_of_the_retain_gradient_is_noise_but_a_nan_stays_visible():
    forget = {"a": torch.ones(4), "b": torch.ones(4)}
    retain = {"a": torch.full((4,), 7.0), "b": torch.full((4,), float("nan"))}
    silenced = silence_rounding_noise(forget, retain, math.inf)
    assert not silenced["a"].any() and silenced["b"].isnan().all()


GRADIENTS = {
    "x": (torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])),  # conflict
    "y": (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.5])),  # none
    "z": (torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0])),  # orthogonal
}
LAYERS = {"x": 0, "y": 0, "z": 1}


@pytest.mark.parametrize(
    ("scope", "groups"), [("tensor", ["x", "y", "z"]), ("layer", ["xy", "z"]), ("global", ["xyz"])]
)
def test_conflict_is_decided_and_resolved_per_scope(scope, groups):
    forget, retain = ({name: pair[i] for name, pair in GRADIENTS.items()} for i in (0, 1))
    settings = ConflictSettings(scope=scope, conflict_weights=(0.8, 1.2), aligned_weights=(0.1, 1.9))
    found = combine(forget, retain, settings, LAYERS)
    num_conflicts = 0
    for group in groups:
        u = np.concatenate([forget[name].double().numpy() for name in group])
        q = np.concatenate([retain[name].double().numpy() for name in group])
        conflict = u @ q < 0
        num_conflicts += conflict
        expected = 0.8 * (u - (u @ q) / (q @ q) * q) + 1.2 * q if conflict else 0.1 * u + 1.9 * q
        assert np.concatenate([found.gradients[name].numpy() for name in group]) == pytest.approx(expected)
    assert found.conflict_share == pytest.approx(num_conflicts / len(groups))


def test_scopes_of_a_run_agree_where_they_must_and_differ_where_they_may(tmp_path):
    def run(scope, modules):
        recipe = tiny_recipe(
            objective={"conflict": {"scope": scope}, "retain_multiplier": 30.0},
            train={"modules": modules, "learning_rate": 1e-2},
        )
        return run_session(tmp_path, recipe)

    one = {scope: run(scope, ["mlp.down"]) for scope in ("tensor", "layer", "global")}
    assert equal(one["tensor"].changed, one["layer"].changed), "one matrix per layer: the same groups"
    assert not equal(one["tensor"].changed, one["global"].changed)
    assert {row["conflict_share"] for row in one["global"].result.history} <= {0.0, 1.0}
    two = {scope: run(scope, ["mlp.down", "mlp.up"]) for scope in ("tensor", "layer")}
    assert not equal(two["tensor"].changed, two["layer"].changed)
    assert any(0 < row["conflict_share"] < 1 for row in two["tensor"].result.history)
