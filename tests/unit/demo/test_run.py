"""The recipe of the demo asks for what the issue promises, and its text can be used by the reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.config.preflight import check_files
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.demo import FORGET_DOMAINS, KEPT_SETS, run, write_demo_files
from falcon_unlearn.demo.run import CONTENT, demo_recipe, recipe_text, run_demo
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.runs import RECORDS


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    write_demo_files(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(content) -> Recipe:
    return demo_recipe("model", content, 3)


def texts(path: str) -> list[str]:
    return [json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_every_forget_sentence_of_both_domains_is_trained_on(recipe):
    assert [corpus.name for corpus in recipe.data.forget] == list(FORGET_DOMAINS)
    assert all(corpus.limit is None for corpus in recipe.data.forget)
    assert recipe.data.holdout_share == 0 and recipe.seed == 3 and recipe.selection.layer is None


def test_every_domain_is_measured_in_the_promised_forms(recipe):
    sets = recipe.evaluation.sets
    by_role = {(entry.role, entry.kind) for entry in sets}
    assert by_role >= {
        ("forget", "choice"),
        ("forget", "generation"),
        ("neighbour", "choice"),
        ("retain", "choice"),
        ("general", "perplexity"),
        ("retain", "divergence"),
    }
    named = {entry.name for entry in sets if entry.kind == "choice"}
    assert named >= {*FORGET_DOMAINS, *KEPT_SETS}
    by_letter = [
        entry for entry in sets if entry.kind == "choice" and recipe.evaluation.scores_letters(entry)
    ]
    assert [entry.role for entry in by_letter] == ["forget"]


def test_the_evaluation_files_are_valid_and_symbols_are_asked_whole(recipe):
    sets = {entry.settings.name: entry for entry in load_sets(recipe.evaluation, seed=0)}
    assert len({item.cluster for item in sets["symbols"].items}) >= 60
    assert all(entry.items for entry in sets.values())


def test_perplexity_is_measured_on_text_disjoint_from_the_retain_text(recipe):
    retained = {text for corpus in recipe.data.retain for text in texts(corpus.path)}
    measured = [entry for entry in recipe.evaluation.sets if entry.role == "general"]
    assert measured
    assert not any(retained & set(texts(entry.path)) for entry in measured)


def test_the_typed_recipe_loads_beside_its_content_and_means_the_same(recipe, content, tmp_path):
    records = tmp_path / RECORDS
    write_demo_files(records / CONTENT)
    typed = recipe_text(recipe, content)
    (records / "recipe.yaml").write_text(typed, encoding="utf-8")
    loaded, _ = load_recipe(records / "recipe.yaml", {"model.name": "model"}, [], environment={})
    expected = demo_recipe("model", records / CONTENT, 3)
    assert loaded == expected
    check_files(loaded.model_copy(update={"model": loaded.model.model_copy(update={"name": str(tmp_path)})}))
    assert str(content) not in typed and "/" + CONTENT not in typed


def test_the_demo_gives_the_pipeline_its_recipe_and_leaves_the_content(tmp_path, monkeypatch):
    seen = {}

    def pipeline(recipe, output, *, typed_recipe, command, sink, resume):
        seen.update(recipe=recipe, typed=typed_recipe, command=command, sink=sink)
        # The files are there while the pipeline runs.
        assert all(Path(corpus.path).is_file() for corpus in recipe.data.forget)
        (output / RECORDS).mkdir(parents=True)
        return "summary"

    events: list = []
    monkeypatch.setattr(run, "run_pipeline", pipeline)
    monkeypatch.setattr(run, "smollm2_folder", lambda sink: sink("fetched") or tmp_path / "weights")
    output = tmp_path / "new"
    assert run_demo(output, seed=5, sink=events.append, command="again") == "summary"
    assert events == ["fetched"] and seen["sink"] == events.append and seen["command"] == "again"
    assert seen["recipe"].seed == 5 and seen["recipe"].model.name == str(tmp_path / "weights")
    assert not Path(seen["recipe"].data.forget[0].path).exists()
    assert (output / RECORDS / CONTENT / "forget" / "symbols.jsonl").is_file()


def test_an_output_in_use_is_refused_before_anything_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(run, "smollm2_folder", lambda sink: pytest.fail("fetched first"))
    with pytest.raises(UsageError, match="in use"):
        run_demo(tmp_path)
