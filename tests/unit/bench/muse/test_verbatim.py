from __future__ import annotations

import pytest

from falcon_unlearn.bench.muse.data import VerbatimSample, load_muse
from falcon_unlearn.bench.muse.verbatim import Locator


def test_samples_are_found_with_their_articles_and_joint(news_folder, forget):
    data = load_muse(news_folder)
    places = [Locator(forget).find(sample) for sample in data.verbatim]
    assert [(place.first, place.last, place.joint) for place in places] == [
        (0, 0, " "),
        (1, 2, " "),
        (3, 3, ""),
    ]


@pytest.mark.parametrize(
    ("prompt", "continuation", "joint"),
    [
        ("alpha beta", "gamma delta", " "),
        ("alpha be", "ta gamma", ""),
        ("alpha beta ", "gamma", ""),
        ("alpha beta", " gamma", ""),
        ("alpha", ", said one", ""),
        ("beta\n\ngamma", "delta", " "),
    ],
)
def test_the_joint_is_what_the_article_has(prompt, continuation, joint):
    articles = ["alpha beta gamma delta", "alpha, said one"]
    locator = Locator(articles)
    sample = VerbatimSample(prompt, continuation)
    assert locator.joint(sample) == joint
    joined = "".join((prompt + joint + continuation).split())
    assert joined in "".join("".join(articles).split())


def test_a_sample_of_other_text_has_no_place_and_a_word_border_is_assumed():
    locator = Locator(["alpha beta gamma"])
    assert locator.find(VerbatimSample("alpha", "delta")) is None
    assert locator.find(VerbatimSample("alpha", " ")) is None
    assert locator.joint(VerbatimSample("alpha", "delta")) == " "
    assert locator.joint(VerbatimSample("alpha ", "delta")) == ""
