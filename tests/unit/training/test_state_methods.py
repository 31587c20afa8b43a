"""RMU and circuit breakers through the same session, loop and conflict rules as FALCON."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from falcon_unlearn.conflict.rules import RULES
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import ignore_events
from falcon_unlearn.objectives.rmu import RmuObjective
from falcon_unlearn.training.session import probe_window, step_plan
from tiny_runs import (
    LAYER,
    merge,
    parameters_of,
    run_session,
    tiny_corpus,
    tiny_data,
    tiny_engine,
    tiny_recipe,
)

TRAINED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]
METHODS = {
    "rmu": {"rmu": {"coefficient": 40.0}},
    "adaptive rmu": {"rmu": {"coefficient": 3.0, "adaptive": True}},
    "circuit_breakers": {},
}
every_method = pytest.mark.parametrize("method", METHODS)


def recipe(method, *, multiplier=None, **changes):
    if multiplier is None:
        multiplier = 1.0 if method == "circuit_breakers" else 3.0
    objective = METHODS[method] | {"retain_multiplier": multiplier, "offset": {"exclude_sinks": False}}
    return tiny_recipe(**merge({"method": method.split()[-1], "objective": objective}, changes))


def states_of(engine, corpora):
    """Return the states leaving block LAYER of each training sample, by the library's own forward pass."""
    examples = [example for corpus in corpora for example in corpus.training]
    with torch.no_grad():
        outputs = [engine.model(torch.tensor([e.input_ids]), output_hidden_states=True) for e in examples]
    return [output.hidden_states[LAYER + 1] for output in outputs]


def trained_states(folder, settings, data):
    """Return forget and retain states before and after a run."""
    engine = tiny_engine()
    before = [torch.cat(states_of(engine, part), 1)[0].double() for part in (data.forget, data.retain)]
    session = run_session(folder, settings, data, engine=engine)
    after = [torch.cat(states_of(engine, part), 1)[0].double() for part in (data.forget, data.retain)]
    return session, before, after


def cosine(first, second):
    return torch.nn.functional.cosine_similarity(first, second, dim=-1)


# --- what the methods are for -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rmu", "adaptive rmu"])
def test_rmu_moves_forget_states_along_u_and_the_retain_term_holds_the_others(method, tmp_path):
    data, distances = tiny_data(), {}
    for multiplier in (0.0, 100.0):
        settings = recipe(method, multiplier=multiplier, train={"steps": 60, "learning_rate": 1e-2})
        _, (forget, retain), (new_forget, new_retain) = trained_states(tmp_path, settings, data)
        unit = RmuObjective(settings.objective.rmu, seed=settings.seed).direction(0, 32).double()
        change = new_forget - forget
        if multiplier == 0.0:
            assert cosine(change.mean(0), unit) > 0.9
            assert (new_forget @ unit).mean() > (forget @ unit).mean() + 0.5 * forget.norm(dim=-1).mean()
        assert (change @ unit).mean() > 0
        distances[multiplier] = float((new_retain - retain).square().mean())
    assert distances[100.0] < 0.2 * distances[0.0]


def test_circuit_breakers_turn_forget_states_away_and_hold_the_others(tmp_path):
    """With the catalogue's multiplier of 1; the random texts of both sides are no easier to tell apart."""
    data, forgotten, kept = tiny_data(), {}, {}
    for multiplier in (0.0, 1.0):
        settings = recipe(
            "circuit_breakers", multiplier=multiplier, train={"steps": 60, "learning_rate": 3e-3}
        )
        session, (forget, retain), (new_forget, new_retain) = trained_states(tmp_path, settings, data)
        forgotten[multiplier] = float(torch.relu(cosine(forget, new_forget)).mean())
        kept[multiplier] = float(cosine(retain, new_retain).mean())
        history = session.result.history
        assert history[0]["retain_loss"] == 0 and history[0]["forget_loss"] == pytest.approx(10, rel=1e-3)
    assert forgotten[1.0] < 0.8 < 0.95 < kept[1.0]
    assert kept[0.0] < 0.8, "without the retain term both sides turn"


def test_rmu_traces_the_same_path_as_a_plain_loop_over_two_whole_models(tmp_path):
    settings, data = recipe("rmu", train={"steps": 8}), tiny_data(2)
    assert settings.objective.conflict.rule == "sum"
    engine = tiny_engine()
    plain, plan = tiny_engine(), step_plan(data, settings)
    frozen = {
        id(example): state
        for corpora in (data.forget, data.retain)
        for corpus in corpora
        for example, state in zip(corpus.training, states_of(plain, [corpus]), strict=True)
    }
    parameters = [p for name, p in plain.model.named_parameters() if name in TRAINED]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    rmu = RmuObjective(settings.objective.rmu, seed=settings.seed)

    def error(examples, target=None):
        total, count = 0.0, 0
        for example in examples:
            ids = torch.tensor([example.input_ids])
            states = plain.model(ids, output_hidden_states=True).hidden_states[LAYER + 1]
            goal = frozen[id(example)] if target is None else target
            total = total + (states - goal).square().sum()
            count += states.numel()
        return total / count

    for step in range(8):
        batch = plan.batch(step)
        target = 40.0 * rmu.direction(batch.domain, 32)
        loss = error([data.forget[batch.domain].training[i] for i in batch.forget], target)
        loss = loss + 3.0 * error([data.retain[c].training[i] for c, i in batch.retain])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    session = run_session(tmp_path, settings, data, engine=engine)
    for name, parameter in zip(TRAINED, parameters, strict=True):
        assert (session.changed[name] - parameter.detach()).abs().max() < 1e-5
        assert (session.changed[name] - session.original[name]).abs().max() > 1e-2


