from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from falcon_unlearn.demo import (
    FORGET_DOMAINS,
    KEPT_SETS,
    capitals,
    choice_items,
    elements,
    forget_texts,
    generation_items,
    letter_items,
    neighbours,
    prose,
    prose_evaluation_texts,
    retain_texts,
    states,
    write_demo_files,
)
from falcon_unlearn.demo.records import slug
from falcon_unlearn.errors import UsageError

CHOICE_SETS = [*FORGET_DOMAINS, *KEPT_SETS]
GENERATION_SETS = [*FORGET_DOMAINS, capitals.NAME]
ENTITIES = [*elements.SYMBOLS, *states.CODES, *capitals.CAPITALS]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)}


def training_texts() -> list[str]:
    texts = [text for domain in FORGET_DOMAINS for text in forget_texts(domain)]
    return texts + [text for group in retain_texts().values() for text in group]


def evaluation_prompts() -> list[str]:
    items = [item for name in CHOICE_SETS for item in choice_items(name)]
    prompts = [item["question"] for item in items] + [item["letter_question"] for item in items]
    opened = [item["prompt"] for name in GENERATION_SETS for item in generation_items(name)]
    return prompts + [line for prompt in opened for line in prompt.splitlines() if len(words(line)) > 2]


def test_sets_have_the_promised_sizes():
    assert len(elements.SYMBOLS) >= 60 and len(forget_texts("symbols")) >= 240
    assert len(states.CODES) == 50 and len(forget_texts("state_codes")) >= 200
    assert len(capitals.CAPITALS) >= 50
    assert len(choice_items("neighbour")) >= 40
    assert len(prose.retain_texts()) >= 100 and len(prose_evaluation_texts()) >= 60


def test_every_training_text_occurs_once():
    assert [
        text for text, count in Counter(training_texts() + prose_evaluation_texts()).items() if count > 1
    ] == []


def test_symbols_are_unique_and_well_formed():
    symbols = [*elements.SYMBOLS.values(), *elements.OTHER_SYMBOLS]
    assert len(set(symbols)) == len(symbols)
    assert all(re.fullmatch(r"[A-Z][a-z]?", symbol) for symbol in symbols)
    assert not {"I", "He", "In", "As", "At", "Be", "No", "Am"} & set(symbols)


def test_codes_and_capitals_are_unique_and_well_formed():
    assert len(set(states.CODES.values())) == len(states.CODES)
    assert all(re.fullmatch(r"[A-Z]{2}", code) for code in states.CODES.values())
    assert len(set(capitals.CAPITALS.values())) == len(capitals.CAPITALS)


@pytest.mark.parametrize("name", CHOICE_SETS)
def test_options_are_distinct_and_contain_the_fact(name: str):
    truth = {
        "symbols": {f"symbols/{key}": value for key, value in elements.SYMBOLS.items()},
        "state_codes": {f"state_codes/{slug(key)}": value for key, value in states.CODES.items()},
        "capitals": {f"capitals/{slug(key)}": value for key, value in capitals.CAPITALS.items()},
        "neighbour": {f"neighbour/{item.key}": item.fact.answer for item in neighbours.facts()},
    }[name]
    items = choice_items(name)
    assert {item["cluster"] for item in items} == set(truth)
    for item in items:
        assert len(set(item["options"])) == len(item["options"]) == 4
        assert item["options"][item["answer"]] == truth[item["cluster"]]


@pytest.mark.parametrize("name", CHOICE_SETS)
def test_ids_are_unique_and_every_letter_is_right_equally_often(name: str):
    items = choice_items(name)
    assert len({item["id"] for item in items}) == len(items)
    for group in (items, letter_items(name)):
        counts = Counter(item["answer"] for item in group)
        assert max(counts.values()) - min(counts.values()) <= 2 and len(counts) == 4


@pytest.mark.parametrize("name", CHOICE_SETS)
def test_stems_and_questions_can_be_continued(name: str):
    for item in choice_items(name):
        assert item["question"] == item["question"].strip() and item["question"][-1].isalnum()
        assert item["letter_question"].endswith("?")


def test_distractors_of_symbols_share_an_initial_when_there_are_enough():
    shared = [
        option[0] in {item["options"][item["answer"]][0], item["cluster"].split("/")[1][0].upper()}
        for item in choice_items("symbols")
        for option in item["options"]
    ]
    assert sum(shared) / len(shared) > 0.9


