"""Whole audits of pico models with attacks whose effect is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from audit_fakes import Ask, Destroy, Dirty, Fake, Restore
from falcon_unlearn.audit.attacks.checkpoint_difference import CheckpointDifference
from falcon_unlearn.audit.attacks.direction_ablation import DirectionAblation
from falcon_unlearn.audit.attacks.linear_probe import LinearProbe
from falcon_unlearn.audit.attacks.logit_lens import LogitLens
from falcon_unlearn.audit.attacks.pruning import Pruning
from falcon_unlearn.audit.attacks.quantisation import Quantisation
from falcon_unlearn.audit.base import AttackData, Attacked, PromptTransform
from falcon_unlearn.audit.facts import split_by_cluster
from falcon_unlearn.audit.keeping import Memory
from falcon_unlearn.audit.models import AuditedModel
from falcon_unlearn.audit.runner import Sets
from falcon_unlearn.audit.session import AuditInputs, run_audit, set_record
from falcon_unlearn.audit.tables import Questions
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.access import wrap_model
from falcon_unlearn.runs import Journal, capture_environment
from pico import pico_tokenizer


@dataclass(frozen=True)
class Interrupted(Fake):
    """Stop the process in the middle, once."""

    name: str = "interrupted"

    def attack(self, context) -> Iterator[Attacked]:
        yield Attacked("first", transform=PromptTransform())
        if not STARTED:
            STARTED.append(True)
            raise KeyboardInterrupt
        yield Attacked("second", transform=PromptTransform())


STARTED: list[bool] = []


def _inputs(world, attacks, null=True, **settings):
    split = split_by_cluster(world.forget, seed=0)
    kept = split_by_cluster(world.retain, seed=0, shares=(0.3, 0.0, 0.7))
    loads = {"original": 0, "unlearned": 0, "null": 0}

    def audited(role):
        @contextmanager
        def load():
            loads[role] += 1
            yield wrap_model(getattr(world, role), pico_tokenizer(), role, None)

        return AuditedModel(role, role, load)

    roles = ["original", "unlearned", *(["null"] if null else [])]
    before = {name: p.detach().clone() for name, p in world.original.named_parameters()}
    sets = Sets(
        Questions("forget", "selection", split.selection),
        Questions("forget", "report", split.report),
        Questions("retain", "report", kept.report),
    )
    return AuditInputs(
        models={role: audited(role) for role in roles},
        sets=sets,
        data=AttackData(split.attack, kept.attack),
        attacks=tuple(attacks),
        settings=AuditSettings(**{"resamples": 500, "maximum_new_tokens": 5, "letter_orders": 1} | settings),
        set_records=(set_record([sets.selection, sets.forget], "forget", split.attack),),
        originals={"unlearned": lambda: before},
    )


def _run(inputs, journal=None):
    return run_audit(inputs, memory=Memory(journal), environment=lambda: capture_environment("cpu", 1, 0))


@pytest.fixture(scope="module")
def audit(world):
    return _run(_inputs(world, [Restore(), Destroy(), Ask()]))


def test_the_world_is_what_it_claims(audit):
    entry = audit.result.baseline("text")
    values = {role: estimate.value for role, estimate in entry.accuracy.items()}
    assert values["original"] > 0.9 and values["unlearned"] < 0.2 and values["null"] < 0.5
    assert entry.informative and entry.retain_accuracy["unlearned"].value > 0.8


def test_what_only_hides_is_suppressed_and_the_attack_named(audit):
    assert audit.result.verdict == "suppressed", audit.result.reasons
    assert "restore (share-1) reaches" in audit.result.reasons[0]
    assert {case.attack for case in audit.result.worst} == {"restore"}
    by = {(entry.attack, entry.format): entry for entry in audit.result.attacks}
    restored = by["restore", "text"]
    assert restored.variant == "share-1" and restored.reachable.value == pytest.approx(1.0, abs=0.05)
    assert restored.p_reachable_adjusted < 0.05 and restored.discordant[0] > 15
    assert restored.forward_equivalents == 5.0 and restored.details["tensors"] > 10


def test_memorisation_of_all_models_is_recorded(audit):
    found = {model.model: model for model in audit.result.memorisation.models}
    assert set(found) == {"original", "null", "unlearned"}
    assert found["original"].extraction_strength.value > 0.9
    assert found["null"].extraction_strength.value < 0.6
    losses = {role: model.membership[0].auc.value for role, model in found.items()}
    assert losses["original"] > 0.95 and losses["null"] < 0.75


def test_net_recovery_has_its_formula(audit):
    by = {(entry.attack, entry.format): entry for entry in audit.result.attacks}
    entry, plain = by["restore", "text"], audit.result.baseline("text")
    attacked = {role: estimate.value for role, estimate in entry.accuracy.items()}
    before = {role: estimate.value for role, estimate in plain.accuracy.items()}
    gain = (attacked["unlearned"] - before["unlearned"]) - (attacked["null"] - before["null"])
    assert entry.net_recovered.value == pytest.approx(gain / (before["original"] - before["null"]))


def test_an_attack_that_destroys_the_model_does_not_count(audit):
    destroyed = [entry for entry in audit.result.attacks if entry.attack == "destroy"]
    assert destroyed and all(entry.destroys_model and not entry.counts for entry in destroyed)
    assert all(entry.p_reachable_adjusted is None for entry in destroyed)


def test_white_box_attacks_have_rows_of_all_models_and_disclosure_never_counts(world):
    attacks = [
        LogitLens(components=("block",)),
        LinearProbe(),
        Quantisation(schemes=("int4-channel",)),
        Pruning(shares=(0.1,)),
        DirectionAblation("original", ranks=(1,)),
        DirectionAblation("retain", ranks=(1,)),
        CheckpointDifference(weights=(1.5,)),
    ]
    result = _run(_inputs(world, attacks)).result
    by = {(entry.attack, entry.format): entry for entry in result.attacks}
    assert {name for name, _ in by} == {attack.name for attack in attacks}
    for name in (attack.name for attack in attacks):
        entry = by[name, "text"]
        assert entry.net_recovered.value is not None, (name, entry.net_recovered.note)
        assert set(entry.accuracy) == {"original", "unlearned", "null"}
    disclosed = [entry for entry in result.attacks if entry.attack == "checkpoint-difference"]
    assert disclosed and not any(entry.counts for entry in disclosed)
    assert by["checkpoint-difference", "text"].accuracy["unlearned"].value > 0.5
    assert "removed, not what is left" in disclosed[0].note
    assert "checkpoint-difference" not in {case.attack for case in result.worst}


def test_only_variants_that_lead_are_asked_the_report_facts(audit):
    asked = {
        row.variant
        for row in audit.rows
        if row.model == "unlearned" and row.attack == "restore" and row.set == "forget"
        and row.split == "selection"
    }  # fmt: skip
    assert asked == {"share-0", "share-0.1", "share-1"}
    null = {row.variant for row in audit.rows if row.model == "null" and row.attack == "restore"}
    assert null <= {entry.variant for entry in audit.result.attacks if entry.attack == "restore"}


def test_formats_of_a_variant_and_controls_are_respected(audit):
    assert {entry.format for entry in audit.result.attacks if entry.attack == "ask"} == {"text"}
    assert [(c.attack, c.control) for c in audit.result.controls] == [("restore", "random direction")]


def test_attacks_without_effect_are_named(world):
    result = _run(_inputs(world, [Restore(shares=(0.0,))], formats=("text",))).result
    inactive = [warning for warning in result.warnings if warning.number == 14]
    assert inactive and "restore (share-0)" in inactive[0].message


def test_rows_are_unique_and_cover_all_models(audit):
    keys = [(r.model, r.attack, r.variant, r.seed, r.format, r.set, r.split, r.item) for r in audit.rows]
    assert len(keys) == len(set(keys))
    assert {row.model for row in audit.rows if row.attack == "none"} == {"original", "unlearned", "null"}


@pytest.mark.parametrize("what", ["weights", "hooks", "training", "gradients"])
def test_an_attack_that_leaves_traces_is_refused(world, what):
    kept = next(world.unlearned.parameters()).data.clone()
    try:
        with pytest.raises(ModelError, match=f"left the model changed: {what}"):
            _run(_inputs(world, [Dirty(what=what)], formats=("text",)))
    finally:
        next(world.unlearned.parameters()).data.copy_(kept)
        world.unlearned.lm_head._forward_hooks.clear()
        world.unlearned.eval().requires_grad_(False)


def test_an_interrupted_audit_goes_on_and_ends_the_same(world, tmp_path, monkeypatch):
    STARTED.clear()
    attacks = [Restore(), Interrupted()]
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _run(_inputs(world, attacks), Journal(path))
    from falcon_unlearn.audit import runner

    asked = []
    plain = runner.score

    def counting(subject, facts, attacked, formats, settings):
        asked.append(attacked.variant)
        return plain(subject, facts, attacked, formats, settings)

    monkeypatch.setattr(runner, "score", counting)
    resumed = _run(_inputs(world, attacks), Journal(path))
    # The unlearned model's first attack and all baselines were finished.
    assert "share-0.1" not in asked and "as it is" not in asked and "second" in asked
    again = len(asked)
    third = _run(_inputs(world, attacks), Journal(path))
    assert len(asked) == again
    plain_run = _run(_inputs(world, attacks))
    for other in (third, plain_run):
        assert _comparable(other) == _comparable(resumed)


def _report_variants(audit):
    return {
        row.variant
        for row in audit.rows
        if row.model == "unlearned" and row.attack == "restore" and row.set == "retain"
        and row.variant != "random"
    }  # fmt: skip


def test_edits_that_can_be_repeated_give_the_same_result_for_fewer_questions(world):
    at_once = _run(_inputs(world, [Restore()]))
    later = _run(_inputs(world, [Restore(lasting=True)]))
    assert _comparable(at_once)[0] == _comparable(later)[0]
    assert _report_variants(later) == {"share-1"} < _report_variants(at_once)


@pytest.mark.parametrize("stop", ["retain", "forget"])
def test_an_audit_killed_between_choosing_and_reporting_ends_the_same(world, tmp_path, monkeypatch, stop):
    from falcon_unlearn.audit import runner

    inputs = _inputs(world, [Restore(lasting=True)])
    facts = (inputs.sets.retain if stop == "retain" else inputs.sets.forget).facts
    plain, journal = runner.score, Journal(tmp_path / "journal.jsonl")

    def killed(subject, asked, attacked, formats, settings):
        if asked == facts and attacked.variant == "share-1":
            raise KeyboardInterrupt
        return plain(subject, asked, attacked, formats, settings)

    monkeypatch.setattr(runner, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        _run(inputs, journal)
    monkeypatch.setattr(runner, "score", plain)
    assert _comparable(_run(inputs, journal)) == _comparable(_run(inputs))


def _comparable(audit):
    fields = {"attacks": {"__all__": {"seconds"}}, "seconds": True, "environment": True}
    rows = sorted(row.model_dump_json() for row in audit.rows)
    return audit.result.model_dump(exclude=fields), rows


def test_several_seeds_are_run_in_the_chosen_variants(world):
    result = _run(_inputs(world, [Restore()], seeds=(0, 1, 2), formats=("text",))).result
    (entry,) = (entry for entry in result.attacks if entry.attack == "restore")
    assert entry.seeds == [0, 1, 2] and entry.seed_deviation == 0.0
    assert entry.accuracy["unlearned"].value > 0.9


def test_without_a_null_model_the_verdict_is_downgraded(world):
    result = _run(_inputs(world, [Ask()], null=False)).result
    assert result.null_source == "chance"
    assert result.verdict in {"inconclusive", "suppressed"}
    assert {record.role for record in result.models} == {"original", "unlearned"}


def test_the_original_audited_against_itself_is_not_removed(world):
    class Same:
        original, unlearned, null = world.original, world.original, world.null
        forget, retain = world.forget, world.retain

    result = _run(_inputs(Same, [Ask()])).result
    assert result.verdict == "not removed", result.reasons
    assert any("same weights" in warning.message for warning in result.warnings)


def test_the_null_audited_against_itself_is_never_accused(world):
    class Retrained:
        original, unlearned, null = world.original, world.null, world.null
        forget, retain = world.forget, world.retain

    result = _run(_inputs(Retrained, [Restore(shares=(0.0,)), Ask()], delta=0.2)).result
    assert result.verdict in {"removed (bounded)", "inconclusive"}, result.reasons


def test_gates_are_evaluated(world):
    gates = ("worst<=0.2", "utility_loss<=0.5")
    result = _run(_inputs(world, [Restore()], formats=("text",), gates=gates)).result
    assert [(gate.expression, gate.passed) for gate in result.gates] == [
        ("worst<=0.2", False),
        ("utility_loss<=0.5", True),
    ]


def test_letters_are_not_asked_where_the_original_names_one_letter_whatever_is_asked(world):
    def letter_only(letter):
        """Return the original with a head that always prefers one letter."""
        model = deepcopy(world.original)
        token = pico_tokenizer()(f" {letter}", add_special_tokens=False)["input_ids"][-1]
        constant = torch.zeros_like(model.model.embed_tokens.weight)
        constant[:, 0] = 100.0
        model.model.embed_tokens.weight.data += constant
        model.lm_head.weight.data[:, 0] = 0.0
        model.lm_head.weight.data[token, 0] = 100.0
        return model

    names = ("unlearned", "null", "forget", "retain")
    biased = SimpleNamespace(original=letter_only("B"), **{name: getattr(world, name) for name in names})
    inputs = _inputs(biased, [], letter_orders=None)
    result = _run(inputs).result
    assert result.baseline("letter") is None and result.baseline("text") is not None
    assert any(
        "letter format: the original answers B in 100% of all orders" in text for text in result.skipped
    )
    asked = [row for row in _run(inputs).rows if row.format == "letter"]
    assert {(row.model, row.split) for row in asked} == {("original", "selection")}
    alone = _run(_inputs(biased, [], formats=("letter",))).result
    assert alone.baseline("letter") is not None, "the only format is always asked"
