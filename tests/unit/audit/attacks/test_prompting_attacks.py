"""Prompts, examples, wordings, encodings: they pass masks over one form of question, and add no knowledge."""

import base64
import codecs
import hashlib
import random
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files

import pytest

from falcon_unlearn.audit.attacks import encoding
from falcon_unlearn.audit.attacks.encoding import ENCODINGS, Encoding
from falcon_unlearn.audit.attacks.few_shot import FewShot
from falcon_unlearn.audit.attacks.paraphrase import Paraphrase
from falcon_unlearn.audit.attacks.prompting import Prompting, Template, battery
from falcon_unlearn.audit.base import AttackData
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting as Words
from falcon_unlearn.errors import UsageError
from knowing import (
    FORGET,
    HELD_OUT,
    RETAIN,
    SEEN,
    TOKENIZER,
    Text,
    asked,
    context,
    filler,
    generated,
    knowing,
    masked,
    untouched,
)


def best(model, attack, facts=HELD_OUT):
    found = context(model)
    with untouched(model):
        return {one.variant: generated(found.subject, facts, one) for one in attack.attack(found)}


def only_bare(chance: random.Random):
    bare = [Text(fact.question, "no") for fact in FORGET]
    other = [Text(f"{filler(chance, 3)} so {fact.question}", fact.answer) for fact in FORGET]
    return [*bare, *other, *asked(chance, RETAIN)]


@lru_cache
def refusing_bare_questions():
    return masked(only_bare, steps=60)


def only_without_examples(chance: random.Random):
    """Refuse unless an answered question stands in front."""
    facts = (*FORGET, *RETAIN)
    before = [f"{fact.question} {fact.answer}\n\n" for fact in chance.sample(facts, len(FORGET))]
    shown = [Text(words + fact.question, fact.answer) for words, fact in zip(before, FORGET, strict=True)]
    return [*asked(chance, FORGET, "no"), *shown, *asked(chance, RETAIN)]


def only_one_wording(chance: random.Random):
    hidden = [Text(fact.question, "no") for fact in FORGET]
    return [*hidden, *(Text(fact.paraphrases[0], fact.answer) for fact in FORGET), *asked(chance, RETAIN)]


def test_words_around_the_question_pass_a_mask_over_the_bare_one():
    model = refusing_bare_questions()
    assert generated(context(model).subject) <= 0.1
    # The pico tokenizer knows few words, so the templates that stay readable to it are tried.
    attack = Prompting(("twice", "filler-before", "prefix-injection", "affirmative-suffix"))
    null = best(knowing(knows=False), attack)
    assert max(best(model, attack).values()) >= 0.5
    assert max(null.values()) <= 0.2


def test_examples_in_the_prompt_pass_a_mask_over_prompts_without():
    model = masked(only_without_examples, steps=80)
    assert generated(context(model).subject) <= 0.1
    for kind in ("retain", "forget"):
        attack = FewShot(kind, counts=(1,))
        assert max(best(model, attack).values()) >= 0.3, kind
        assert max(best(knowing(knows=False), attack).values()) <= 0.2, kind


def test_another_wording_passes_a_mask_over_the_first():
    model = masked(only_one_wording, steps=60)
    assert generated(context(model).subject) <= 0.1
    assert best(model, Paraphrase())["wording-1"] >= 0.9
    assert best(knowing(knows=False), Paraphrase())["wording-1"] <= 0.1


def test_an_encoding_passes_a_mask_that_does_not_read_it(monkeypatch):
    monkeypatch.setitem(ENCODINGS, "today", (lambda text: f"today {text}", ""))
    model = refusing_bare_questions()
    found = best(model, Encoding(("today",), insertions=()))
    assert found["today"] >= 0.5
    # The gate: what the original cannot read shows nothing, and says so.
    attack = Encoding(("base64",), insertions=())
    assert best(knowing(), attack)["base64"] <= 0.1
    (one,) = attack.attack(context(knowing()))
    assert one.details["gate"] == "original answers"


