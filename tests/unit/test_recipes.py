"""Every file in recipes/ parses, plans and runs on a pico model of its architecture; its header is true."""

from __future__ import annotations

import json
import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from falcon_unlearn.cli.main import build_app
from falcon_unlearn.cli.options import RecipeOptions
from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import prepare_corpora
from falcon_unlearn.data.overlap import duplicate_positions
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.pipeline import plan_run, planning, run_pipeline
from falcon_unlearn.pipeline.pace import Pace
from pico_files import save_pico
from shared_data import shared_data

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes"
FILES = sorted(FOLDER.rglob("*.yaml"))
NAMES = [path.relative_to(FOLDER).as_posix() for path in FILES]
FAMILY_OF_MODEL = {
    "zephyr": "mistral",
    "mistral": "mistral",
    "yi-6b": "llama",
    "llama": "llama",
    "muse": "llama",
}
TOFU_ROWS = {"forget01": 40, "forget05": 200, "forget10": 400}
RETAINED = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
MUSE_ROWS = 857
ROWS_OF_PAPER = {
    **{f"wmdp/{model}": {"falcon", "rmu", "scrub"} for model in ("zephyr-7b", "yi-6b", "mistral-7b")},
    "muse-news": {"falcon", "npo", "simnpo", "rmu", "grad_ascent", "grad_diff"},
    "tofu": {"falcon", "grad_ascent", "grad_diff", "idk_dpo", "npo", "simnpo", "rmu"},
}
WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()
FILE = pytest.mark.parametrize("path", FILES, ids=NAMES)


def load(path: Path) -> Recipe:
    return load_recipe(path, {}, [], environment={})[0]


def family(recipe: Recipe) -> str:
    name = recipe.model.name.lower()
    return next(value for key, value in FAMILY_OF_MODEL.items() if key in name)


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines[: next_setting(lines)])


def next_setting(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if line and not line.startswith("#"))


