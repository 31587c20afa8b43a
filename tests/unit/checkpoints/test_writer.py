from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from falcon_unlearn.checkpoints.writer import shards_of, tensor_locations, write_checkpoint
from falcon_unlearn.errors import ModelError
from pico import FAMILIES, pico_model, pico_tokenizer
from pico_files import save_pico

IDS = torch.tensor([[5, 90, 33, 71, 12]])
NAMES = ["model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def changed_tensors(model, names=NAMES):
    """Change the named parameters of the model in place and return them."""
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in names:
            parameters[name] += torch.randn(parameters[name].shape, generator=generator).to(
                parameters[name].dtype
            )
    return {name: parameters[name].detach() for name in names}


def write(tmp_path, source, model, changed):
    destination = tmp_path / "out"
    destination.mkdir()
    write_checkpoint(destination, changed, source=source, model=model, tokenizer=pico_tokenizer())
    return destination


def weight_files(folder):
    return sorted(path.name for path in folder.iterdir() if ".safetensors" in path.name)


def read_all(folder):
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.mark.parametrize("family", ["llama", "gemma3"], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "shards"])
def test_the_folder_loads_to_the_model_in_memory(family, dtype, sharded, tmp_path):
    options = {"max_shard_size": "40KB"} if sharded else {}
    source = save_pico(tmp_path / "in", model=pico_model(family).to(dtype), **options)
    # Loaded, not converted: conversion would round the rotary frequencies too.
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    changed = changed_tensors(model)
    destination = write(tmp_path, source, model, changed)
    loaded, info = AutoModelForCausalLM.from_pretrained(destination, dtype="auto", output_loading_info=True)
    assert loaded.dtype == dtype
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(model))
    assert AutoTokenizer.from_pretrained(destination)("ab")["input_ids"] == [97, 98]
    # On disk: the changed tensors exactly, all others untouched, tied ones stored once as before.
    before, after = read_all(source), read_all(destination)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, changed.get(name, before[name]))
        assert torch.equal(tensor, before[name]) == (name not in NAMES)
    assert weight_files(source) == weight_files(destination)
    assert (len(weight_files(source)) > 2) == sharded


def test_untouched_shards_and_all_other_files_are_copied_byte_by_byte(tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model, max_shard_size="40KB")
    for name in ("chat_template.jinja", "LICENSE", "NOTICE.md", "vocab.txt", "tokenizer.model"):
        (source / name).write_text(name)
    touched = set(shards_of(source, dict.fromkeys(NAMES)))
    destination = write(tmp_path, source, model, changed_tensors(model))
    copied = [path for path in source.iterdir() if path.name not in touched]
    assert len(touched) < len(list(source.glob("*.safetensors"))) and len(copied) > 8
    for path in copied:
        assert (destination / path.name).read_bytes() == path.read_bytes(), path.name
    for name in touched:
        assert (destination / name).read_bytes() != (source / name).read_bytes()


def test_the_header_of_a_rewritten_file_keeps_its_metadata(tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model)
    tensors = load_file(source / "model.safetensors")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt", "note": "kept"})
    destination = write(tmp_path, source, model, changed_tensors(model))
    with safe_open(destination / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_files_that_are_not_the_models_stay_behind(tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model)
    (source / "README.md").write_text("card of the base model")  # merged into ours by the caller
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "training_args.bin").write_bytes(b"pickle")
    (source / "original").mkdir()
    (source / "original" / "consolidated.00.pth").write_bytes(b"pickle")
    destination = write(tmp_path, source, model, changed_tensors(model))
    names = {path.name for path in destination.rglob("*")}
    assert not names & {
        "README.md",
        "pytorch_model.bin",
        "training_args.bin",
        "original",
        "consolidated.00.pth",
    }


@pytest.mark.parametrize("sharded", [False, True])
def test_a_second_copy_of_the_weights_does_not_carry_the_old_ones_along(sharded, tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model, **({"max_shard_size": "40KB"} if sharded else {}))
    other = {name.replace("model.", "m."): tensor for name, tensor in read_all(source).items()}
    save_file(other, source / "consolidated.safetensors")
    (source / "consolidated.safetensors.index.json").write_text("{}")
    old = {name: tensor.clone() for name, tensor in read_all(source).items()}
    destination = write(tmp_path, source, model, changed_tensors(model))
    assert not list(destination.glob("consolidated*"))
    for tensor in read_all(destination).values():
        assert not any(torch.equal(tensor, old[name]) for name in NAMES if old[name].shape == tensor.shape)


def test_where_a_single_file_and_shards_lie_together_the_one_that_loads_is_changed(tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model, max_shard_size="40KB")
    save_file(read_all(source), source / "model.safetensors", metadata={"format": "pt"})
    destination = write(tmp_path, source, model, changed_tensors(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(destination)), logits(model))
    assert weight_files(destination) == ["model.safetensors"]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_on_disk_are_those_of_the_parameters_in_every_family(family, tmp_path):
    model = pico_model(family)
    source = save_pico(tmp_path / "in", model=model)
    stored = tensor_locations(source)
    inside = {name for name, _ in model.named_parameters() if ".layers." in name}
    assert inside <= set(stored)


def test_without_a_source_folder_the_whole_model_is_saved(tmp_path):
    model = pico_model("llama")
    destination = write(tmp_path, None, model, changed_tensors(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(destination)), logits(model))
    assert AutoTokenizer.from_pretrained(destination)("ab")["input_ids"] == [97, 98]


@pytest.mark.parametrize("unsafe", ["../evil.safetensors", "/etc/evil.safetensors", "sub/evil.safetensors"])
def test_an_index_that_points_outside_is_refused_and_nothing_is_written_there(unsafe, tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model, max_shard_size="40KB")
    index_path = source / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["weight_map"][NAMES[0]] = unsafe
    index_path.write_text(json.dumps(index))
    (tmp_path / "evil.safetensors").write_bytes(b"mine")
    with pytest.raises(ModelError, match="outside the model folder"):
        write(tmp_path, source, model, changed_tensors(model))
    assert (tmp_path / "evil.safetensors").read_bytes() == b"mine"
    assert not list((tmp_path / "out").iterdir())


def test_a_tensor_under_another_name_is_an_error_before_anything_is_written(tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model)
    with pytest.raises(ModelError, match=r"no tensor named 'model\.layers\.9\.x'") as caught:
        write(tmp_path, source, model, changed_tensors(model) | {"model.layers.9.x": torch.zeros(2)})
    assert "save_pretrained" in caught.value.hint
    assert not list((tmp_path / "out").iterdir())


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    model = pico_model("llama")
    source = save_pico(tmp_path / "in", model=model)
    with pytest.raises(ModelError, match=r"\[32, 48\] on disk and \[48, 32\] in the model"):
        write(tmp_path, source, model, {NAMES[0]: torch.zeros(48, 32)})


def test_locations_are_read_from_headers_and_index(tmp_path):
    model = pico_model("llama")
    single = save_pico(tmp_path / "single", model=model)
    assert set(tensor_locations(single).values()) == {"model.safetensors"}
    sharded = save_pico(tmp_path / "sharded", model=model, max_shard_size="40KB")
    found = tensor_locations(sharded)
    for path in Path(sharded).glob("*.safetensors"):
        assert {name for name, shard in found.items() if shard == path.name} == set(load_file(path))
