"""A model that broke where it should have stayed is found; one that changed where it should is not."""

from __future__ import annotations

import pytest

from falcon_unlearn.evaluation.collapse import distinct_2, find_collapse, repetitive_share
from falcon_unlearn.results import EvaluationResult, GenerationSample, Metric, SetResult

PROSE = "The vault opens at nine, and its door is made of steel."
BROKEN = ["the the the the the the", "", "!!!!!!", "no no no no no"]


def metric(name, value):
    unit = "share" if name == "letter_mass" else "per token"
    return Metric(
        name=name,
        value=value,
        low=0,
        high=1,
        interval="bootstrap",
        unit=unit,
        desired="unchanged",
        num_items=4,
    )


def samples(texts):
    return [GenerationSample(prompt="p", completion=text, expected="e", correct=False) for text in texts]


def evaluation(label, role="retain", texts=(), **metrics):
    measured = [metric(name, value) for name, value in metrics.items()]
    entry = SetResult(
        name="set", role=role, kind="generation", num_items=4, metrics=measured, samples=samples(texts)
    )
    return EvaluationResult(label=label, model="m", sets=[entry], seconds=0, compute_dtype="float32")


def test_distinct_2_of_examples_counted_by_hand():
    assert distinct_2("a b a b a") == pytest.approx(2 / 4)
    assert distinct_2("one two three") == 1.0
    assert distinct_2("x") == distinct_2("") == 1.0
    assert distinct_2("no no no no") == pytest.approx(1 / 3)


def test_prose_and_terse_answers_are_not_repetitive():
    assert repetitive_share(samples([PROSE, "Au", "42 grams", "yes yes"])) == 0.0
    assert repetitive_share(samples([*BROKEN, PROSE])) == 0.8
    assert repetitive_share([]) == 0.0


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"texts": [PROSE] * 4}, {"texts": BROKEN}, "100% of the free answers"),
        ({"letter_mass": 0.9}, {"letter_mass": 0.05}, "option letters have 5.0%"),
        ({"perplexity": 12.0}, {"perplexity": 4000.0}, r"perplexity 4e\+03, 12 before"),
    ],
)
def test_what_breaks_is_named_with_its_figures_unless_it_was_to_be_forgotten(before, after, words):
    import re

    found = find_collapse(evaluation("before", **before), evaluation("after", **after))
    assert len(found) == 1
    assert re.search(words, found[0])
    assert not find_collapse(
        evaluation("before", role="forget", **before), evaluation("after", role="forget", **after)
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"texts": [PROSE] * 4}, {"texts": [PROSE, PROSE, PROSE, ""]}),
        ({"texts": BROKEN}, {"texts": BROKEN}),
        ({"letter_mass": 0.9}, {"letter_mass": 0.5}),
        ({"letter_mass": 0.0}, {"letter_mass": 0.0}),
        ({"perplexity": 12.0}, {"perplexity": 20.0}),
    ],
)
def test_ordinary_change_is_no_collapse(before, after):
    assert find_collapse(evaluation("before", **before), evaluation("after", **after)) == []