# --- the loop -----------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("rule", RULES)
def test_every_conflict_rule_works_and_repeats_itself(method, rule, scope, tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    conflict = {"rule": rule, "scope": scope}
    session = run_session(tmp_path, recipe(method, objective={"conflict": conflict}), engine=engine)
    result = session.result
    assert (result.method, result.status, result.steps_done) == (method.split()[-1], "completed", 6)
    for row in result.history:
        assert all(math.isfinite(value) for value in row.values()) and 0 <= row["conflict_share"] <= 1
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in TRAINED), name
    again = run_session(tmp_path, recipe(method, objective={"conflict": conflict}))
    assert all(torch.equal(again.changed[name], session.changed[name]) for name in TRAINED)


@every_method
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_first_step_has_a_forget_gradient_and_no_retain_gradient(method, compute_dtype, tmp_path):
    """Retain states have not moved, and what rounding left of their gradient is silenced."""
    settings = recipe(method, train={"compute_dtype": compute_dtype})
    gramians = probe_window(tiny_engine(), tiny_data(), settings, LAYER, tmp_path, ignore_events)
    assert gramians[0].retain_retain == 0 and all(g.retain_retain > 0 for g in gramians[1:])
    assert all(g.forget_forget > 0 for g in gramians)
    # The offset of the first step of circuit breakers is a hundredth, its gradient is no more than that.
    assert gramians[0].forget_forget > 1e-5 * gramians[-1].forget_forget


@every_method
def test_the_budget_is_a_cosine_distance_whatever_the_retain_loss(method, tmp_path):
    train = {"steps": 8, "learning_rate": 1e-2}
    history = run_session(tmp_path, recipe(method, train=train)).result.history
    distances = [row["retain_cosine_distance"] for row in history]
    assert distances[0] < 1e-9 and distances[1] > 0
    outside = next(
        step for step in range(2, 8) if distances[step] > 1.01 * max(distances[:step]) and step > 2
    )
    budget = (max(distances[:outside]) + distances[outside]) / 2
    if method != "circuit_breakers":
        assert history[1]["retain_loss"] > budget, "the loss itself would have stopped the run at once"
    kept = run_session(tmp_path, recipe(method, train=train | {"maximum_retain_drift": budget}))
    assert kept.result.status == "stopped_on_budget"
    assert (kept.result.kept_step, kept.result.steps_done) == (outside - 1, outside + 1)
    # The schedule of circuit breakers depends on the planned steps, so the shorter run is the same run cut.
    assert [row["retain_cosine_distance"] for row in kept.result.history] == distances[:outside]
    if method != "circuit_breakers":
        shorter = run_session(tmp_path, recipe(method, train=train | {"steps": outside - 1}))
        assert all(torch.equal(kept.changed[name], shorter.changed[name]) for name in TRAINED)


@every_method
def test_the_budget_holds_for_the_states_that_are_kept(method, tmp_path):
    """One retain batch, measured with the library's own forward pass."""
    data = replace(tiny_data(), retain=(tiny_corpus("r", 4, (12, 12), 100),))
    budget = 2e-3
    # Held by their full weight, circuit breakers would not leave the budget in so few steps.
    multiplier = 0.05 if method == "circuit_breakers" else None
    train = {"steps": 12, "learning_rate": 1e-2, "maximum_retain_drift": budget}
    settings = recipe(method, multiplier=multiplier, train=train)
    session, (_, retain), (_, new_retain) = trained_states(tmp_path, settings, data)
    assert session.result.status == "stopped_on_budget" and session.result.kept_step >= 1
    assert float(1 - cosine(retain, new_retain).mean()) <= budget * 1.001


@every_method
def test_the_forget_loss_counts_answers_only_where_asked(method, tmp_path):
    data = tiny_data(prompt_tokens=5)
    everything = run_session(tmp_path, recipe(method), data)
    answers = run_session(tmp_path, recipe(method, data={"loss_on": "answer"}), data)
    assert not all(torch.equal(everything.changed[name], answers.changed[name]) for name in TRAINED)


def test_the_schedule_of_circuit_breakers_follows_the_steps_of_the_recipe(tmp_path):
    for steps in (4, 8):
        history = run_session(tmp_path, recipe("circuit_breakers", train={"steps": steps})).result.history
        # The first batch has barely turned after one step, so the forget loss shows the weight itself.
        assert history[1]["forget_loss"] == pytest.approx(10 * (1 - 1 / (2 * steps)), rel=0.02)


def test_a_method_on_outputs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="npo acts on outputs"):
        run_session(tmp_path, tiny_recipe(method="npo"))
