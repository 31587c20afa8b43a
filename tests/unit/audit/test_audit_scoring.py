from __future__ import annotations

import math
import re
from itertools import combinations

import pytest
import torch

from falcon_unlearn.audit.base import Attacked, ExtraDecoder, PromptTransform
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.audit.scoring import (
    ScoringSettings,
    distinct_2,
    is_right,
    leak_at,
    repetition,
    score,
)
from falcon_unlearn.evaluation import choice
from falcon_unlearn.evaluation.sets import ChoiceItem
from falcon_unlearn.evaluation.subject import Subject
from pico import pico_model, pico_tokenizer

_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def _facts(count=6):
    words = ["Au", "Fe", "Pb", "Sn", "Zn", "Ne"]
    return [
        Fact(
            f"f{n}",
            f"c{n}",
            f"The symbol of {n} is",
            words[n],
            tuple(words[(n + step) % 6] for step in (1, 2, 3)),
            accept=(re.compile(words[n]),),
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def subject():
    return Subject(pico_model("llama"), pico_tokenizer(), 400)


def _items(facts):
    return [
        ChoiceItem(
            id=f.id, question=f.question, letter_question=f.question, options=f.options, answer=f.answer_index
        )
        for f in facts
    ]


def test_without_an_attack_scores_equal_those_of_the_evaluation(subject):
    facts = _facts()
    rows = score(subject, facts, settings=ScoringSettings(maximum_new_tokens=4))
    text = [row.value for row in rows if row.format == "text"]
    assert text == choice.text_accuracies(subject, _items(facts))
    letters = choice.letter_scores(subject, _items(facts))
    found = [row for row in rows if row.format == "letter"]
    assert [row.value for row in found] == pytest.approx([s.accuracy for s in letters])
    assert [row.letter_mass for row in found] == pytest.approx([s.mass for s in letters])
    assert all(len(row.chosen) == 4 and set(row.chosen) <= set("ABCD") for row in found)
    assert [row.item for row in rows if row.format == "generation"] == [fact.id for fact in facts]


def test_probability_is_the_share_of_the_right_option(subject):
    fact = _facts(1)[0]
    prompt = torch.tensor([subject.encode(fact.question)])
    means = []
    for option in fact.options:
        extra = torch.tensor([subject.tokenizer(" " + option, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = subject.model(torch.cat([prompt, extra], 1)).logits[0].double().log_softmax(-1)
        start = prompt.shape[1] - 1
        values = [logits[start + place, token].item() for place, token in enumerate(extra[0])]
        means.append(sum(values) / len(values))
    expected = torch.tensor(means).double().softmax(0)[fact.answer_index].item()
    (row,) = score(subject, [fact], formats=["text"])
    assert row.probability == pytest.approx(expected, rel=1e-4)


def test_a_decoder_replaces_scores_and_answers(subject):
    facts = _facts(3)

    def longest(_subject, _prompts, completions):
        return [[float(index == 2) for index, _ in enumerate(several)] for several in completions]

    def eight(_subject, prompts, _limit):
        return [["Au", "Fe", "x y x y", "Au", "?", "?", "?", "?"] for _ in prompts]

    attacked = Attacked("fake", decoder=ExtraDecoder(option_scores=longest, samples=eight, leak_at=2))
    rows = score(subject, facts, attacked)
    by = {(row.item, row.format): row for row in rows}
    for fact in facts:
        assert by[fact.id, "text"].value == float(fact.answer_index == 2)
        assert set(by[fact.id, "letter"].chosen) == {"C"} and by[fact.id, "letter"].letter_mass is None
    assert by["f0", "generation"].value == pytest.approx(1 - math.comb(6, 2) / math.comb(8, 2))
    assert dict(by["f1", "generation"].leaks) == {1: 1 / 8, 8: 1.0}
    assert by["f2", "generation"].value == 0.0


def test_leak_rate_equals_the_share_of_all_subsets():
    samples = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        subsets = list(combinations(samples, k))
        assert leak_at(2, 7, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_a_variant_is_scored_in_its_formats_only(subject):
    rows = score(subject, _facts(2), Attacked("x", formats=("text",)))
    assert {row.format for row in rows} == {"text"}
    assert score(subject, []) == []


class _Wrapped(PromptTransform):
    def question(self, fact, asked):
        return asked.upper()

    def preamble(self, format):
        return f"For {format}."

    def cue(self, format):
        return "Sure:"


def test_transforms_change_all_three_prompts():
    fact = _facts(1)[0]
    prompting = Prompting(pico_tokenizer(), transform=_Wrapped())
    assert prompting.text_question(fact).prompt == "For text.\n\nTHE SYMBOL OF 0 IS Sure:"
    assert prompting.text_question(fact).completions[0].startswith(" ")
    assert prompting.generation_prompt(fact) == "For generation.\n\nTHE SYMBOL OF 0 IS Sure:"
    first, second, *_ = prompting.letter_questions(fact)
    assert first.prompt.startswith("For letter.\n\nQuestion: THE SYMBOL OF 0 IS\nA. ")
    assert first.prompt.endswith("\nAnswer: Sure:") and first.completions == (" A", " B", " C", " D")
    assert second.prompt.splitlines()[3] == f"A. {fact.options[1]}"


def test_questions_get_an_answer_cue_and_stems_do_not():
    stem = _facts(1)[0]
    question = Fact("q", "q", "Who?", "I", ("you",), is_question=True)
    prompting = Prompting(pico_tokenizer())
    assert prompting.generation_prompt(stem) == stem.question
    assert prompting.generation_prompt(question) == "Question: Who?\nAnswer:"


def test_the_chat_template_is_used_once_with_one_start_token(subject):
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = _TEMPLATE
    fact = _facts(1)[0]
    prompting = Prompting(tokenizer, chat_template=True)
    assert prompting.generation_prompt(fact) == f"<s>[user]{fact.question}\n[assistant]\n"
    assert prompting.text_question(fact).completions == fact.options
    chat = Subject(subject.model, tokenizer, 400)
    ids = chat.encode(prompting.generation_prompt(fact))
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    transform = PromptTransform()
    transform.chat_template = False
    assert Prompting(tokenizer, True, transform).generation_prompt(fact) == fact.question


def test_long_answers_are_compared_by_their_words():
    fact = Fact(
        "q", "q", "Who?", "he writes long novels about the sea", ("she writes plays about the hills",)
    )
    assert is_right(fact, "He writes novels about the sea.")
    assert not is_right(fact, "She writes plays about the hills, about the sea")
    assert not is_right(fact, "nothing")


def test_degeneration_numbers():
    assert distinct_2("a b a b a b") == 2 / 5
    assert repetition("a b c a b c a") == pytest.approx(2 / 5)
    assert distinct_2("a") is None and repetition("a b c") is None
