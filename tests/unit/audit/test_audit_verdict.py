"""The verdict on simulated item tables whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from falcon_unlearn.audit.baselines import baseline, no_attack_summary
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.frame import Frame
from falcon_unlearn.audit.summarise import AttackRun, VariantInfo, attack_summary, with_holm, worst_case
from falcon_unlearn.audit.tables import Questions, Table
from falcon_unlearn.audit.verdict import Evidence, decide, decide_format
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.results_audit import ItemRow

FORMATS = ("letter", "text", "generation")
CHANCE = {"letter": 0.25, "text": 0.25, "generation": 0.0}


@dataclass(frozen=True)
class FakeAttack:
    name: str
    knowledge: str = "none"
    tier: str = "quick"
    access: str = "weights"
    needs_original: bool = False
    source: str = "test"

    def attack(self, context):
        yield from ()


def _questions(set_name, split, count):
    return Questions(
        set_name,
        split,
        tuple(Fact(f"{split}{n}", f"c{n}", f"q{n}", "a", ("b", "c", "d")) for n in range(count)),
    )


class World:
    """Draw rows from stated chances of a right answer."""

    def __init__(self, seed=0, count=150, formats=FORMATS):
        self.generator = np.random.default_rng(seed)
        self.formats = formats
        self.sets = {
            ("forget", "report"): _questions("forget", "report", count),
            ("forget", "selection"): _questions("forget", "selection", 40),
            ("retain", "report"): _questions("retain", "report", 80),
        }
        self.rows = []

    def add(self, model, chances, attack="none", retain=0.95, repetition=0.0):
        for (set_name, split), questions in self.sets.items():
            for format in self.formats:
                chance = chances.get(format) if set_name == "forget" else retain
                if chance is None:
                    continue
                for fact in questions.facts:
                    self.rows.append(
                        ItemRow(
                            model=model,
                            attack=attack,
                            variant="as it is" if attack == "none" else "v",
                            seed=0,
                            format=format,
                            set=set_name,
                            split=split,
                            item=fact.id,
                            cluster=fact.cluster,
                            value=float(self.generator.random() < chance),
                            repetition=repetition if format == "generation" else None,
                        )
                    )

    def decide(self, attacks, has_null=True, **settings):
        frame = Frame(
            Table(self.rows),
            self.sets["forget", "report"],
            self.sets["retain", "report"],
            None,
            AuditSettings(**{"resamples": 1000} | settings),
            has_null,
        )
        entries = [entry for f in self.formats if (entry := baseline(frame, f))]
        runs = [
            AttackRun(
                FakeAttack(name), dict.fromkeys(self.formats, "v"), {}, {"v": VariantInfo("v")}, (0,), 0.0
            )
            for name in attacks
        ]
        summaries = [no_attack_summary(frame, entry) for entry in entries if entry.informative]
        summaries += [attack_summary(frame, run, entry.format) for run in runs for entry in entries]
        summaries = with_holm([summary for summary in summaries if summary])
        worst = tuple(
            worst_case(frame, runs, summaries, entry.format, self.sets["forget", "selection"])
            for entry in entries
        )
        evidence = Evidence(
            tuple(entries), tuple(s for s in summaries if s.counts), worst, has_null, frame.settings
        )
        return evidence, *decide(evidence)


def _level(value):
    return {format: max(CHANCE[format], value) for format in FORMATS}


def _world(seed=0, **kwargs):
    world = World(seed, **kwargs)
    world.add("original", _level(0.97))
    world.add("null", CHANCE | {"generation": 0.01})
    return world


def test_a_retrained_model_is_removed_where_there_is_power():
    world = _world(count=400)
    world.add("unlearned", CHANCE | {"generation": 0.01})
    for attack in ("quantisation", "relearning"):
        world.add("null", CHANCE | {"generation": 0.01}, attack)
        world.add("unlearned", CHANCE | {"generation": 0.01}, attack)
    evidence, verdict, reasons = world.decide(["quantisation", "relearning"])
    assert verdict == "removed (bounded)", reasons
    assert "below 10%" in reasons[0]
    assert all(case.net_recovered.high < 0.1 for case in evidence.worst if case.format != "letter")


def test_few_facts_are_inconclusive_rather_than_removed():
    world = _world(count=25)
    world.add("unlearned", CHANCE)
    world.add("null", CHANCE, "quantisation")
    world.add("unlearned", CHANCE, "quantisation")
    _, verdict, reasons = world.decide(["quantisation"])
    assert verdict == "inconclusive"
    assert any("upper limits would have to lie below 10%" in reason for reason in reasons)


def test_a_retrained_model_is_not_accused_more_often_than_alpha():
    accused = 0
    for seed in range(30):
        world = _world(seed, count=40, formats=("text",))
        world.add("unlearned", CHANCE)
        attacks = [f"attack{n}" for n in range(5)]
        for attack in attacks:
            world.add("null", CHANCE, attack)
            world.add("unlearned", CHANCE, attack)
        accused += world.decide(attacks, resamples=300)[1] == "suppressed"
    # At a level of 5 % more than five of 30 have a probability of .3 %.
    assert accused <= 5


def test_letters_alone_falling_is_not_removal():
    world = _world()
    world.add("unlearned", {"letter": 0.25, "text": 0.97, "generation": 0.97})
    evidence, verdict, reasons = world.decide([])
    assert verdict == "not removed", reasons
    assert decide_format(evidence, "letter") == "inconclusive"
    assert decide_format(evidence, "text") == "not removed"


def test_a_refusing_model_whose_options_still_tell_is_suppressed():
    world = _world()
    world.add("unlearned", {"letter": 0.9, "text": 0.9, "generation": 0.0})
    _, verdict, reasons = world.decide([])
    assert verdict == "suppressed" and "the model as it is reaches" in reasons[0]


def test_recovery_by_one_attack_is_suppression():
    world = _world()
    world.add("unlearned", CHANCE)
    for attack, level in (("int4", CHANCE), ("relearning", _level(0.8))):
        world.add("null", CHANCE, attack)
        world.add("unlearned", level, attack)
    evidence, verdict, reasons = world.decide(["int4", "relearning"])
    assert verdict == "suppressed" and reasons[0].startswith("relearning (v) reaches")
    assert {case.attack for case in evidence.worst} == {"relearning"}


def test_what_an_attack_teaches_the_null_too_is_no_recovery():
    world = _world(count=400)
    world.add("unlearned", CHANCE)
    world.add("null", _level(0.8), "relearning")
    world.add("unlearned", _level(0.8), "relearning")
    evidence, verdict, _ = world.decide(["relearning"])
    assert verdict != "suppressed"
    recovered = {s.format: s.recovered.value for s in evidence.attacks if s.attack == "relearning"}
    assert recovered["generation"] > 0.7


def test_noise_is_damage():
    world = _world()
    world.add("unlearned", CHANCE, retain=0.3)
    _, verdict, reasons = world.decide([])
    assert verdict == "damaged" and "the limit is 10%" in reasons[0]


def test_degenerate_answers_to_retain_questions_are_damage():
    world = World()
    world.add("original", _level(0.97))
    world.add("null", CHANCE)
    world.add("unlearned", CHANCE, repetition=0.9)
    _, verdict, reasons = world.decide([])
    assert verdict == "damaged" and "degenerate" in reasons[-1]


def test_without_a_null_nothing_is_removed_but_recovery_can_be_shown():
    world = World(count=400)
    world.add("original", _level(0.97))
    world.add("unlearned", CHANCE)
    world.add("unlearned", CHANCE, "quantisation")
    _, verdict, reasons = world.decide(["quantisation"], has_null=False)
    assert verdict == "inconclusive" and "no null model" in reasons[0]
    world.add("unlearned", _level(0.9), "ablation")
    assert world.decide(["quantisation", "ablation"], has_null=False)[1] == "suppressed"


def test_an_original_that_knows_nothing_decides_nothing():
    world = World()
    for model in ("original", "null", "unlearned"):
        world.add(model, CHANCE)
    evidence, verdict, reasons = world.decide([])
    assert verdict == "inconclusive" and "does not know" in reasons[0]
    assert all(entry.knowledge_left.value is None for entry in evidence.baselines)


def test_half_removed_is_suppressed_because_the_rest_is_there():
    world = _world()
    world.add("unlearned", {"letter": 0.6, "text": 0.6, "generation": 0.5})
    assert world.decide([])[1] == "suppressed"


def test_thresholds_are_settings():
    world = _world()
    world.add("unlearned", {"letter": 0.4, "text": 0.45, "generation": 0.2})
    assert world.decide([])[1] == "suppressed"
    assert world.decide([], delta=0.6)[1] == "inconclusive"


@pytest.mark.parametrize("gate", ["worst", "worst>0.2", "best<=0.2", "worst<=x"])
def test_gates_are_checked_when_read(gate):
    with pytest.raises(ValueError, match="METRIC<=NUMBER"):
        AuditSettings(gates=(gate,))
