"""What holds for every method on outputs: gradients, masks, order, extremes, what it needs, conflicts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.conflict import RULES, resolve_conflict
from falcon_unlearn.errors import UsageError
from falcon_unlearn.objectives.outputs.build import build_output_objective
from falcon_unlearn.objectives.outputs.grad_ascent import GradAscent
from falcon_unlearn.objectives.outputs.grad_diff import GradDiff
from falcon_unlearn.objectives.outputs.idk_dpo import IdkDpo
from falcon_unlearn.objectives.outputs.idk_nll import IdkNll
from falcon_unlearn.objectives.outputs.likelihood import mean_by_sequence, sum_by_sequence
from falcon_unlearn.objectives.outputs.npo import Npo
from falcon_unlearn.objectives.outputs.scrub import Scrub
from falcon_unlearn.objectives.outputs.simnpo import SimNpo
from falcon_unlearn.objectives.outputs.task_vector import TaskVector
from falcon_unlearn.objectives.outputs.undial import Undial

OUTPUT_METHODS = [name for name, method in METHODS.items() if method.acts_on == "outputs"]
FIELDS = {"log_probabilities": "reference_M", "distribution": "reference_logits_MV"}
HALVES = ["forget_loss", "retain_loss"]
every_method = pytest.mark.parametrize("method", OUTPUT_METHODS)
every_half = pytest.mark.parametrize("half", HALVES)
every_retain = pytest.mark.parametrize("retain", ["nll", "kl"])


def objective_of(method, **settings):
    return build_output_objective(method, ObjectiveSettings(**settings))


def uses(method, is_alternative):
    """Tell which sequences the forget loss of a method reads."""
    if method in ("idk_dpo", "altpo"):
        return torch.ones_like(is_alternative)
    return is_alternative if method == "idk_nll" else ~is_alternative


@every_method
@every_half
@every_retain
def test_gradients_agree_with_finite_differences(method, half, retain, mixed):
    logits, batch = mixed
    loss_of = getattr(objective_of(method, retain_loss=retain), half)
    assert torch.autograd.gradcheck(lambda z: loss_of(z, batch), (logits.requires_grad_(),))


@every_method
def test_a_gradient_reaches_the_sequences_that_the_method_reads_and_no_other(method, mixed):
    logits, batch = mixed
    logits.requires_grad_()
    objective_of(method).forget_loss(logits, batch).backward()
    read_M = uses(method, batch.is_alternative_B)[batch.owners_M]
    assert bool((logits.grad[read_M].abs().sum(1) > 0).all())
    assert not logits.grad[~read_M].any()


@every_method
def test_other_sequences_do_not_matter(method, mixed):
    logits, batch = mixed
    loss_of = objective_of(method).forget_loss
    other_M = ~uses(method, batch.is_alternative_B)[batch.owners_M]
    changed = replace(
        batch,
        reference_M=batch.reference_M - 5.0 * other_M,
        reference_logits_MV=batch.reference_logits_MV.flip(1).where(
            other_M[:, None], batch.reference_logits_MV
        ),
    )
    torch.testing.assert_close(
        loss_of(logits.flip(1).where(other_M[:, None], logits), changed), loss_of(logits, batch)
    )


@every_method
@every_half
def test_order_of_tokens_inside_a_batch_does_not_matter(method, half, mixed):
    logits, batch = mixed
    loss_of = getattr(objective_of(method), half)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    shuffled = replace(
        batch,
        labels_M=batch.labels_M[order],
        owners_M=batch.owners_M[order],
        reference_M=batch.reference_M[order],
        reference_logits_MV=batch.reference_logits_MV[order],
    )
    torch.testing.assert_close(loss_of(logits[order], shuffled), loss_of(logits, batch))


@every_method
@every_half
def test_order_of_sequences_does_not_matter_while_partners_keep_theirs(method, half, mixed):
    """The mixed batch is o a a o a o: pairs (0, 1), (3, 2), (5, 4); the new order takes pair 3, 1, 2."""
    logits, batch = mixed
    loss_of = getattr(objective_of(method), half)
    order_B = torch.tensor([4, 5, 0, 1, 2, 3])
    new_place = torch.empty_like(order_B).scatter(0, order_B, torch.arange(6))
    moved = replace(
        batch, owners_M=new_place[batch.owners_M], is_alternative_B=batch.is_alternative_B[order_B]
    )
    torch.testing.assert_close(loss_of(logits, moved), loss_of(logits, batch))


def test_dpo_pairs_by_order(make_batch):
    """Exchanging the two alternatives changes the pairs and hence the loss."""
    logits, batch = make_batch((1, 1, 1, 1), "oaao")
    # log(p / q) of the answers: originals 1 and 0, alternatives 3 and 0.
    reference = logits.log_softmax(-1).gather(1, batch.labels_M[:, None])[:, 0]
    batch = replace(batch, reference_M=reference - torch.tensor([1.0, 3.0, 0.0, 0.0]))
    exchanged = replace(batch, owners_M=torch.tensor([0, 2, 1, 3]))
    loss_of = IdkDpo(beta=1.0).forget_loss
    assert float(loss_of(logits, batch)) == pytest.approx(math.log1p(math.exp(-2)) + math.log(2))
    expected = math.log1p(math.exp(1)) + math.log1p(math.exp(-3))
    assert float(loss_of(logits, exchanged)) == pytest.approx(expected)


@every_method
@every_half
@every_retain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_give_finite_losses_and_gradients(method, half, retain, dtype, make_batch):
    logits, batch = make_batch((3, 1, 4, 2), "oaoa", dtype=dtype, scale=1.0)
    logits, frozen = 1e4 * logits.sign(), 1e4 * batch.reference_logits_MV.sign()
    reference = frozen.log_softmax(-1).gather(1, batch.labels_M[:, None])[:, 0]
    batch = replace(batch, reference_M=reference, reference_logits_MV=frozen)
    logits.requires_grad_()
    loss = getattr(objective_of(method, retain_loss=retain), half)(logits, batch)
    loss.backward()
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(logits.grad).all())


@every_method
@every_half
def test_half_precision_logits_are_computed_in_float32(method, half, mixed):
    logits, batch = mixed
    narrow = logits.bfloat16()
    loss_of = getattr(objective_of(method), half)
    loss = loss_of(narrow, batch)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(loss_of(narrow.double(), batch)), rel=1e-5)


@every_method
@pytest.mark.parametrize("bad", [-100, -1, 7])
@every_half
def test_labels_that_are_no_token_are_refused(method, bad, half, mixed):
    logits, batch = mixed
    labels = batch.labels_M.clone()
    labels[4] = bad
    with pytest.raises(ValueError, match=rf"labels_M must lie in 0 \.\. 6, got .*{bad}"):
        getattr(objective_of(method), half)(logits, replace(batch, labels_M=labels))


@every_method
def test_a_forget_loss_needs_what_the_catalogue_says_and_no_more(method, mixed, without):
    logits, batch = mixed
    needs = METHODS[method].needs
    loss_of = objective_of(method).forget_loss
    spared = without(batch, *(field for need, field in FIELDS.items() if need not in needs))
    torch.testing.assert_close(loss_of(logits, spared), loss_of(logits, batch))
    for need in needs - {"alternatives"}:
        with pytest.raises(ValueError, match=f"needs the frozen model's .* no {FIELDS[need]}$"):
            loss_of(logits, without(batch, FIELDS[need]))
    if "alternatives" in needs:
        kinds = torch.zeros_like(batch.is_alternative_B)
        with pytest.raises(ValueError, match="alternative"):
            loss_of(logits, replace(batch, is_alternative_B=kinds))
    else:
        kinds = torch.ones_like(batch.is_alternative_B)
        with pytest.raises(ValueError, match="needs original sequences"):
            loss_of(logits, replace(batch, is_alternative_B=kinds))


@every_method
def test_a_retain_loss_needs_the_frozen_logits_for_divergences_only(method, make_batch, without):
    logits, batch = make_batch()
    bare = without(batch, "reference_M", "reference_logits_MV")
    with pytest.raises(ValueError, match="no reference_logits_MV"):
        objective_of(method, retain_loss="kl").retain_loss(logits, bare)
    if method != "scrub":
        assert float(objective_of(method).retain_loss(logits, bare)) > 0


@every_method
def test_batches_that_do_not_fit_are_refused(method, mixed):
    logits, batch = mixed
    loss_of = objective_of(method).forget_loss
    with pytest.raises(ValueError, match="labels x vocabulary"):
        loss_of(logits[1:], batch)
    with pytest.raises(ValueError, match="owners_M must lie in"):
        loss_of(logits, replace(batch, owners_M=batch.owners_M + 1))
    with pytest.raises(ValueError, match="no label"):
        loss_of(logits[:0], replace(batch, labels_M=batch.labels_M[:0], owners_M=batch.owners_M[:0]))
    needs = METHODS[method].needs
    if "log_probabilities" in needs:
        with pytest.raises(ValueError, match="one number per label"):
            loss_of(logits, replace(batch, reference_M=batch.reference_M[1:]))
    if "distribution" in needs:
        with pytest.raises(ValueError, match="shape of the logits"):
            loss_of(logits, replace(batch, reference_logits_MV=batch.reference_logits_MV[:, :1]))


@every_method
def test_a_sequence_without_labels_changes_nothing(method, make_batch):
    logits, batch = make_batch((3, 2), "oa" if "alternatives" in METHODS[method].needs else "oo")
    empty = replace(
        batch, num_sequences=3, is_alternative_B=torch.cat([batch.is_alternative_B, torch.tensor([False])])
    )
    loss_of = objective_of(method).forget_loss
    if method in ("idk_dpo", "altpo"):
        with pytest.raises(ValueError, match="2 originals and 1 alternatives"):
            loss_of(logits, empty)
    else:
        torch.testing.assert_close(loss_of(logits, empty), loss_of(logits, batch))


@every_method
@pytest.mark.parametrize("rule", sorted(RULES))
def test_gradients_of_both_losses_can_be_combined(method, rule, mixed, make_batch):
    """Two weight matrices produce the logits; the combination must follow the rule's own promise."""
    _, forget_batch = mixed
    _, retain_batch = make_batch(seed=9)
    chance = torch.Generator().manual_seed(3)
    first = torch.randn(4, 5, generator=chance, dtype=torch.float64, requires_grad=True)
    second = torch.randn(5, 7, generator=chance, dtype=torch.float64, requires_grad=True)
    objective = objective_of(method)

    def gradients(loss_of, batch):
        inputs = torch.randn(len(batch.labels_M), 4, generator=chance, dtype=torch.float64)
        loss = loss_of((inputs @ first).tanh() @ second, batch)
        found = torch.autograd.grad(loss, (first, second))
        return dict(zip(("first", "second"), found, strict=True))

    forget = gradients(objective.forget_loss, forget_batch)
    retain = gradients(objective.retain_loss, retain_batch)
    # The second tensor is made to conflict, so that every rule is taken both ways.
    forget["second"] = forget["second"] - 2 * (forget["second"] * retain["second"]).sum().clamp_min(0) * (
        retain["second"] / retain["second"].square().sum()
    )
    combined = resolve_conflict(forget, retain, rule=rule).gradients
    for name, direction in combined.items():
        assert direction.norm() > 0
        if rule == "sum":
            torch.testing.assert_close(direction, forget[name] + retain[name])
        elif rule in ("pcgrad", "mgda"):
            for wanted in (forget[name], retain[name]):
                assert (direction * wanted).sum() > -1e-9 * direction.norm() * wanted.norm()
        else:
            # The retain gradient keeps its full effect: the forget gradient takes nothing from it.
            gain = (direction * retain[name]).sum() / retain[name].square().sum()
            assert gain >= 1 - 1e-9


