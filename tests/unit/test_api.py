"""The Python interface: settings, data sets in memory, the trainer, and lazy public names."""

import dataclasses
import subprocess
import sys

import pytest

import falcon_unlearn
from api_runs import CORPORA, FORGET, WORDS, rows, trainer
from falcon_unlearn import Recipe, UnlearnConfig
from falcon_unlearn.api.datasets import MemoryData
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.errors import DataError, UsageError


def test_import_loads_no_torch_and_leaves_global_state_alone():
    code = (
        "import random, sys; random.seed(5); before = random.getstate(); import falcon_unlearn; "
        "falcon_unlearn.UnlearnConfig(max_steps=3); falcon_unlearn.Recipe; falcon_unlearn.load_recipe; "
        "falcon_unlearn.render_report; assert random.getstate() == before; "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves_and_is_listed():
    for name in falcon_unlearn.__all__:
        assert getattr(falcon_unlearn, name) is not None
        assert name in dir(falcon_unlearn)
    assert set(falcon_unlearn._HOMES) | {"__version__"} == set(falcon_unlearn.__all__)
    with pytest.raises(AttributeError, match="unlern"):
        _ = falcon_unlearn.unlern


# Settings


def test_defaults_are_those_of_the_recipe():
    ours = UnlearnConfig().to_recipe("m", **CORPORA)
    assert ours == Recipe.model_validate({"model": {"name": "m"}, "data": CORPORA})


@pytest.mark.parametrize(
    ("field", "value", "path", "expected"),
    [
        ("learning_rate", 1e-3, "train.learning_rate", 1e-3),
        ("learning_rate", "auto", "train.learning_rate", "auto"),
        ("max_steps", 7, "train.steps", 7),
        ("per_device_train_batch_size", 3, "train.batch_size", 3),
        ("seed", 11, "seed", 11),
        ("weight_decay", 0.1, "train.weight_decay", 0.1),
        ("warmup_steps", 2, "train.warmup_steps", 2),
        ("optim", "adamw_torch", "train.optimizer", "adamw"),
        ("optim", "sign_momentum", "train.optimizer", "sign_momentum"),
        ("bf16", True, "train.compute_dtype", "bfloat16"),
        ("bf16", False, "train.compute_dtype", "float32"),
        ("max_length", 64, "data.maximum_tokens", 64),
        ("completion_only_loss", True, "data.loss_on", "answer"),
        ("completion_only_loss", False, "data.loss_on", "all"),
        ("method", "falcon", "method", "falcon"),
        ("layer", 9, "selection.layer", 9),
        ("num_layers", 1, "train.layers", 1),
        ("modules", ["mlp.up"], "train.modules", ("mlp.up",)),
        ("max_retain_drift", 0.2, "train.maximum_retain_drift", 0.2),
        ("selection", {"samples": 20, "maximum_components": None}, "selection.maximum_components", None),
        ("objective", {"offset": {"directions": 3}}, "objective.offset.directions", 3),
        ("objective", {"offset.directions": 3}, "objective.offset.directions", 3),
        ("objective", ObjectiveSettings(temperature=0.3), "objective.temperature", 0.3),
        ("evaluation", {"letter": False}, "evaluation.letter", False),
        ("recipe", {"train.relative_step": 0.5}, "train.relative_step", 0.5),
        ("recipe", {"data": {"forget.0.weight": 2}}, "data.forget.0.weight", 2.0),
    ],
)
def test_each_field_reaches_its_place(field, value, path, expected):
    found = UnlearnConfig(**{field: value}).to_recipe("m", **CORPORA)
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == expected


def test_what_is_given_wins_over_the_preset_even_where_it_equals_the_default():
    preset = UnlearnConfig(preset="reference").to_recipe("m", **CORPORA)
    assert (preset.train.steps, preset.selection.layer) == (80, 7)
    default = Recipe.model_validate({"model": {"name": "m"}, "data": CORPORA}).train.steps
    given = UnlearnConfig(preset="reference", max_steps=default).to_recipe("m", **CORPORA)
    assert given.train.steps == default != 80
    assert given.objective == preset.objective


def test_every_field_is_either_a_recipe_setting_or_the_trainers_own():
    from falcon_unlearn.api.config import _RECIPE_KEYS

    own = {"output_dir", "logging_steps", "report_to"}
    assert {field.name for field in dataclasses.fields(UnlearnConfig)} == own | set(_RECIPE_KEYS)


def test_numbers_of_numpy_are_numbers():
    import numpy

    config = UnlearnConfig(max_steps=numpy.int64(4), learning_rate=numpy.float32(0.5))
    assert config.to_recipe("m", **CORPORA).train.steps == 4
    assert "steps: 4\n" in config.typed_recipe("m", **CORPORA)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim": "adam9"}, ["train.optimizer", "adam9", "UnlearnConfig.optim", "adamw"]),
        ({"max_steps": 0}, ["train.steps", "got 0", "UnlearnConfig.max_steps", ">= 1"]),
        ({"max_steps": "5"}, ["train.steps", "'5'", "an integer"]),
        ({"bf16": "yes"}, ["train.compute_dtype", "'yes'", "UnlearnConfig.bf16"]),
        ({"learning_rate": -1.0}, ["learning_rate must be positive"]),
        ({"learning_rate": float("nan")}, ["train.learning_rate", "finite"]),
        ({"layer": 1, "num_layers": 3}, ["selection.layer=1", "train.layers asks for 3"]),
        (
            {"objective": {"ofset": {}, "temprature": 1}},
            ["objective.temprature", "unknown key", "objective.temperature"],
        ),
        ({"objective": 3}, ["objective", "3", "a mapping"]),
        ({"objective": {"temperature": object()}}, ["neither a number"]),
        ({"recipe": {"train.stepps": 3}}, ["train.stepps", "train.steps"]),
        ({"recipe": {"train.steps": 3}, "max_steps": 4}, ["train.steps", "given as 4", "and as 3"]),
        ({"method": "ga"}, ["method", "'ga'", "falcon"]),
        ({"report_to": "wandb"}, ["report_to", "wandb", "none"]),
        ({"logging_steps": 0}, ["logging_steps", "got 0", ">= 1"]),
        ({"output_dir": 5}, ["output_dir", "5", "a path"]),
        ({"modules": []}, ["modules is empty"]),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(settings, words):
    with pytest.raises(UsageError) as caught:
        UnlearnConfig(**settings)
    text = f"{caught.value.message} {caught.value.hint}"
    assert not [word for word in words if word not in text], text


# Data sets in memory


def test_all_forms_of_a_data_set_hold_the_same_examples(tmp_path):
    import datasets

    path = tmp_path / "forget.txt"
    path.write_text("\n".join(FORGET), encoding="utf-8")
    forms = [FORGET, tuple(FORGET), rows(FORGET), datasets.Dataset.from_list(rows(FORGET)), iter(FORGET),
             str(path), path]  # fmt: skip
    hashes = set()
    for form in forms:
        for named in (form,) if form is forms[4] else (form, {"chosen": form}):
            memory = MemoryData()
            corpora = memory.add_corpora(named, "forget")
            recipe = UnlearnConfig().to_recipe("m", forget=corpora, retain=CORPORA["retain"])
            assert recipe.data.forget[0].name == ("forget" if named is form else "chosen")
            memory.load_all(recipe.data.model_copy(update={"retain": ()}))
            hashes.add(memory.load(recipe.data.forget[0]).sha256)
    assert len(hashes) == 1


def test_columns_and_weights_of_sets_in_memory_follow_the_recipe():
    questions = [{"ask": f"What is {word}?", "say": word} for word in WORDS]
    made = trainer(
        forget={"quiz": questions},
        recipe={"data.forget.0.columns": {"question": "ask", "answer": "say"}, "data.forget.0.weight": 3},
    )
    assert made.recipe.data.forget[0].weight == 3
    assert made._memory.load(made.recipe.data.forget[0]).examples[1].completion == "basil"


class Frame:
    columns = ("text",)

    def to_dict(self, orient):
        return []

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ([], ["forget_dataset", "empty"]),
        ({}, ["forget_dataset", "empty"]),
        ({"a": FORGET, "b": []}, ["forget_dataset['b']", "empty"]),
        (5, ["forget_dataset", "int"]),
        (b"bytes", ["forget_dataset", "bytes"]),
        ([1, 2], ["forget_dataset[0]", "a number"]),
        ([*rows(FORGET), {"txt": "x"}], ["forget_dataset[24]", "`text` is missing"]),
        ([{"txt": "x"}], ["forget_dataset[0]", "`txt`", "close to `text`"]),
        ({"text": FORGET}, ["forget_dataset", "columns", "list of rows"]),
        ({"question": "q", "answer": "a"}, ["columns", "list of rows"]),
        (Frame(), ["forget_dataset", "Frame", "to_dict('records')"]),
        ("no-such-file.jsonl", ["forget", "no-such-file.jsonl"]),
        ({"bad name!": FORGET}, ["data.forget.0.name", "bad name!", "forget_dataset"]),
        ("self", ["`self` can only be a retain set"]),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_the_model_is_loaded(forget, words):
    with pytest.raises((DataError, UsageError)) as caught:
        trainer(model="no/model", forget=forget)
    text = f"{caught.value.message} {caught.value.hint}"
    assert not [word for word in words if word not in text], text
    assert caught.value.exit_code == 2


def test_forget_equal_to_retain_is_refused():
    with pytest.raises(DataError, match="same texts"):
        trainer(retain=list(reversed(FORGET))).train()


# The trainer
