"""The Python interface: settings, data sets in memory, the trainer, and lazy public names."""

import dataclasses
import json
import random
import subprocess
import sys

import pytest
import torch

import falcon_unlearn
from falcon_unlearn import Recipe, UnlearnConfig, UnlearnTrainer, load_recipe, run_pipeline, select_layers
from falcon_unlearn.api.datasets import MemoryData
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.errors import DataError, FalconError, NumericalError, PrerequisiteError, UsageError
from falcon_unlearn.events import TrainingStepped
from falcon_unlearn.runs import verify_manifest
from falcon_unlearn.selection.estimators import score_layers
from pico import pico_model, pico_tokenizer

WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()


def texts(seed, count=24):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 7))) + f" {seed}{n}." for n in range(count)]


FORGET, OTHER, RETAIN = texts(1), texts(2), texts(3, 30)
FAST = {"max_steps": 5, "per_device_train_batch_size": 4, "num_layers": 2, "layer": 3, "bf16": False,
        "objective": {"offset": {"directions": 4}}, "learning_rate": 1e-3}  # fmt: skip
CORPORA = {"forget": [{"name": "f", "path": "f.txt"}], "retain": [{"name": "r", "path": "r.txt"}]}


def trainer(model=None, forget=FORGET, retain=RETAIN, sink=None, eval_sets=None, tokenizer=True, **settings):
    return UnlearnTrainer(
        model if model is not None else pico_model("llama"),
        UnlearnConfig(**{**FAST, **settings}),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=pico_tokenizer() if tokenizer else None,
        eval_sets=eval_sets,
        sink=sink,
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Public names


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


def rows(values):
    return [{"text": value} for value in values]


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


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_training_changes_the_given_model_in_its_trained_tensors_only(family):
    model = pico_model(family)
    model.train()
    parameters = dict(model.named_parameters())
    for index, parameter in enumerate(parameters.values()):
        parameter.requires_grad_(index % 2 == 0)
        parameter.grad = torch.full_like(parameter, 0.5)
    before = state(model)
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    torch.manual_seed(3)
    random_states = (
        torch.get_rng_state(),
        random.getstate(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
    )
    made = trainer(model, forget={"one": FORGET, "two": OTHER})
    result = made.train()
    assert made.model is model
    assert result.domains == ["one", "two"]
    assert result.steps_done == 5
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(result.trained)
    assert {row.name: row.norm_change for row in result.changes} == pytest.approx(
        {name: float((after[name] - before[name]).double().norm()) for name in changed}, rel=1e-6
    )
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad == flags[name]
        assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))
        assert parameter.is_leaf
    assert all(module.training for module in model.modules())
    assert torch.equal(random_states[0], torch.get_rng_state())
    assert random_states[1:] == (random.getstate(), torch.get_num_threads(), torch.get_default_dtype())
    ids = torch.tensor([[5, 6, 7]])
    model.requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters())


def test_the_trainer_and_the_command_lines_pipeline_give_the_same_weights_bit_for_bit(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    pico_model("llama").save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    for name, values in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(values))), encoding="utf-8")
    overrides = {
        "model.name": str(folder),
        "data.forget": [{"name": "forget", "path": str(tmp_path / "forget.jsonl")}],
        "data.retain": [{"name": "retain", "path": str(tmp_path / "retain.jsonl")}],
        "selection.layer": 3,
        "objective.offset.directions": 4,
        "train": {
            "steps": 5,
            "batch_size": 4,
            "layers": 2,
            "compute_dtype": "float32",
            "learning_rate": 1e-3,
        },
    }
    recipe, typed = load_recipe(None, overrides, [], environment={})
    run_pipeline(recipe, tmp_path / "run", typed_recipe=typed, command="")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()

    in_memory = trainer(AutoModelForCausalLM.from_pretrained(folder), tokenizer=False)
    in_memory.train()
    assert in_memory.recipe.objective == recipe.objective
    assert in_memory.recipe.train == recipe.train
    by_name = trainer(str(folder), tokenizer=False, output_dir=tmp_path / "api")
    by_name.train()
    by_name.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "api").state_dict()
    for name, value in expected.items():
        assert torch.equal(in_memory.model.state_dict()[name], value), name
        assert torch.equal(by_name.model.state_dict()[name], value), name
        assert torch.equal(saved[name], value), name


def test_selection_is_used_by_training():
    made = trainer(layer=None, selection={"samples": 20, "resamples": 10, "candidates": (0.2, 0.9)}, seed=4)
    selection = made.select()
    assert not selection.fixed
    assert selection.samples == {"forget forget": 20, "retain": 20}
    assert made.select() is selection
    assert made.train().window == (selection.layer - 1, selection.layer)
    assert made.select() is selection