WITH_SETTINGS = {
    "grad_ascent": ({}, GradAscent(retain="kl")),
    "grad_diff": ({}, GradDiff(retain="kl")),
    "npo": ({"npo": {"beta": 1.5}}, Npo(beta=1.5, retain="kl")),
    "simnpo": ({"simnpo": {"beta": 1.5, "margin": 0.5}}, SimNpo(beta=1.5, margin=0.5, retain="kl")),
    "idk_nll": ({}, IdkNll(retain="kl")),
    "idk_dpo": ({"preference": {"beta": 1.5}}, IdkDpo(beta=1.5, retain="kl")),
    "altpo": ({"preference": {"beta": 1.5}}, IdkDpo(beta=1.5, retain="kl")),
    "scrub": (
        {"scrub": {"divergence_weight": 3.0, "likelihood_weight": 0.5, "maximising_share": 0.9}},
        Scrub(divergence_weight=3.0, likelihood_weight=0.5, maximising_share=0.9),
    ),
    "undial": ({"undial": {"beta": 1.5}}, Undial(beta=1.5, retain="kl")),
    "task_vector": ({}, TaskVector(retain="kl")),
}


@every_method
def test_settings_reach_the_objective(method):
    changed, expected = WITH_SETTINGS[method]
    assert objective_of(method, retain_loss="kl", **changed) == expected


