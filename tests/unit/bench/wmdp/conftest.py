"""Invented questions and pages; no benchmark text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from falcon_unlearn.bench.wmdp.data import Question, QuestionSet
from falcon_unlearn.bench.wmdp.pages import Page, PageSet
from falcon_unlearn.models.access import LoadedModel, wrap_model
from pico import pico_model, pico_tokenizer

SUBJECTS = ("computer_security", "virology")


def invented_rows(number: int, seed: int = 0, subject: str | None = None) -> list[dict]:
    generator = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(
            "".join(generator.choices("abcdefgh", k=generator.randint(1, 6))) for _ in range(count)
        )

    rows = []
    for i in range(number):
        choices = [words(generator.randint(1, 4)) for _ in range(4)]
        row = {
            "question": f" {words(8)}? ",
            "choices": choices,
            "answer": generator.randrange(4),
            "subject": subject or SUBJECTS[i * 2 // number],
        }
        rows.append(row)
    return rows


def question_set(name: str, rows: list[dict], shots: list[dict] | None = None) -> QuestionSet:
    def convert(values: list[dict]) -> tuple[Question, ...]:
        return tuple(
            Question(i, row["subject"], row["question"], tuple(row["choices"]), row["answer"])
            for i, row in enumerate(values)
        )

    return QuestionSet(name, convert(rows), "invented", "0", len(rows), False, convert(shots or []))


@pytest.fixture
def make_rows():
    return invented_rows


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return wrap_model(pico_model("llama", max_position_embeddings=512), pico_tokenizer(), "pico", None)


@pytest.fixture
def mmlu() -> QuestionSet:
    return question_set("mmlu", invented_rows(24), invented_rows(8, seed=1))


@pytest.fixture
def wmdp_bio() -> QuestionSet:
    return question_set("wmdp_bio", invented_rows(20, seed=2, subject="biology"))


@pytest.fixture(scope="session")
def pages() -> PageSet:
    first = " = Glass Harp = \n\n = = Tuning = = \n"
    first += ' The " harp " has 1 @,@ 200 bowls ( of glass ) , tuned by ear . \n'
    second = " = Moss Garden = \n"
    second += " It 's a well @-@ kept garden ; visitors ' shoes stay outside . \n At 3 ° C , N moss . \n"
    return PageSet((Page(0, first * 4), Page(1, second)), "invented", "0", 2, False)


@pytest.fixture
def folders(tmp_path: Path, pages: PageSet) -> Path:
    """Folders wmdp, mmlu and wikitext in the layout of the benchmark data."""
    return write_folders(tmp_path, pages)


@pytest.fixture(scope="module")
def shared_folders(tmp_path_factory: pytest.TempPathFactory, pages: PageSet) -> Path:
    """Hold the same as `folders`, for tests that write nothing there."""
    return write_folders(tmp_path_factory.mktemp("wmdp"), pages)


def write_folders(place: Path, pages: PageSet) -> Path:
    for name in ("wmdp", "mmlu", "wikitext"):
        (place / name).mkdir()
    for seed, topic in enumerate(("bio", "chem", "cyber")):
        rows = invented_rows(6 + seed, seed=seed, subject=topic)
        for row in rows:
            del row["subject"]
        (place / "wmdp" / f"{topic}.json").write_text(json.dumps(rows), encoding="utf-8")
    for name, number in (("test", 12), ("dev", 8)):
        lines = [json.dumps(row) for row in invented_rows(number, seed=number)]
        (place / "mmlu" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = "".join(page.text for page in pages.pages).replace("\n\n", "\n")
    (place / "wikitext" / "wiki.test.raw").write_bytes(text.replace("\n", "\r\n").encode())
    return place
