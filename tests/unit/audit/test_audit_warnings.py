"""Every automatic warning appears where its pitfall is planted, and none where nothing is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from falcon_unlearn.audit.baselines import baseline
from falcon_unlearn.audit.checks import check_model
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.frame import Frame
from falcon_unlearn.audit.scoring import ScoringSettings
from falcon_unlearn.audit.summarise import AttackRun, VariantInfo, attack_summary
from falcon_unlearn.audit.tables import Questions, Table
from falcon_unlearn.audit.warnings import Findings, find_warnings
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.results_audit import AuditedModelRecord, ItemRow
from pico import pico_model, pico_tokenizer

ROLES = ("original", "unlearned", "null")
FORMATS = ("letter", "text", "generation")


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


def _questions(set_name, split, count=40):
    facts = tuple(Fact(f"{set_name}{n}", f"c{n}", f"q{n}", "a", ("b", "c", "d")) for n in range(count))
    return Questions(set_name, split, facts)


SETS = {
    "forget": _questions("forget", "report"),
    "retain": _questions("retain", "report"),
    "selection": _questions("forget", "selection", 12),
}
KNOWN = {"original": 0.9, "unlearned": 0.3, "null": 0.3}


def _rows(attack="none", known=KNOWN, retain=0.75, roles=ROLES, formats=FORMATS, variant=None, **extra):
    rows = []
    for role in roles:
        for format in formats:
            for name in ("forget", "retain"):
                share = known[role] if name == "forget" else retain
                for number, fact in enumerate(SETS[name].facts):
                    rows.append(
                        ItemRow(
                            model=role,
                            attack=attack,
                            variant=variant or ("as it is" if attack == "none" else "v"),
                            seed=0,
                            format=format,
                            set=name,
                            split="report",
                            item=fact.id,
                            cluster=fact.cluster,
                            value=float((number * 7) % 40 < round(40 * share)),
                            letter_mass=extra.get("mass", 0.9) if format == "letter" else None,
                            letter_entropy=extra.get("entropy", 0.5) if format == "letter" else None,
                            chosen=extra.get("chosen", "ABCD") if format == "letter" else "",
                            distinct_2=extra.get("distinct", {}).get(role)
                            if format == "generation"
                            else None,
                        )
                    )
    return rows


def _records(**changes):
    common = {"name": "m", "tokenizer_sha256": "t", "parameters": 1, "compute_dtype": "float32"}
    return tuple(
        AuditedModelRecord(role=role, weights_sha256=role, **common).model_copy(update=changes.get(role, {}))
        for role in ROLES
    )


def _findings(rows, attacks=(), models=None, details=None):
    frame = Frame(
        Table(rows), SETS["forget"], SETS["retain"], None, AuditSettings(resamples=200), has_null=True
    )
    entries = tuple(entry for format in FORMATS if (entry := baseline(frame, format)))
    runs = tuple(
        AttackRun(
            FakeAttack(name),
            dict.fromkeys(FORMATS, "v"),
            {},
            {"v": VariantInfo("v", details=details or {})},
            (0,),
            0.0,
        )
        for name in attacks
    )
    summaries = [attack_summary(frame, run, format) for run in runs for format in FORMATS]
    return Findings(
        frame, entries, tuple(s for s in summaries if s), runs, models or _records(), SETS["selection"]
    )


def _numbers(findings):
    return {warning.number for warning in find_warnings(findings)}


def test_a_sound_audit_has_no_warning():
    rows = [*_rows(), *_rows("fine")]
    assert find_warnings(_findings(rows, ["fine"])) == []


@pytest.mark.parametrize(
    ("number", "extra"),
    [
        (1, {"mass": 0.1}),
        (1, {"entropy": 1.3863}),
        (2, {"chosen": "AAAA"}),
        (4, {"distinct": {"unlearned": 0.2, "original": 0.9, "null": 0.9}}),
        (3, {"formats": ("letter", "text")}),
        (19, {"retain": 0.0}),
    ],
)
def test_pitfalls_of_the_models_as_they_are(number, extra):
    assert number in _numbers(_findings(_rows(**extra)))


@pytest.mark.parametrize(
    ("number", "attack", "changes"),
    [
        (5, "repairing", {"retain": 1.0}),
        (6, "wording", {"known": KNOWN | {"original": 0.5}}),
        (16, "teaching", {"known": KNOWN | {"null": 0.8, "unlearned": 0.8}}),
    ],
)
def test_pitfalls_of_attacks(number, attack, changes):
    findings = _findings([*_rows(), *_rows(attack, **changes)], [attack])
    assert number in _numbers(findings)


@pytest.mark.parametrize(
    ("number", "models"),
    [
        (14, _records(unlearned={"weights_sha256": "original"})),
        (15, _records(null={"compute_dtype": "bfloat16"})),
        (17, _records(unlearned={"tokenizer_sha256": "other"})),
    ],
)
def test_pitfalls_of_files(number, models):
    assert _numbers(_findings(_rows(), models=models)) == {number}


@pytest.mark.parametrize(("number", "details"), [(14, {"inactive": "yes"}), (18, {"blind_auc": 0.7})])
def test_pitfalls_that_attacks_report(number, details):
    findings = _findings([*_rows(), *_rows("x")], ["x"], details=details)
    assert _numbers(findings) == {number}


def test_few_facts_are_named():
    findings = _findings(_rows())
    few = replace(findings, selection=Questions("forget", "selection", SETS["selection"].facts[:3]))
    assert _numbers(few) == {12}


def test_technical_faults_of_a_model_are_found():
    facts = [Fact(f"f{n}", "c", f"question {n} is", "ab", ("cd", "ef")) for n in range(8)]
    plain = Subject(pico_model("llama"), pico_tokenizer(), 400)
    settings = ScoringSettings()
    # The character tokenizer writes " A" as two tokens and adds no start token.
    assert [warning.number for warning in check_model(plain, facts, settings)] == [8]
    doubling = pico_tokenizer()
    doubling.chat_template = "{% for m in messages %}<s>{{ m.content }}<s>{% endfor %}"
    subject = Subject(plain.model, doubling, 400)
    found = check_model(subject, facts, ScoringSettings(chat_template=True))
    assert 7 in {warning.number for warning in found}


def test_answers_that_depend_on_the_batch_are_found(monkeypatch):
    from falcon_unlearn.audit import checks

    plain = checks.score

    def noisy(subject, facts, **kwargs):
        entries = plain(subject, facts, **kwargs)
        return [replace(entry, value=float(len(facts) > 1)) for entry in entries]

    monkeypatch.setattr(checks, "score", noisy)
    facts = [
        Fact(f"f{n}", "c", f"question {n} is", "ab", ("cd", "ef"), accept=(re.compile("ab"),)) for n in (1, 2)
    ]
    found = check_model(Subject(pico_model("llama"), pico_tokenizer(), 400), facts, ScoringSettings())
    assert any(w.number == 10 and "2 of 2" in w.message for w in found)
