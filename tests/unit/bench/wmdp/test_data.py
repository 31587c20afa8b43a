from __future__ import annotations

import json
from collections import Counter

import pytest

from falcon_unlearn.bench.wmdp.data import load_mmlu, load_wmdp, take_sample, wmdp_release
from falcon_unlearn.bench.wmdp.native import frequent_letter_accuracy, longest_option_accuracy
from falcon_unlearn.bench.wmdp.pages import load_pages, overlap_warning, split_articles
from falcon_unlearn.errors import DataError
from shared_data import shared_data

ROW = {
    "subject": "virology",
    "question": "Which?",
    "choices": ["0.50", "None", "1e3", "2020-01-01"],
    "answer": 0,
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_options_stay_the_text_they_are(tmp_path):
    write(tmp_path / "test.jsonl", ROW)
    assert load_mmlu(tmp_path).questions[0].choices == ("0.50", "None", "1e3", "2020-01-01")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"choices": [0.5, "a", "b", "c"]}, "0.5"),
        ({"choices": ["a", "b", "c"]}, "list of 4"),
        ({"answer": "A"}, "'A'"),
        ({"answer": 4}, "0 to 3"),
        ({"answer": True}, "True"),
        ({"question": None}, "question"),
        ({"subject": 3}, "subject"),
    ],
)
def test_malformed_items_are_refused_with_their_line(tmp_path, change, word):
    write(tmp_path / "test.jsonl", ROW, ROW | change)
    with pytest.raises(DataError, match="line 2") as caught:
        load_mmlu(tmp_path)
    assert word in caught.value.message


def test_missing_file_names_task_and_file(tmp_path):
    with pytest.raises(DataError, match=r"wmdp_bio: cannot read bio\.json"):
        load_wmdp("bio", tmp_path)


def test_release_is_told_from_the_counts():
    assert wmdp_release({"bio": 1520, "chem": 412, "cyber": 2225}).startswith("old")
    assert wmdp_release({"bio": 1273}).startswith("current")
    assert wmdp_release({"bio": 1520, "cyber": 1987}) == "unknown"
    assert wmdp_release({"bio": 12}) == wmdp_release({}) == "unknown"


def test_sample_keeps_order_and_depends_on_the_seed_only():
    items = list(range(100))
    drawn = take_sample(items, 20, seed=3)
    assert drawn == sorted(set(drawn)) == take_sample(items, 20, seed=3)
    assert drawn != take_sample(items, 20, seed=4)
    assert drawn != items[:20]
    assert take_sample(items, None, seed=3) == take_sample(items, 200, seed=3) == items


def test_articles_start_at_single_sign_titles_only():
    text = " = One = \n a = b = c \n = = Part = = \n = = = Deep = = = \n x \n = Two = \n y \n"
    articles = split_articles(text)
    assert "".join(articles) == text
    assert [article.split("\n")[0] for article in articles] == [" = One = ", " = Two = "]


def test_line_ends_do_not_matter(folders, pages):
    found = load_pages(folders / "wikitext")
    assert "".join(page.text for page in found.pages) == "".join(p.text for p in pages.pages).replace(
        "\n\n", "\n"
    )
    assert found.num_available == 5  # the first page repeats its title line


def test_tokenised_release_is_refused(tmp_path):
    (tmp_path / "wiki.test.raw").write_text(" = A = \n an <unk> word and an <unk> \n", encoding="utf-8")
    with pytest.raises(DataError, match="2 `<unk>`"):
        load_pages(tmp_path)


def test_overlap_warning_counts_retain_texts_of_the_pages():
    page = " = Title = \n the quick brown fox jumps over the lazy dog and runs home again . \n"
    other = "an entirely different sentence with more than eight words stands here"
    half = "the quick brown fox jumps over the lazy dog, but never"
    warning = overlap_warning([page, other, half, "= Title ="], [page])
    assert warning is not None
    assert warning.startswith("2 of 3")  # the heading is too short to count
    assert overlap_warning([other, "= Title ="], [page]) is None
    assert overlap_warning([], [page]) is None


# Counts and baselines of the real files, from their description.


@pytest.mark.parametrize(
    ("topic", "items", "letter", "longest"),
    [("bio", 1520, 0.256, 0.464), ("chem", 412, 0.286, 0.311), ("cyber", 2225, 0.271, 0.241)],
)
def test_wmdp_counts_and_baselines(topic, items, letter, longest):
    found = load_wmdp(topic, shared_data("wmdp"))
    assert found.num_available == items
    assert wmdp_release({topic: items}).startswith("old")
    assert frequent_letter_accuracy(found.questions) == pytest.approx(letter, abs=5e-4)
    assert longest_option_accuracy(found.questions) == pytest.approx(longest, abs=5e-4)


def test_mmlu_counts():
    found = load_mmlu(shared_data("mmlu"), with_shots=True)
    assert len(found.subjects) == 57
    assert [count for _, count in sorted(Counter(q.answer for q in found.questions).items())] == [
        3222,
        3462,
        3582,
        3776,
    ]
    assert {len(found.shots_of(subject, 5)) for subject in found.subjects} == {5}
    with pytest.raises(DataError, match="6 solved"):
        found.shots_of("virology", 6)


def test_wikitext_counts():
    pages = load_pages(shared_data("wikitext2")).pages
    assert len(pages) == 62
    assert sum(len(page.text.encode()) for page in pages) == 1_287_656
    assert sum(len(page.text.split()) for page in pages) == 241_211
