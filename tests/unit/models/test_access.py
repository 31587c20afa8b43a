from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import ModelError, PrerequisiteError, UsageError
from falcon_unlearn.models.access import (
    build_without_weights,
    load_model,
    load_tokenizer,
    pick_device,
    resolve_folder,
    wrap_model,
)
from pico import FAMILIES, pico_model, pico_tokenizer
from pico_files import save_pico, write_gguf

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 90, 33, 71, 12]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_pico(tmp_path_factory.mktemp("models") / "pico")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def load(name, **settings):
    return load_model(ModelSettings(name=str(name), **settings), CPU)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_folder_is_loaded_for_evaluation(folder):
    loaded = load(folder)
    assert torch.equal(logits(loaded.model), logits(pico_model("llama")))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert (loaded.folder, loaded.name, loaded.dtype) == (folder, str(folder), torch.float32)
    assert loaded.tokenizer("ab")["input_ids"] == [97, 98]
    assert loaded.structure.num_blocks == 6


def test_dtype_is_that_of_the_checkpoint_unless_asked_otherwise(folder, tmp_path):
    half = save_pico(tmp_path / "half", model=pico_model("llama").bfloat16())
    assert load(half).dtype == torch.bfloat16
    assert load(half, dtype="float32").dtype == torch.float32
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert build_without_weights(ModelSettings(name=str(half))).dtype == torch.bfloat16


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_folder(ModelSettings(name=f"~/{folder.name}")) == folder


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_without_weights_have_the_names_and_shapes_of_the_real_model(family, tmp_path):
    save_pico(tmp_path / family, family)
    bare = build_without_weights(ModelSettings(name=str(tmp_path / family)))
    real = load(tmp_path / family).model
    assert {n: p.shape for n, p in bare.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
    assert all(p.device.type == "meta" for p in bare.parameters())


def test_pickled_weights_are_refused_without_reading_them(copy):
    weights = copy / "model.safetensors"
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model\.bin\)") as caught:
        load(copy)
    assert "save_pretrained" in caught.value.hint


def test_a_folder_without_any_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(copy)


def test_a_folder_without_config_is_refused(copy):
    (copy / "config.json").unlink()
    with pytest.raises(UsageError, match=r"'copy' has no config\.json"):
        load(copy)


def test_a_file_that_is_not_gguf_is_refused(copy):
    with pytest.raises(UsageError, match=r"'config\.json' is a file but not a GGUF file"):
        load(copy / "config.json")


MISSING = [
    "./nope",
    "../nope",
    "~/nope-at-all",
    "/nope/at/all",
    "models/family/nope",
    "nope.gguf",
    "sub/nope.gguf",
]


@pytest.mark.parametrize(
    "function", [resolve_folder, load_tokenizer, build_without_weights], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", MISSING)
def test_what_can_only_be_a_path_and_is_missing_is_a_usage_error(name, function):
    with pytest.raises(UsageError, match="does not exist") as caught:
        function(ModelSettings(name=name))
    assert name in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "function", [resolve_folder, load_tokenizer, build_without_weights], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", ["nobody-at-all/nothing-here", "nothing-here"])
def test_a_hub_id_offline_is_a_missing_prerequisite_at_once(name, function):
    started = time.perf_counter()
    with pytest.raises(PrerequisiteError, match=name) as caught:
        function(ModelSettings(name=name))
    assert caught.value.exit_code == 3
    assert "local folder" in caught.value.hint
    assert time.perf_counter() - started < 10


def test_a_name_that_is_no_hub_id_is_a_usage_error():
    with pytest.raises(UsageError, match="neither a path nor a hub id"):
        resolve_folder(ModelSettings(name="no such: name"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(copy, value):
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.4.mlp.up_proj.weight"
    tensors[name][1, 2] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(copy)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(copy)


def test_tied_weights_stored_once_are_complete(tmp_path):
    loaded = load(save_pico(tmp_path / "tied", "gemma3"))
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight


def test_a_truncated_file_is_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: is truncated: 1000 bytes"):
        load(copy)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"model_type": "no-such-type"}',
        '{"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4}',
    ],
    ids=["syntax", "type", "sizes"],
)
@pytest.mark.parametrize(
    "function", [build_without_weights, lambda s: load_model(s, CPU)], ids=["plan", "load"]
)
def test_a_damaged_config_is_a_model_error(copy, content, function):
    (copy / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"'copy'|config\.json"):
        function(ModelSettings(name=str(copy)))


@pytest.mark.parametrize(
    "function", [build_without_weights, lambda s: load_model(s, CPU)], ids=["plan", "load"]
)
def test_a_model_that_is_no_causal_language_model_is_refused(copy, function):
    config = {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 4}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError):
        function(ModelSettings(name=str(copy)))


def test_a_folder_without_tokenizer_is_a_model_error(copy):
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError):
        load_tokenizer(ModelSettings(name=str(copy)))


def test_remote_code_is_not_run_unless_asked_for(copy):
    mark = copy / "was-run"
    (copy / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlamaConfig\nclass C(LlamaConfig): pass\n"
    )
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
    (copy / "config.json").write_text(json.dumps(config))
    for function in (build_without_weights, lambda s: load_model(s, CPU)):
        with pytest.raises(ModelError):
            function(ModelSettings(name=str(copy)))
    assert not mark.exists()


def test_gguf_file_gives_the_very_same_model(tmp_path):
    model = pico_model("llama")
    path = write_gguf(tmp_path / "pico.gguf", model)
    loaded = load(path, dtype="float32")
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.folder is None and loaded.name == str(path)
    assert loaded.tokenizer.decode(loaded.tokenizer("abc")["input_ids"]) == "abc"
    assert load(path).dtype == torch.bfloat16
    bare = build_without_weights(ModelSettings(name=str(path)))
    assert {n: p.shape for n, p in bare.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert (
        load_tokenizer(ModelSettings(name=str(path)))("abc")["input_ids"]
        == loaded.tokenizer("abc")["input_ids"]
    )


@pytest.mark.parametrize(
    "function", [build_without_weights, lambda s: load_model(s, CPU)], ids=["plan", "load"]
)
def test_a_file_that_only_looks_like_gguf_is_a_model_error(tmp_path, function):
    path = tmp_path / "fake.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match=r"fake\.gguf"):
        function(ModelSettings(name=str(path)))


@pytest.mark.skipif("FALCON_TEST_GGUF" not in os.environ, reason="FALCON_TEST_GGUF names no file")
def test_a_real_gguf_file_loads_and_predicts():
    loaded = load(os.environ["FALCON_TEST_GGUF"])
    ids = torch.tensor([loaded.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        best = int(loaded.model(ids).logits[0, -1].argmax())
    assert "Paris" in loaded.tokenizer.decode([best])


def test_devices():
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(PrerequisiteError, match="cuda:1"):
            pick_device("cuda:1")
        if not torch.backends.mps.is_available():
            assert pick_device("auto") == CPU
            with pytest.raises(PrerequisiteError, match="Metal"):
                pick_device("mps")


def test_a_model_in_memory_is_described():
    model, tokenizer = pico_model("phi3"), pico_tokenizer()
    loaded = wrap_model(model, tokenizer, "mine", None)
    assert (loaded.model, loaded.tokenizer, loaded.name, loaded.folder) == (model, tokenizer, "mine", None)
    assert (loaded.structure.model_type, loaded.dtype) == ("phi3", torch.float32)