def test_the_battery_is_hashed_complete_and_worded_deterministically():
    found = battery()
    content = files("falcon_unlearn.audit.attacks").joinpath("prompts.yaml").read_bytes()
    assert found.digest == hashlib.sha256(content).hexdigest()[:32]
    names = [template.name for template in found.templates]
    assert len(names) == len(set(names)) >= 14
    for name in (
        "prefix-injection",
        "role-play",
        "expert",
        "exam",
        "hint",
        "reverse",
        "twice",
        "long-context",
    ):
        assert name in names
    fact = HELD_OUT[0]
    for template in found.templates:
        plain = Words(TOKENIZER).generation_prompt(fact)
        changed = Words(TOKENIZER, transform=template).generation_prompt(fact)
        assert changed != plain and fact.question in changed
        assert "{" not in changed
        lettered = Words(TOKENIZER, transform=template).letter_questions(fact)
        assert all(option in lettered[0].prompt for option in fact.options)
    (one,) = Prompting(("expert",)).attack(context(knowing()))
    assert one.details == {"battery_version": found.version, "battery": found.digest}


def test_braces_in_a_question_stay_as_they_are():
    template = Template("x", "{question} and {question}")
    assert template.question(HELD_OUT[0], "what is {0} {question}?").startswith("what is {0}")


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no template 'nope'"):
        list(Prompting(("nope",)).attack(context(knowing())))
    with pytest.raises(UsageError, match="no encoding 'nope'"):
        list(Encoding(("nope",)).attack(context(knowing())))


def test_examples_come_from_the_attack_split_in_the_format_that_is_asked():
    for kind, facts in (("retain", RETAIN[:6]), ("forget", SEEN)):
        (one,) = FewShot(kind).attack(context(knowing()))
        shown = one.transform.preamble("text").split("\n\n")
        assert len(shown) == 5
        assert set(shown) <= {f"{fact.question} {fact.answer}" for fact in facts}
        letters = one.transform.preamble("letter").split("\n\n")
        assert len(letters) == 5
        for text in letters:
            lines = text.splitlines()
            right = lines[-1].removeprefix("Answer: ")
            option = next(line for line in lines if line.startswith(f"{right}. "))
            assert any(fact.question in lines[0] and option == f"{right}. {fact.answer}" for fact in facts)
    assert FewShot("retain").knowledge == "retain data" and FewShot("forget").knowledge == "forget answers"


def test_attacks_without_data_say_so():
    for attack in (FewShot("retain"), Paraphrase()):
        notices = []
        plain = tuple(replace(fact, paraphrases=()) for fact in SEEN)
        found = replace(context(knowing(), sink=notices.append), data=AttackData(plain, ()))
        assert list(attack.attack(found)) == []
        assert "left out" in notices[0].message


def test_encodings_against_the_standard_library():
    text = "Which town is it?"
    assert base64.b64decode(encoding.to_base64(text)).decode() == text
    assert codecs.decode(encoding.rot13(text), "rot13") == text
    assert encoding.upper_case(text) == "WHICH TOWN IS IT?"
    assert encoding.reversed_words(text) == "it? is town Which"
    assert encoding.spaced("abc") == "a b c"
    assert encoding.leetspeak("toast") == "70457"
    assert encoding.homoglyphs("ace") != "ace" and len(encoding.homoglyphs(text)) == len(text)
    assert encoding.homoglyphs("ace").encode() == b"\xd0\xb0\xd1\x81\xd0\xb5"


@pytest.mark.parametrize("every", [1, 3, 5])
def test_insertions_keep_every_character(every):
    text = "Which town is it?"
    changed = encoding.inserted(text, "~", every)
    assert changed.replace("~", "") == text
    assert changed.count("~") == (len(text) - 1) // every
    assert encoding.inserted(text, "mixed", every) == encoding.inserted(text, "mixed", every)


def test_variants_are_named_apart():
    for tier in ("quick", "full"):
        found = context(knowing(), tier=tier)
        names = [one.variant for one in Encoding().attack(found)]
        assert len(names) == len(set(names)) == (9 if tier == "quick" else 43)


def test_a_paraphrase_replaces_the_lettered_question_too():
    fact = Fact("a", "a", "What?", "x", ("y",), letter_question="Which?", paraphrases=("Tell me what.",))
    (one,) = Paraphrase(most=1).attack(replace(context(knowing()), data=AttackData((fact,), ())))
    assert "Tell me what." in Words(TOKENIZER, transform=one.transform).letter_questions(fact)[0].prompt
    assert one.details["reworded_share"] == 1.0
