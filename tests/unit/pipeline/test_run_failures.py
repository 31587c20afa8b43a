from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import DataError, ModelError, NumericalError, PrerequisiteError, UsageError
from falcon_unlearn.events import TrainingStepped
from falcon_unlearn.models.access import wrap_model
from falcon_unlearn.objectives.falcon import FalconObjective
from falcon_unlearn.pipeline import run_loaded, run_pipeline, running, unlearn
from pico import pico_model, pico_tokenizer
from pico_files import save_pico


def execute(recipe, output, function=run_pipeline, sink=None):
    options = {"sink": sink} if sink else {}
    return function(
        recipe, output, typed_recipe="# typed\nseed: 0\n", command="falcon-unlearn run x", **options
    )


def nan_loss(monkeypatch):
    monkeypatch.setattr(
        FalconObjective, "forget_loss", lambda self, updated, batch: updated.sum() * float("nan")
    )


def write_failure(monkeypatch):
    def fail(*_args, **_kwargs):
        raise PrerequisiteError("the disk is full")

    monkeypatch.setattr(running, "write_model", fail)


def report_failure(monkeypatch):
    def fail(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(running, "render_report", fail)


BAD = [
    ("layer", {"selection": {"layer": 6}}, UsageError, "6, but the model has blocks 0 to 5"),
    ("depth", {"train": {"layers": 7}, "selection": {"layer": None}}, UsageError, "7, but the model has 6"),
    ("role", {"train": {"modules": ["mlp.sideways"]}}, UsageError, r"mlp\.sideways"),
    ("equal", {"data": {"retain": [{"name": "rest", "path": "COPY"}]}}, DataError, "same texts as the"),
    ("missing", {"data": {"retain": [{"name": "rest", "path": "nope.jsonl"}]}}, DataError, r"nope\.jsonl"),
    (
        "column",
        {"data": {"retain": [{"name": "rest", "path": "REST", "columns": {"text": "body"}}]}},
        DataError,
        "body",
    ),
    ("empty", {"data": {"minimum_tokens": 200}}, DataError, "nothing is left of 20 forget examples"),
    ("set", {"evaluation": {"sets": [{"name": "x", "role": "forget", "kind": "choice", "path": "no.jsonl"}]}},
     DataError, r"no\.jsonl does not exist"),
    ("model", {"model": {"name": "./no-such-model"}}, UsageError, "does not exist"),
    ("hub", {"model": {"name": "nobody-at-all/nothing-here"}}, PrerequisiteError, "nobody-at-all"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "error", "words"), BAD, ids=[case[0] for case in BAD])
@pytest.mark.parametrize("function", [run_pipeline, unlearn], ids=["run", "unlearn"])
def test_bad_input_is_one_clear_error_and_no_output(name, changes, error, words, function, bench, tmp_path):
    if name == "set" and function is unlearn:
        pytest.skip("unlearn measures nothing")
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(bench.path("trees.jsonl")).read_text())
    text = json.dumps(changes).replace("COPY", str(copy)).replace("REST", bench.path("rest.jsonl"))
    recipe = bench.recipe(**json.loads(text))
    with pytest.raises(error, match=words) as caught:
        execute(recipe, tmp_path / "deep" / "out", function)
    assert type(caught.value) is error
    assert caught.value.exit_code == (3 if error is PrerequisiteError else 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.jsonl"]


@pytest.mark.parametrize(
    ("poison", "error"),
    [(nan_loss, NumericalError), (write_failure, PrerequisiteError), (report_failure, ZeroDivisionError)],
    ids=["nan", "disk", "bug"],
)
def test_a_failure_at_any_stage_leaves_no_output_but_what_is_finished(
    poison, error, bench, tmp_path, monkeypatch
):
    with monkeypatch.context() as poisoned:
        poison(poisoned)
        with pytest.raises(error) as caught:
            execute(bench.bare(), tmp_path / "out")
    assert caught.value.__notes__ == [f"finished work is kept in {tmp_path / '.out.work'}"]
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]
    # The cause is gone: the same call goes on, and leaves nothing but the output.
    execute(bench.bare(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_leaves_no_output_but_what_is_finished(bench, tmp_path):
    def interrupt(event):
        if isinstance(event, TrainingStepped):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(bench.bare(), tmp_path / "out", sink=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]


def test_after_a_failure_a_model_in_memory_is_the_original(bench, tmp_path, monkeypatch):
    nan_loss(monkeypatch)
    model = pico_model("llama").requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(NumericalError, match="forget loss"):
        run_loaded(wrap_model(model, pico_tokenizer(), "mine", None), bench.bare(), tmp_path / "out")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_output_folder_in_use_is_refused_before_anything_is_loaded(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "open_workspace", lambda *_: pytest.fail("loaded"))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="output folder in use"):
        execute(bench.bare(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_model_of_experts_is_refused_with_the_name_of_its_container(bench, tmp_path):
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    source = save_pico(tmp_path / "in", model=transformers.MixtralForCausalLM(config))
    with pytest.raises(ModelError, match="experts"):
        execute(bench.bare(model={"name": str(source)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_text_with_a_token_beyond_the_embedding_is_refused_by_name(tmp_path):
    tokenizer = pico_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    save_pico(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "f.txt").write_text("an <image> of amber\nbasil and cedar grow\ndelta and ember glow\n")
    (tmp_path / "r.txt").write_text("fjord and grove stay\nheron and inlet stay\njasper and kelp stay\n")
    data = {kind: [{"name": kind, "path": str(tmp_path / f"{kind[0]}.txt")}] for kind in ("forget", "retain")}
    recipe = {"model": {"name": str(tmp_path / "model")}, "data": data, "runtime": {"device": "cpu"}}
    with pytest.raises(DataError, match=r"forget: an <image>.*id 128, the embedding has 128 rows"):
        execute(Recipe.model_validate(recipe), tmp_path / "out", unlearn)
    assert not (tmp_path / "out").exists()