@every_method
def test_defaults_are_those_of_the_settings(method):
    default = objective_of(method)
    assert default == type(default)()


@every_method
def test_all_methods_but_scrub_use_both_losses_in_every_step(method):
    turns = {objective_of(method).turn(step, 10) for step in range(10)}
    assert turns == ({"retain", "forget"} if method == "scrub" else {"both"})


@every_method
@every_half
def test_the_frozen_side_gets_no_gradient(method, half, mixed):
    logits, batch = mixed
    frozen = [batch.reference_M.clone().requires_grad_(), batch.reference_logits_MV.clone().requires_grad_()]
    traced = replace(batch, reference_M=frozen[0], reference_logits_MV=frozen[1])
    loss_of = getattr(objective_of(method, retain_loss="kl"), half)
    loss_of(logits.requires_grad_(), traced).backward()
    assert logits.grad is not None
    assert all(values.grad is None for values in frozen)


def test_sums_and_means_of_sequences_are_zero_where_there_are_no_labels(mixed):
    _, batch = mixed
    batch = replace(batch, owners_M=torch.tensor([3, 1, 3]), num_sequences=5)
    values = torch.tensor([1.0, 2.0, 5.0])
    assert sum_by_sequence(values, batch).tolist() == [0, 2, 0, 6, 0]
    assert mean_by_sequence(values, batch).tolist() == [0, 2, 0, 3, 0]


@pytest.mark.parametrize(
    "method, reason", [("falcon", "hidden states"), ("rmu", "hidden states"), ("x", "not exist")]
)
def test_methods_that_are_not_on_outputs_are_refused(method, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        objective_of(method)
    assert all(name in str(caught.value.hint) for name in OUTPUT_METHODS)
