"""Relearning: masked knowledge comes back within steps, absent knowledge does not, the model is untouched."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from falcon_unlearn.audit.attacks.learners import LearnerSettings
from falcon_unlearn.audit.attacks.relearning import LADDER, Relearning, relearning_examples
from falcon_unlearn.audit.attacks.relearning_sweep import RelearningSweep
from falcon_unlearn.audit.base import AttackData
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.models.text import TextEncoder
from knowing import (
    FORGET,
    HELD_OUT,
    RETAIN,
    SEEN,
    TOKENIZER,
    accuracy,
    asked,
    context,
    filler,
    generated,
    knowing,
    masked,
    refusing,
    untouched,
)

FAST = LearnerSettings(relative_step=0.02, compute_dtype="float32")


def curve(model, threat, **settings):
    found = context(model)
    attack = Relearning(threat, batch_size=8, learner=FAST, **settings)
    with untouched(model):
        return {
            one.variant: (accuracy(found.subject, HELD_OUT, one), generated(found.subject, HELD_OUT, one))
            for one in attack.attack(found)
        }


@pytest.mark.parametrize("threat", ["in-domain", "rtt"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_hidden_facts_that_the_attacker_never_saw_come_back(threat, method):
    before = context(refusing()).subject
    assert generated(before) <= 0.2
    rungs = (8, 16)
    found = curve(refusing(), threat, methods=(method,), rungs=rungs)
    null = curve(knowing(knows=False), threat, methods=(method,), rungs=rungs)
    assert max(value for _, value in found.values()) >= 0.5
    assert max(value for value, _ in found.values()) >= 0.9
    # The null model knows nothing to bring back; 2 of 10 right free answers out of 40 are beyond luck.
    assert max(value for _, value in null.values()) <= 0.1


def test_benign_texts_undo_a_shallow_mask():
    def always_no(chance: random.Random):
        return [*asked(chance, FORGET, "no"), *asked(chance, RETAIN, "no")]

    shallow = masked(always_no, steps=20, rate=2e-3)
    subject = context(shallow).subject
    assert generated(subject) <= 0.1
    found = curve(shallow, "benign", rungs=(16, 32))
    assert max(value for _, value in found.values()) >= 0.4
    null = curve(knowing(knows=False), "benign", rungs=(16, 32))
    assert max(value for _, value in null.values()) <= 0.2


def test_steps_equal_a_plain_training_loop():
    model = knowing()
    found = context(model)
    rate = 1e-3
    settings = replace(FAST, learning_rate=rate, maximum_gradient_norm=1e9)
    attack = Relearning("rtt", methods=("full",), rungs=(1, 3), batch_size=len(SEEN), learner=settings)
    names = [name for name, _ in model.named_parameters() if "embed" not in name and "lm_head" not in name]
    learnt = {}
    for one in attack.attack(found):
        learnt[one.variant] = {name: model.get_parameter(name).clone() for name in names}
    from copy import deepcopy

    plain = deepcopy(model)
    parameters = [plain.get_parameter(name).requires_grad_(True) for name in names]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    rows = []
    for fact in SEEN:
        prompt = TOKENIZER(fact.question)["input_ids"]
        answer = TOKENIZER(f" {fact.answer}", add_special_tokens=False)["input_ids"]
        rows.append((torch.tensor([[*prompt, *answer, TOKENIZER.eos_token_id]]), len(prompt)))
    for step in range(1, 4):
        losses = []
        for ids, start in rows:
            logits = plain(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
            losses.append(cross_entropy(logits, ids[0, start:], reduction="sum"))
        tokens = sum(ids.shape[1] - start for ids, start in rows)
        optimizer.zero_grad()
        (sum(losses) / tokens).backward()
        optimizer.step()
        if step in (1, 3):
            for name, parameter in zip(names, parameters, strict=True):
                torch.testing.assert_close(learnt[f"full-step-{step}"][name], parameter, atol=2e-5, rtol=1e-3)


def test_the_ladder_is_one_run_and_repeats():
    settings = {"methods": ("full", "lora"), "learner": FAST}
    weights = []
    for rungs in ((2, 4), (0, 1, 4), (4,)):
        for one in Relearning("rtt", rungs=rungs, **settings).attack(context(refusing())):
            if one.variant.endswith("step-4"):
                weights += [torch.cat([p.flatten() for p in refusing().parameters()])]
    full, lora = weights[::2], weights[1::2]
    for other in full[1:]:
        assert torch.equal(full[0], other)
    for other in lora[1:]:
        assert torch.equal(lora[0], other)
    assert not torch.allclose(full[0], lora[0])


def test_step_zero_is_the_model_itself_and_cost_is_counted():
    found = context(refusing())
    before = torch.cat([p.flatten().clone() for p in refusing().parameters()])
    variants = Relearning("rtt", methods=("full",), rungs=(0, 3), batch_size=4, learner=FAST).attack(found)
    first = next(variants)
    assert torch.equal(before, torch.cat([p.flatten() for p in refusing().parameters()]))
    assert first.cost.equivalents == 0
    second = next(variants)
    # Ten facts in batches of 4, 4 and 2.
    assert second.cost.forwards == second.cost.backwards == 10
    assert second.cost.equivalents == 30
    assert second.details["texts_seen"] == 10 and second.details["steps"] == 3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_closing_early_gives_the_model_back(method):
    with untouched(refusing()):
        variants = Relearning("rtt", methods=(method,), rungs=(1, 2), learner=FAST).attack(
            context(refusing())
        )
        next(variants)
        variants.close()


def test_an_error_of_the_caller_gives_the_model_back():
    with untouched(refusing()):
        variants = Relearning("rtt", methods=("lora",), rungs=(1, 2), learner=FAST).attack(
            context(refusing())
        )
        next(variants)
        with pytest.raises(KeyError):
            variants.throw(KeyError("scoring failed"))


def test_divergence_is_reported_and_leaves_the_model_alone():
    settings = replace(FAST, learning_rate=1e30)
    with untouched(refusing()), pytest.raises(NumericalError, match="relearning loss"):
        list(Relearning("rtt", methods=("full",), rungs=(4,), learner=settings).attack(context(refusing())))


def test_a_bfloat16_model_keeps_its_dtype_and_tensors():
    from copy import deepcopy

    model = deepcopy(refusing()).to(torch.bfloat16)
    with untouched(model):
        for one in Relearning("rtt", rungs=(2,), learner=FAST).attack(context(model)):
            assert {p.dtype for p in model.parameters()} == {torch.bfloat16}, one.variant


def test_threat_models_learn_different_texts():
    data = context(refusing()).data
    encoder = TextEncoder(TOKENIZER, chat_template=False, maximum_tokens=64)
    texts = {
        threat: {example.text for example in relearning_examples(encoder, data, threat)}
        for threat in ("in-domain", "benign", "rtt")
    }
    assert texts["rtt"] == {f"{fact.question} {fact.answer}" for fact in SEEN}
    assert texts["rtt"] | set(data.forget_texts) == texts["in-domain"]
    assert texts["benign"] == set(data.benign_texts)
    hidden = {fact.answer for fact in HELD_OUT} - {fact.answer for fact in SEEN}
    learnt = " ".join(set().union(*texts.values())).split()
    assert not hidden & set(learnt)


def test_a_threat_model_without_texts_says_so_and_is_left_out():
    notices = []
    found = replace(context(refusing(), sink=notices.append), data=AttackData(SEEN, RETAIN))
    assert list(Relearning("benign").attack(found)) == []
    assert "no texts" in notices[0].message


def test_quick_ladders_end_at_the_budget_and_full_ones_do_not():
    attack = Relearning("rtt", methods=("full",), learner=FAST, quick_budget=1.0)
    assert [one.details["steps"] for one in attack.attack(context(refusing()))] == [4]
    generous = replace(attack, quick_budget=1e15, rungs=(1, 2))
    assert [one.details["steps"] for one in generous.attack(context(refusing()))] == [1, 2]
    full = replace(attack, rungs=(0, 1))
    assert [one.details["steps"] for one in full.attack(context(refusing(), tier="full"))] == [0, 1]
    assert LADDER == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def test_automatic_rates_move_weights_by_the_relative_step():
    model = refusing()
    found = context(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for method in ("full", "lora"):
        settings = replace(FAST, relative_step=0.01, maximum_gradient_norm=1e9)
        attack = Relearning("rtt", methods=(method,), rungs=(1,), batch_size=10, learner=settings)
        for _ in attack.attack(found):
            moved, size = 0.0, 0.0
            for name, value in model.named_parameters():
                if "proj" in name:
                    moved += float((value - before[name]).square().sum())
                    size += float(before[name].square().sum())
        assert math.sqrt(moved / size) == pytest.approx(0.01, rel=0.35), method


def test_the_sweep_runs_every_recipe():
    attack = RelearningSweep("rtt", rungs=(1,), learner=FAST)
    with untouched(refusing()):
        variants = [one.variant for one in attack.attack(context(refusing(), tier="full"))]
    assert variants == [
        "full-0.001-step-1",
        "full-0.01-step-1",
        "lora-0.001-step-1",
        "lora-0.01-step-1",
    ]
    assert attack.name == "relearning-sweep-rtt" and attack.tier == "full" and attack.trains


def test_filler_is_unrelated():
    words = " ".join(filler(random.Random(seed), 12) for seed in range(8)).split()
    assert not {fact.answer for fact in FORGET} & set(words)
