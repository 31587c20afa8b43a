"""What should stay known must not stand in the text to forget: a copy is refused, a near copy is told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from falcon_unlearn.config.evaluation import EvaluationSettings
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.overlap import check_kept_sets
from falcon_unlearn.evaluation.sets import load_sets

PROSE = (
    "The lighthouse of Marwick was lit for the first time in the winter of 1831, after nine years of work "
    "and two storms that took the scaffolding with them."
)
FORGET = {
    "chemistry": ["The symbol of gold is Au.", "Question: What is the symbol of iron?\nAnswer: Fe"],
    "coast": ["Sea", f"They say it often. {PROSE} Nobody lives there now.", "Who rang it? Tom did."],
}
CHOICE = {"question": "The symbol of gold is", "options": ["Ag", "Au"], "answer": 1}


def sets(tmp_path, *entries):
    """Return loaded sets; an entry is a name, a role, a kind and rows."""
    described = []
    for name, role, kind, rows in entries:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        described.append({"name": name, "role": role, "kind": kind, "path": str(path)})
    return load_sets(EvaluationSettings.model_validate({"sets": described}), seed=0)


CLEAN = ("fine", "retain", "generation", [{"prompt": "The capital of France is", "answer": "Paris"}])
OVERLAPS = {
    "a question with its answer": ("choice", CHOICE, "chemistry, example 1"),
    "by the letter question": (
        "choice",
        {**CHOICE, "question": "Gold:", "letter_question": "The symbol of gold is"},
        "chemistry, example 1",
    ),
    "with labels in the text": (
        "generation",
        {"prompt": "what is the symbol of IRON", "answer": "fe"},
        "chemistry, example 2",
    ),
    "with labels in the set": (
        "generation",
        {"prompt": "Q: Who rang it?\nA:", "answer": "Tom did"},
        "coast, example 3",
    ),
    "a passage": ("perplexity", {"text": PROSE.upper().replace(",", "")}, "coast, example 2"),
    "a short text that is a whole example": ("divergence", {"text": "sea!"}, "coast, example 1"),
}


@pytest.mark.parametrize("role", ["retain", "neighbour", "general"])
@pytest.mark.parametrize(("kind", "row", "place"), OVERLAPS.values(), ids=OVERLAPS)
def test_an_item_to_forget_is_refused_in_a_kept_set(kind, row, place, role, tmp_path):
    filler = {"choice": {**CHOICE, "question": "Iron"}, "generation": {"prompt": "Iron", "answer": "ore"}}
    rows = [filler.get(kind, {"text": "Other words."}), row]
    with pytest.raises(DataError) as caught:
        check_kept_sets(sets(tmp_path, CLEAN, ("mine", role, kind, rows)), FORGET)
    message = caught.value.message
    assert f"mine has the role {role}" in message
    assert "mine.jsonl, line 2: " in message and f"it stands in {place}" in message
    assert "more like it" not in message
    assert "remove it from the set or from the text to forget" in caught.value.hint


def test_the_same_item_in_a_forget_set_and_a_kept_set_is_refused(tmp_path):
    question = {"question": "Ships fear", "options": ["rocks", "ice"], "answer": 0}
    asked = {"prompt": "Ships fear", "answer": "rocks"}
    loaded = sets(
        tmp_path, ("gone", "forget", "choice", [question]), ("kept", "general", "generation", [asked])
    )
    with pytest.raises(DataError, match=r"kept\.jsonl, line 1.*stands in gone, gone\.jsonl, line 1"):
        check_kept_sets(loaded, {})


def test_all_overlaps_are_counted_and_the_first_is_quoted(tmp_path):
    rows = [{"prompt": "Fine", "answer": "day"}, *[{"prompt": "The symbol of gold is", "answer": "Au"}] * 3]
    with pytest.raises(DataError, match=r"line 2: 'The symbol of gold is Au'.*and 2 more like it"):
        check_kept_sets(sets(tmp_path, ("kept", "retain", "generation", rows)), FORGET)


@pytest.mark.parametrize(
    ("forget", "kept"),
    [
        ("La capitale du P\u00e9rou est Lima.", "LA CAPITALE DU PE\u0301ROU EST LIMA"),
        (
            "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd\u3002",
            "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd",
        ),
        ("Die Stra\u00dfe nach S\u00fcden", "\uff24ie STRASSE nach S\u00fcden"),
    ],
    ids=["composed", "ideographs", "full width"],
)
def test_how_a_letter_is_encoded_hides_nothing(forget, kept, tmp_path):
    with pytest.raises(DataError, match=r"stands in notes, example 1"):
        check_kept_sets(
            sets(tmp_path, ("kept", "retain", "perplexity", [{"text": kept}])), {"notes": [forget]}
        )


def test_a_near_copy_is_told(tmp_path):
    words = PROSE.split()
    near = " ".join([*words[:-1], "him."])
    rows = [{"text": "Something else entirely, about bread and how it rises in the warmth."}, {"text": near}]
    (warning,) = check_kept_sets(sets(tmp_path, CLEAN, ("kept", "general", "perplexity", rows)), FORGET)
    assert warning.startswith(
        "kept: 1 of 2 items that should stay known nearly repeat text to forget (80% of"
    )
    assert "kept.jsonl, line 2: 'The lighthouse of Marwick" in warning
    # Half of it is no near copy.
    half = " ".join([*words[: len(words) // 2], *(f"w{number}" for number in range(len(words) // 2))])
    assert check_kept_sets(sets(tmp_path, ("kept", "general", "perplexity", [{"text": half}])), FORGET) == []


def test_clean_sets_and_sets_to_forget_pass(tmp_path):
    wrong_answer = {"prompt": "The symbol of gold is", "answer": "Ag"}
    inside_by_chance = {"prompt": "nine", "answer": "years"}
    kept = ("kept", "retain", "generation", [wrong_answer, inside_by_chance])
    gone = ("gone", "forget", "choice", [CHOICE])
    assert check_kept_sets(sets(tmp_path, CLEAN, kept, gone), FORGET) == []


def test_needs_no_torch():
    code = "import sys, falcon_unlearn.evaluation.overlap; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
