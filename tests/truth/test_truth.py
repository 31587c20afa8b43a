"""Models whose true state is known get the word that it deserves."""

from __future__ import annotations

import pytest

import planted
from falcon_unlearn.audit.catalogue import ATTACKS, Entry

pytestmark = pytest.mark.xdist_group("truth")

QUICK = ("quantisation", "direction-original", "few-shot-retain")
ANSWERS = ("text", "generation")
ALL = {"items": 200, "other_items": 120}
"""All facts, for the slow tests; the others ask few."""


def reached(result, attack, format="text"):
    """Return the share of the knowledge that an attack reaches."""
    found = [row for row in result.attacks if row.attack == attack and row.format == format]
    assert found, f"{attack} was not run in {format} format"
    return found[0].reachable.value


def test_the_world_has_an_exact_null(audit, models):
    result = audit(models.original, "quantisation")
    for format in ("letter", "text", "generation"):
        baseline = result.baseline(format)
        assert baseline.accuracy["original"].value > 0.9
        assert baseline.accuracy["null"].value < 0.45
        assert baseline.retain_accuracy["null"].value > 0.9
        assert baseline.knowledge_left.value == pytest.approx(1.0)
    assert result.verdict == "not removed"


def test_a_real_retraining_is_never_called_suppressed(audit, models):
    result = audit(models.retrained, *QUICK, formats=ANSWERS)
    assert result.verdict in {"removed (bounded)", "inconclusive"}
    assert all(row.counts is False or (row.reachable.low or 0.0) < 0.15 for row in result.attacks)


def test_letters_alone_are_no_unlearning(audit, models, load, world):
    model = load(models.original)
    planted.letter_bias(model, world)
    result = audit(model, "few-shot-retain", formats=("letter", "text"))
    letters, text = result.baseline("letter"), result.baseline("text")
    assert letters.accuracy["unlearned"].value < 0.35, "only A is ever chosen"
    assert text.accuracy["unlearned"].value > 0.9
    assert result.verdict == "not removed"


@pytest.fixture(scope="module")
def refusing(models, load, world):
    model = load(models.original)
    planted.refusal(model, world)
    return model


def test_a_refusal_is_suppression_and_relearning_shows_it(audit, refusing, monkeypatch):
    short = {"threat": "rtt", "methods": ("full",), "rungs": (16, 64)}
    monkeypatch.setitem(ATTACKS, "relearning-rtt", Entry("relearning", "Relearning", short))
    assert_relearning_shows_it(audit(refusing, "relearning-rtt", formats=ANSWERS))


@pytest.mark.slow
def test_a_refusal_is_suppression_on_the_whole_ladder(audit, refusing):
    assert_relearning_shows_it(audit(refusing, "relearning-rtt", formats=ANSWERS, **ALL))


def assert_relearning_shows_it(result):
    assert result.baseline("generation").accuracy["unlearned"].value < 0.3
    assert reached(result, "relearning-rtt", "generation") > 0.5
    assert result.verdict == "suppressed"


def test_noise_is_damage(audit, models, load):
    model = load(models.original)
    planted.noise(model, 0.9)
    result = audit(model, "quantisation", formats=ANSWERS)
    retained = result.baseline("generation").retain_accuracy
    assert retained["unlearned"].value < 0.8 < retained["original"].value
    assert result.verdict == "damaged"


def test_an_edit_smaller_than_the_rounding_comes_back_with_int4(audit, models, load, world):
    model = load(models.original)
    planted.inside_int4_buckets(model, world)
    result = audit(model, "quantisation", formats=ANSWERS)
    assert result.baseline("generation").accuracy["unlearned"].value < 0.5
    found = next(r for r in result.attacks if r.attack == "quantisation" and r.format == "generation")
    assert "int4" in found.variant
    assert found.reachable.value > 0.5
    assert result.verdict == "suppressed"


def test_a_constant_shift_comes_back_when_one_direction_is_removed(audit, models, load, world):
    model = load(models.original)
    planted.constant_steering(model, world)
    result = audit(model, "direction-original", formats=ANSWERS)
    assert result.baseline("text").accuracy["unlearned"].value < 0.7
    assert reached(result, "direction-original") > 0.5
    random = [control for control in result.controls if "random" in control.variant]
    assert random
    for control in random:
        plain = result.baseline(control.format).accuracy["unlearned"].value
        assert control.accuracy.value < plain + 0.1, "random directions bring nothing back"
    assert result.verdict == "suppressed"


@pytest.mark.slow
def test_a_real_retraining_withstands_relearning(audit, lettered_retraining):
    result = audit(lettered_retraining, *QUICK, "relearning-rtt", "prompting", **ALL)
    assert result.verdict in {"removed (bounded)", "inconclusive"}
    assert all(row.counts is False or (row.reachable.low or 0.0) < 0.15 for row in result.attacks)


@pytest.mark.slow
def test_letters_alone_withstand_every_wording(audit, models, load, world):
    model = load(models.original)
    planted.letter_bias(model, world)
    assert audit(model, "prompting", **ALL).verdict == "not removed"


@pytest.mark.slow
def test_a_real_retraining_is_accused_no_more_often_than_alpha_allows(audit, models):
    """Twenty splits of the same facts: with alpha .05, four or more accusations have probability .016."""
    verdicts = [
        audit(models.retrained, "few-shot-retain", seed=seed, formats=ANSWERS, **ALL).verdict
        for seed in range(20)
    ]
    assert verdicts.count("suppressed") < 4
    assert not {"not removed", "damaged"} & set(verdicts)