def test_events_reach_the_sink_thinned_by_logging_steps():
    events = []
    trainer(max_steps=7, logging_steps=3, sink=events.append).train()
    assert [event.step for event in events if isinstance(event, TrainingStepped)] == [3, 6, 7]
    assert any(not isinstance(event, TrainingStepped) for event in events)


def test_a_second_training_is_refused_and_a_new_trainer_goes_on_from_the_result():
    first = trainer()
    first.train()
    with pytest.raises(UsageError, match="trained already"):
        first.train()
    once = state(first.model)
    second = trainer(first.model).train()
    assert not torch.equal(once[second.trained[0]], first.model.state_dict()[second.trained[0]])


def test_a_diverged_run_gives_the_model_its_tensors_and_flags_back(tmp_path):
    model = pico_model("llama")
    before = state(model)
    made = trainer(model, learning_rate=1e6, output_dir=tmp_path / "out")
    with pytest.raises(NumericalError):
        made.train()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UsageError, match="nothing was trained"):
        made.save_model()
    assert list(tmp_path.iterdir()) == []


def quiz(name="quiz", **changes):
    items = [
        {"question": f"The word {n} is", "options": ["amber", "basil", "cedar", "delta"], "answer": n % 4}
        for n in range(6)
    ]
    return {"name": name, "role": "forget", "kind": "choice", "items": items, **changes}


def numbers(result):
    return {(s.name, m.name): m.value for s in result.sets for m in s.metrics}


def test_evaluation_before_and_after_and_of_the_original_afterwards():
    early = trainer(eval_sets=[quiz()])
    before = early.evaluate()
    assert before.label == "before"
    early.train()
    trained = state(early.model)
    after = early.evaluate()
    assert after.label == "after"
    assert all(torch.equal(trained[name], value) for name, value in early.model.state_dict().items())
    late = trainer(eval_sets={"quiz": {k: v for k, v in quiz().items() if k != "name"}})
    late.train()
    assert numbers(late.evaluate()) == numbers(after)
    assert numbers(late._before) == numbers(before)
    assert ("quiz", "accuracy_text") in numbers(after)
    drift = numbers(after)["forget (held out)", "divergence"]
    assert drift > 1e-5
    assert numbers(before)["forget (held out)", "divergence"] == 0


@pytest.mark.parametrize(
    ("eval_sets", "words"),
    [
        ([quiz(role="frget")], ["evaluation.sets.0.role", "eval_sets"]),
        (
            [quiz(items=[{"question": "q", "options": ["a"], "answer": 0}])],
            ["eval_sets[0]['items'][0]", "options"],
        ),
        ([quiz(items=[])], ["eval_sets[0]['items']", "empty"]),
        ([quiz(), quiz()], ["quiz", "twice"]),
        (["quiz.jsonl"], ["eval_sets[0]", "str"]),
    ],
)
def test_evaluation_sets_that_cannot_be_used_are_refused_at_once(eval_sets, words):
    with pytest.raises(FalconError) as caught:
        trainer(eval_sets=eval_sets)
    assert not [word for word in words if word not in caught.value.message], caught.value.message