@pytest.mark.parametrize("name", GENERATION_SETS)
def test_shots_are_not_evaluated(name: str):
    entities = {item["cluster"].split("/")[1] for item in choice_items(name)}
    shared = set.intersection(*(set(item["prompt"].splitlines()) for item in generation_items(name)))
    shots = "-".join(f"-{slug(line)}-" for line in shared)
    assert {entity for entity in entities if f"-{entity}-" in shots} == set()


def test_package_needs_no_torch():
    code = (
        "import sys, falcon_unlearn.demo; print(int('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "0"


def test_no_training_text_contains_an_evaluation_prompt_or_the_reverse():
    prompts = set(evaluation_prompts())
    for text in training_texts():
        assert not [
            prompt for prompt in prompts if prompt.lower() in text.lower() or text.lower() in prompt.lower()
        ]


def test_training_and_evaluation_share_no_run_of_five_words_beside_the_names():
    names = {run for entity in ENTITIES for run in runs(entity, 1)}
    trained = set().union(*(runs(text, 5) for text in training_texts()))
    shared = {run for prompt in evaluation_prompts() for run in runs(prompt, 5) & trained}
    assert {run for run in shared if sum((word,) in names for word in run) < 2} == set()


def test_seen_marks_tell_whether_the_retain_text_states_the_fact():
    texts = retain_texts()
    for item in choice_items("capitals"):
        country = next(c for c in capitals.CAPITALS if slug(c) == item["id"].split("/")[1])
        stated = any(
            country in text and capitals.CAPITALS[country] in text
            for group in texts.values()
            for text in group
        )
        assert item["seen_in_retain"] is stated
    for member in neighbours.facts():
        assert (member.fact.statement in texts["neighbour"]) is (member.fact.statement is not None)


@pytest.mark.parametrize("name", KEPT_SETS)
def test_at_least_half_of_the_kept_facts_are_unseen(name: str):
    items = letter_items(name)
    assert 2 * sum(item["seen_in_retain"] for item in items) <= len(items)
    assert any(item["seen_in_retain"] for item in items)


def test_retain_text_never_states_a_forgotten_fact():
    for text in [text for group in retain_texts().values() for text in group] + prose_evaluation_texts():
        for name, symbol in elements.SYMBOLS.items():
            assert not (name in words(text) and re.search(rf"\b{symbol}\b", text))
        for state, code in states.CODES.items():
            assert not (state in text and re.search(rf"\b{code}\b", text))


def test_prose_splits_share_no_subject_and_no_long_phrase():
    assert not set(prose.retain_subjects()) & set(prose.evaluation_subjects())
    retained = set().union(*(runs(text, 7) for text in prose.retain_texts()))
    assert not [text for text in prose_evaluation_texts() if runs(text, 7) & retained]


def test_paragraphs_have_forty_to_eighty_words_on_one_line():
    for text in prose.retain_texts() + prose_evaluation_texts():
        assert 40 <= len(text.split()) <= 80, text
        assert "\n" not in text and text.isascii()


@pytest.mark.parametrize("builder", [forget_texts, choice_items, generation_items])
def test_unknown_name_is_refused_with_the_allowed_ones(builder):
    with pytest.raises(UsageError, match="astrology") as caught:
        builder("astrology")
    assert "symbols" in (caught.value.hint or "")


def test_content_does_not_depend_on_the_global_random_state():
    before = choice_items("symbols")
    random.seed(12345)
    assert choice_items("symbols") == before


def test_files_hold_the_records(tmp_path: Path):
    write_demo_files(tmp_path / "demo")
    write_demo_files(tmp_path / "demo")
    read = {
        str(path.relative_to(tmp_path / "demo")): [
            json.loads(line) for line in path.read_text("utf-8").splitlines()
        ]
        for path in sorted((tmp_path / "demo").rglob("*"))
        if path.is_file()
    }
    assert [name for name in read if not name.endswith(".jsonl")] == []
    for domain in FORGET_DOMAINS:
        assert [row["text"] for row in read.pop(f"forget/{domain}.jsonl")] == forget_texts(domain)
    for name, texts in retain_texts().items():
        assert [row["text"] for row in read.pop(f"retain/{name}.jsonl")] == texts
    for name in CHOICE_SETS:
        assert read.pop(f"evaluation/{name}.choice.jsonl") == choice_items(name)
    for name in GENERATION_SETS:
        assert read.pop(f"evaluation/{name}.generation.jsonl") == generation_items(name)
    assert [row["text"] for row in read.pop("evaluation/prose.jsonl")] == prose_evaluation_texts()
    assert read == {}