def commands(text: str, name: str) -> list[list[str]]:
    """Return the words of every `falcon-unlearn NAME` in a text; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(rf"^(?:\w+:\s+)?(falcon-unlearn {name} --?.*)$", joined, re.MULTILINE)
    return [shlex.split(command)[1:] for command in found]


def recipe_of(words: list[str]) -> Recipe:
    """Return the recipe that a printed command loads; the application itself reads the words."""
    command, bound, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ == words[0]
    options: RecipeOptions = bound.arguments["options"]
    assert options.recipe is not None
    return load_recipe(
        ROOT / options.recipe,
        {"model.name": bound.arguments.get("model")},
        list(options.set),
        environment={},
    )[0]


def run_commands() -> list[tuple[Path, list[str]]]:
    return [(path, words) for path in FILES for words in commands(header(path), "run")]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_pico(folder / name, name) for name in ("llama", "mistral")}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file per kind of rows and per set, of about fifty tokens a row, each text different."""
    folder = tmp_path_factory.mktemp("texts")
    for number, name in enumerate(("forget0", "forget1", "retain0")):
        draw = random.Random(number)
        sentences = [f"{number}{row} {' '.join(draw.choices(WORDS, k=8))}." for row in range(12)]
        for kind, rows in (
            ("text", [{"text": text} for text in sentences]),
            ("question_answer", [{"question": t[:20], "answer": t[20:]} for t in sentences]),
        ):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{kind}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def reduced(recipe: Recipe, model: Path, texts: Path) -> Recipe:
    """Replace what is large: the model, the texts, the steps and the position in the model."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    values["model"]["name"] = str(model)
    for role in ("forget", "retain"):
        for number, corpus in enumerate(values["data"][role]):
            corpus["path"] = str(texts / f"{role}{number}-{corpus['format']}.jsonl")
            corpus |= {"subset": None, "split": "train"}
    values["data"]["minimum_tokens"] = 4
    values["train"] |= {"steps": 2, "batch_size": 2, "warmup_steps": min(1, values["train"]["warmup_steps"])}
    values["train"] |= {"layers": min(values["train"]["layers"], 4), "compute_dtype": "float32"}
    values["selection"]["layer"] = 3
    values["evaluation"]["resamples"] = 100
    values["runtime"]["device"] = "cpu"
    return Recipe.model_validate(values)


def one_per_method_and_family() -> list[Path]:
    chosen: dict[tuple[str, str], Path] = {}
    for path in FILES:
        recipe = load(path)
        chosen.setdefault((recipe.method, family(recipe)), path)
    return list(chosen.values())


RUN = one_per_method_and_family()


def test_every_row_of_the_paper_has_a_file():
    found: dict[str, set[str]] = {}
    for path, name in zip(FILES, NAMES, strict=True):
        method = load(path).method
        group = name.removesuffix(f"-{method}.yaml") if name.startswith("wmdp/") else name.split("/")[0]
        assert path.stem.endswith(method.replace("_", "-"))
        found.setdefault(group, set()).add(method)
    assert found == ROWS_OF_PAPER


@FILE
def test_settings_are_known_and_stay_as_written(path):
    # What is written must arrive: a misspelt key is refused, and a preset must not win over the file.
    recipe = load(path).model_dump(mode="json")

    def compare(written: Any, resolved: Any, place: str) -> None:
        if isinstance(written, dict):
            for key, value in written.items():
                compare(value, resolved[key], f"{place}.{key}")
        elif isinstance(written, list):
            assert len(written) == len(resolved)
            for number, value in enumerate(written):
                compare(value, resolved[number], f"{place}.{number}")
        else:
            assert (float(written) if isinstance(resolved, float) else written) == resolved, place

    compare(yaml.safe_load(path.read_text(encoding="utf-8")), recipe, "")


@FILE
def test_methods_on_states_fix_the_layer_and_the_window_fits(path):
    recipe = load(path)
    blocks = 16 if path.parent.name == "tofu" else 32
    if METHODS[recipe.method].acts_on == "states":
        assert recipe.selection.layer is not None and recipe.selection.layer < blocks
    else:
        assert recipe.train.parameters in ("all", "lora")


@FILE
def test_the_header_names_commands_numbers_and_gates(path):
    text = header(path)
    name = path.relative_to(ROOT).as_posix()
    runs, scores = commands(text, "run"), re.findall(r"falcon-unlearn bench (\S+) ", text)
    assert runs and all(name in words for words in runs)
    assert runs[0] == ["run", "--recipe", name, "--output", "out"]
    assert scores == [{"wmdp": "wmdp", "muse-news": "muse", "tofu": "tofu"}[path.parent.name]]
    assert re.search(r"[Pp]ublished", text) and "paper" in text
    if path.parent.name == "wmdp":
        assert "Gated: cais/wmdp-bio-forget-corpus" in text


@pytest.mark.parametrize(
    ("path", "words"),
    run_commands(),
    ids=[f"{p.parent.name}-{p.stem}-{i}" for i, (p, _) in enumerate(run_commands())],
)
def test_printed_commands_load(path, words):
    recipe = recipe_of(words)
    assert recipe.method == load(path).method


def test_commands_of_the_readme_load():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    found = commands(text, "run") + commands(text, "plan")
    assert len(found) == 2
    for words in found:
        recipe_of(words)


@pytest.mark.parametrize("path", sorted((FOLDER / "tofu").glob("*.yaml")), ids=lambda path: path.stem)
def test_tofu_commands_are_ten_epochs_of_each_split(path):
    rows = []
    for words in commands(header(path), "run"):
        recipe = recipe_of(words)
        (forget,), (retain,) = recipe.data.forget, recipe.data.retain
        per_epoch = TOFU_ROWS[forget.subset] / recipe.train.batch_size
        assert retain.subset == RETAINED[forget.subset]
        assert recipe.train.steps == math.ceil(10 * per_epoch)
        assert recipe.train.warmup_steps == math.ceil(per_epoch)
        assert recipe.data.holdout_share == 0
        size = next(size for size in ("1B", "3B") if f"-{size}-" in recipe.model.name)
        assert recipe.selection.layer == {("falcon", "3B"): 5, ("falcon", "1B"): 3}.get(
            (recipe.method, size), 7 if recipe.method == "rmu" else None
        )
        rows.append((size, forget.subset))
    assert sorted(rows) == sorted((size, split) for size in ("1B", "3B") for split in TOFU_ROWS)


@pytest.mark.parametrize("path", sorted((FOLDER / "muse-news").glob("*.yaml")), ids=lambda path: path.stem)
def test_muse_commands_are_ten_epochs(path):
    for words in commands(header(path), "run"):
        recipe = recipe_of(words)
        assert recipe.train.steps == math.ceil(10 * MUSE_ROWS / recipe.train.batch_size)
        assert recipe.data.holdout_share == 0


@pytest.mark.parametrize("path", sorted((FOLDER / "wmdp").glob("*.yaml")), ids=lambda path: path.stem)
def test_wmdp_reads_no_forget_document_twice(path):
    recipe = load(path)
    assert [corpus.name for corpus in recipe.data.forget] == ["bio", "cyber"]
    kept = 400 - int(400 * recipe.data.holdout_share)
    assert all(corpus.split == "train[:400]" for corpus in recipe.data.forget)
    assert recipe.train.steps * recipe.train.batch_size / 2 <= kept


@pytest.mark.parametrize("split", TOFU_ROWS)
def test_tofu_sets_have_the_rows_that_the_steps_assume(split):
    # Nothing may be dropped as repeated or overlapping either, so the corpora are prepared as a run does.
    settings = load(FOLDER / "tofu" / "npo.yaml").data
    local = [
        corpus.model_copy(update={"path": str(shared_data("tofu", f"{name}.json")), "subset": None})
        for corpus, name in ((settings.forget[0], split), (settings.retain[0], RETAINED[split]))
    ]
    settings = settings.model_copy(update={"forget": (local[0],), "retain": (local[1],)})
    encoded = EncodedExample(tuple(range(9)), (True,) * 9, "", False)
    data = prepare_corpora(settings, lambda _: encoded, seed=0)
    assert len(data.forget[0].training) == TOFU_ROWS[split]
    assert len(data.retain[0].training) == 4000 - TOFU_ROWS[split]


def test_muse_news_has_the_articles_that_the_steps_assume():
    path = shared_data("muse_news", "raw", "forget.json")
    corpus = load(FOLDER / "muse-news" / "npo.yaml").data.forget[0]
    loaded = load_examples(corpus.model_copy(update={"path": str(path), "subset": None, "split": "train"}))
    texts = [example.plain_text for example in loaded.examples]
    repeated = set(duplicate_positions(texts))
    distinct = [text for position, text in enumerate(texts) if position not in repeated and text.strip()]
    assert len(distinct) == MUSE_ROWS


def test_the_readme_lists_every_file_once_and_agrees_with_the_headers():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\S+\.yaml)\]\((\S+)\)(.*)\|$", text, re.MULTILINE)
    assert sorted(label for label, _, _ in rows) == NAMES
    for label, target, cells in rows:
        assert label == target
        words = " ".join(header(FOLDER / label).split())
        values = [cell.strip() for cell in cells.split("|")[1:] if re.match(r"\s*[-.\d]", cell)]
        joined = " / ".join(values) if label.startswith("wmdp") else None
        if label.startswith("muse"):
            joined = " / ".join(values[:3])
            assert all(value in words for value in values[3:])
        if joined is not None:
            assert joined in words, f"{label}: {joined}"
        else:
            assert all(value in words for value in values), label


@FILE
def test_every_recipe_plans(path, models, texts, monkeypatch):
    monkeypatch.setattr(planning, "measure_pace", lambda *_: Pace(1e9, 1e9, 1e-9, 0.0))
    recipe = reduced(load(path), models[family(load(path))], texts)
    plan = plan_run(recipe)
    assert plan.architecture == family(load(path))
    assert plan.steps == 2 and plan.trained_parameters > 0 and plan.warnings == []


@pytest.mark.parametrize("path", RUN, ids=[path.relative_to(FOLDER).as_posix() for path in RUN])
def test_each_method_runs_on_each_family(path, models, texts, tmp_path):
    recipe = reduced(load(path), models[family(load(path))], texts)
    if recipe.train.parameters == "lora":
        pytest.importorskip("peft")
    output = tmp_path / "out"
    summary = run_pipeline(recipe, output, typed_recipe="", command="")
    assert summary.training.method == recipe.method and summary.training.steps_done == 2
    assert (output / "model.safetensors").is_file()
    assert any(change.norm_change > 0 for change in summary.training.changes), "nothing was trained"
