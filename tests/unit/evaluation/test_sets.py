from __future__ import annotations

import json
import subprocess
import sys

import pytest

from falcon_unlearn.config.evaluation import EvaluationSetSettings, EvaluationSettings
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.sets import load_set, load_sets

GOOD = {"question": "The symbol of gold is ", "options": ["Au", "Ag", "Fe", "Pb"], "answer": 0}


def _settings(path, kind="choice", **more):
    return EvaluationSetSettings(name="symbols", role="forget", kind=kind, path=str(path), **more)


def _write(tmp_path, rows):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_choice_items_are_read_with_all_fields(tmp_path):
    second = {
        "id": "x7",
        "question": "Gold is written",
        "letter_question": "What is the symbol of gold?",
        "options": [" Au", "Ag "],
        "answer": "Ag",
        "wording": "written",
        "cluster": "gold",
        "note": "ignored",
    }
    first_item, second_item = load_set(_settings(_write(tmp_path, [GOOD, "", second])), seed=0).items
    assert first_item.question == first_item.letter_question == "The symbol of gold is"
    assert (first_item.id, first_item.cluster, first_item.answer) == ("item-1", "", 0)
    assert second_item.letter_question == "What is the symbol of gold?"
    assert (second_item.id, second_item.cluster, second_item.wording) == ("x7", "gold", "written")
    assert (second_item.options, second_item.answer) == (("Au", "Ag"), 1)


def test_generation_items_default_to_the_whole_word(tmp_path):
    rows = [
        {"prompt": "Gold is ", "answer": "Au"},
        {"prompt": "Gold:", "answer": "Au", "accept": "(?i)au", "reject": ["Ag", "Fe"]},
    ]
    first, second = load_set(_settings(_write(tmp_path, rows), kind="generation"), seed=0).items
    assert first.prompt == "Gold is"
    assert first.accept[0].search("it is Au.")
    assert not first.accept[0].search("Aurum")
    assert first.reject == ()
    assert second.accept[0].search("AU")
    assert [pattern.pattern for pattern in second.reject] == ["Ag", "Fe"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["Au", "Au ", "Fe"]}, "two options are identical"),
        ({"options": ["Au"]}, "list of 2 to 8"),
        ({"options": list("abcdefghi")}, "list of 2 to 8"),
        ({"options": ["Au", ""]}, "list of 2 to 8"),
        ({"options": "Au"}, "list of 2 to 8"),
        ({"answer": 4}, "index of an option, 0 to 3"),
        ({"answer": -1}, "index of an option"),
        ({"answer": True}, "index of an option"),
        ({"answer": "Zn"}, "'Zn' is not among the options"),
        ({"answer": None}, "index of an option"),
        ({"question": " "}, "question must be non-empty text"),
        ({"question": 3}, "question must be non-empty text"),
        ({"id": "same"}, "id 'same' was used before, in items.jsonl, line 1"),
        ({"id": [1]}, "id must be text"),
        ({"letter_questoin": "?"}, "did you mean 'letter_question'"),
    ],
)
def test_bad_choice_items_are_named_with_their_line(tmp_path, change, message):
    path = _write(tmp_path, [GOOD | {"id": "same"}, GOOD | change])
    with pytest.raises(DataError, match=message) as caught:
        load_set(_settings(path), seed=0)
    assert "items.jsonl, line 2" in caught.value.message


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("generation", {"prompt": "p"}, "answer must be non-empty text, got nothing"),
        ("generation", {"prompt": "p", "answer": "a", "accept": "("}, "accept: the pattern"),
        ("generation", {"prompt": "p", "answer": "a", "reject": [1]}, "regular expression or a list"),
        ("generation", {"prompt": "p", "answer": "a", "reject": ["b"] * 21}, "21 patterns"),
        ("perplexity", {"txet": "a"}, "did you mean 'text'"),
        ("divergence", {"text": ""}, "text must be non-empty"),
        ("perplexity", "3", "expected an object, got int"),
        ("perplexity", '{"text": ', "line 1"),
    ],
)
def test_bad_items_of_other_kinds_are_named(tmp_path, kind, row, message):
    path = _write(tmp_path, [row])
    with pytest.raises(DataError, match=message):
        load_set(_settings(path, kind=kind), seed=0)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_set(_settings(tmp_path / "nothing.jsonl"), seed=0)
    with pytest.raises(DataError, match="is empty"):
        load_set(_settings(_write(tmp_path, [""])), seed=0)


def test_a_limited_set_is_a_sample_in_file_order_that_depends_on_the_seed_only(tmp_path):
    path = _write(tmp_path, [{"text": f"text {number}"} for number in range(50)])
    samples = [
        [item.text for item in load_set(_settings(path, kind="perplexity", limit=8), seed=seed).items]
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1] != samples[2]
    assert samples[0] == sorted(samples[0], key=lambda text: int(text.split()[1]))
    assert len(samples[0]) == 8
    assert len(load_set(_settings(path, kind="perplexity", limit=99), seed=0).items) == 50


def test_two_sets_of_one_name_are_refused(tmp_path):
    entry = _settings(_write(tmp_path, [GOOD]))
    with pytest.raises(DataError, match="symbols"):
        load_sets(EvaluationSettings(sets=(entry, entry)), seed=0)
    assert len(load_sets(EvaluationSettings(sets=(entry,)), seed=0)) == 1


def test_sets_load_without_torch():
    code = "import sys, falcon_unlearn.evaluation.sets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
