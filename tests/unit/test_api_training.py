"""The trainer: what it changes, keeps, refuses and writes."""

import json
import random

import pytest
import torch

from api_runs import FAST, FORGET, OTHER, RETAIN, rows, state, trainer
from falcon_unlearn import UnlearnConfig, UnlearnTrainer, load_recipe, run_pipeline, select_layers
from falcon_unlearn.errors import FalconError, NumericalError, PrerequisiteError, UsageError
from falcon_unlearn.events import TrainingStepped
from falcon_unlearn.runs import verify_manifest
from falcon_unlearn.selection.estimators import score_layers
from pico import pico_model, pico_tokenizer


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