def test_saved_folder_loads_and_holds_the_evidence(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = tmp_path / "deep" / "out"
    made = trainer(output_dir=output, eval_sets=[quiz()])
    made.evaluate()
    made.train()
    made.evaluate()
    assert made.save_model() == output
    again = AutoModelForCausalLM.from_pretrained(output)
    assert all(
        torch.equal(value, made.model.state_dict()[name]) for name, value in again.state_dict().items()
    )
    assert (
        AutoTokenizer.from_pretrained(output)("amber")["input_ids"] == pico_tokenizer()("amber")["input_ids"]
    )
    manifest = verify_manifest(output)
    assert {f"falcon/evaluation.{side}.json" for side in ("before", "after")} <= {
        f.name for f in manifest.files
    }
    assert manifest.command.startswith("UnlearnTrainer('LlamaForCausalLM', UnlearnConfig(")
    assert "max_steps=5" in manifest.command
    assert (output / "falcon" / "report.html").read_text(encoding="utf-8").count("<html") == 1
    typed = (output / "falcon" / "recipe.yaml").read_text(encoding="utf-8")
    assert "memory:forget/forget" in typed
    assert str(tmp_path) not in typed + manifest.command
    with pytest.raises(UsageError, match="in use"):
        made.save_model()
    assert made.save_model(tmp_path / "copy") == tmp_path / "copy"


def test_own_tokenizer_is_saved_with_a_model_given_by_name(tmp_path):
    from transformers import AutoTokenizer

    pico_model("llama").save_pretrained(tmp_path / "base")
    pico_tokenizer().save_pretrained(tmp_path / "base")
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    made = UnlearnTrainer(
        tmp_path / "base",
        UnlearnConfig(**FAST),
        forget_dataset=OTHER,
        retain_dataset=RETAIN,
        processing_class=tokenizer,
    )
    assert made.processing_class is tokenizer
    made.train()
    made.save_model(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template is None
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    assert verify_manifest(tmp_path / "out").base_weights_sha256.keys() == {"model.safetensors"}


def test_local_folders_stay_out_of_the_records(tmp_path):
    (tmp_path / "quiz.jsonl").write_text(json.dumps(quiz()["items"][0]) + "\n", encoding="utf-8")
    described = {k: v for k, v in quiz(path=str(tmp_path / "quiz.jsonl")).items() if k != "items"}
    made = trainer(evaluation={"sets": [described]})
    made.train()
    output = made.save_model(tmp_path / "out")
    for path in (output / "falcon").iterdir():
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    assert "quiz.jsonl" in (output / "falcon" / "recipe.yaml").read_text(encoding="utf-8")


def test_retain_text_can_be_sampled_from_the_model():
    model = pico_model("llama").train()
    made = trainer(model, retain="self", recipe={"data": {"self_samples": 20, "self_tokens": 16}})
    made.train()
    counts = made._workspace.data.result.corpora
    assert [(count.name, count.role, count.source) for count in counts][1] == ("retain", "retain", "self")
    assert counts[1].read == 20
    assert model.training


def test_output_folder_in_use_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="in use"):
        trainer(model="no/model", output_dir=tmp_path)
    made = trainer()
    made.train()
    with pytest.raises(UsageError, match="no output folder"):
        made.save_model()


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (["llama"], {}, ["model: got list", "transformers"]),
        (pico_model("llama"), {"tokenizer": False}, ["processing_class", "none was given"]),
        (pico_model("llama"), {"layer": 6}, ["selection.layer: got 6", "0 to 5"]),
        ("./no-such-folder", {}, ["no-such-folder", "does not exist"]),
    ],
)
def test_models_that_cannot_be_used(model, settings, words):
    with pytest.raises(FalconError) as caught:
        trainer(model, **settings)
    text = f"{caught.value.message} {caught.value.hint}"
    assert not [word for word in words if word not in text], text


def test_push_to_hub_needs_a_trained_model_and_the_network(monkeypatch, tmp_path):
    made = trainer()
    with pytest.raises(UsageError, match="nothing was trained"):
        made.push_to_hub("owner/name")
    made.train()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PrerequisiteError) as caught:
        made.push_to_hub("owner/name")
    assert caught.value.exit_code == 3
    with pytest.raises(UsageError, match="not a repository name"):
        made.push_to_hub("two/slashes/here")


def test_push_to_hub_uploads_the_whole_folder(monkeypatch, tmp_path):
    calls = []

    class Repository(str):
        repo_id = "owner/name"

    class FakeApi:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return Repository("address of owner/name")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, {path.name for path in folder_path.iterdir()}))

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    made = trainer()
    made.train()
    assert made.push_to_hub("owner/name") == "address of owner/name"
    assert calls[0] == ("owner/name", {"private": True, "exist_ok": True})
    assert {"config.json", "model.safetensors", "tokenizer.json", "falcon", "README.md"} <= calls[1][1]
    made.save_model(tmp_path / "out")
    (tmp_path / "out" / "note.txt").write_text("kept", encoding="utf-8")
    made.push_to_hub("owner/name", private=False)
    assert calls[2][1]["private"] is False
    assert "note.txt" in calls[3][1]


# Layer selection as a function


def test_select_layers_finds_the_layer_where_both_sets_are_alike():
    generator = torch.Generator().manual_seed(0)
    shifts = {0: 3.0, 1: 2.0, 2: 0.0, 3: 2.5}

    def activations(factor):
        return {
            layer: torch.randn(80, 6, generator=generator) + factor * shift for layer, shift in shifts.items()
        }

    forget, retain = activations(1.0), activations(0.0)
    chosen = select_layers(forget, retain)
    assert chosen.choice.layer == chosen.choice.best_layer == chosen.ranking.order[0] == 2
    assert chosen.scores == score_layers({"forget": forget}, retain)
    assert select_layers({"named": forget}, retain, candidates=(0, 1)).choice.layer == 1
    assert select_layers({"a": forget, "b": activations(1.0)}, retain).choice.layer == 2
