"""Model folders of strangers: damage is an error that names the file, before memory is taken or code runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import FalconError, ModelError, UsageError
from falcon_unlearn.models import access
from falcon_unlearn.models.access import build_without_weights, load_model, load_tokenizer
from falcon_unlearn.models.safety import folder as folder_module
from falcon_unlearn.models.safety.files import refuse_changed
from pico import pico_model
from pico_files import save_pico

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


def load(name, **settings):
    return load_model(ModelSettings(name=str(name), **settings), CPU)


def refused(name, *words: str, **settings) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(name, **settings)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in caught.value.message
    return caught.value


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


class Bomb:
    """Create a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_a_pickle_is_never_opened(folder, tmp_path, name):
    """Test 1: alone it is refused, with the converter named."""
    marker = tmp_path / "was-run"
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    error = refused(folder, f"pickled weights ({name})")
    assert "save_pretrained" in error.hint
    assert not marker.exists()


def test_a_pickle_beside_good_weights_stays_closed(folder, tmp_path):
    marker = tmp_path / "was-run"
    for name in ("pytorch_model.bin", "training_args.bin", "rng_state.pth", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    load(folder)
    assert not marker.exists()
    with pytest.raises(TypeError):  # The bomb works: the marker would be there.
        pickle.loads((folder / "pytorch_model.bin").read_bytes()).close()
        raise TypeError
    assert marker.exists()


@pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model.safetensors"])
@pytest.mark.parametrize("complete", [True, False], ids=["inside a model", "alone"])
def test_an_adapter_is_refused_with_its_base(folder, tmp_path, weights, complete):
    """Tests 1 and 8: transformers would load it, or even the base that it names."""
    marker = tmp_path / "was-run"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    (folder / weights).write_bytes(pickle.dumps(Bomb(marker)))
    if not complete:
        (folder / "config.json").unlink()
    for function in (load, lambda name: load_tokenizer(ModelSettings(name=str(name)))):
        with pytest.raises(ModelError, match="adapter") as caught:
            function(folder)
        assert "'evil/base'" in caught.value.message
        assert "merge_and_unload" in caught.value.hint
    assert not marker.exists()


def test_truncated_weights_are_refused_at_every_block(folder):
    """Test 2, through the front door: never a model with invented weights."""
    whole = (folder / WEIGHTS).read_bytes()
    for cut in [0, 4, 8, *range(4096, len(whole), 16 * 4096), len(whole) - 1]:
        (folder / WEIGHTS).write_bytes(whole[:cut])
        refused(folder, WEIGHTS)
    (folder / WEIGHTS).write_bytes(whole + b"\0")
    refused(folder, WEIGHTS, "1 bytes behind its last tensor")


NAME = "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[NAME].view(-1)[7:8].fill_(float("nan")), [NAME, "not finite"]),
        (lambda t: t[NAME].view(-1)[7:8].fill_(float("-inf")), [NAME, "not finite"]),
        (lambda t: t.pop(NAME), [NAME, "missing"]),
        (lambda t: t.update(more=torch.ones(2)), ["'more'", "does not use"]),
        (lambda t: t.update({NAME: t[NAME].T.contiguous()}), [NAME, "[32, 48]", "[48, 32]"]),
        (lambda t: t.update({NAME: t[NAME].to(torch.int32)}), [NAME, "I32"]),
        (lambda t: t.update({NAME: t[NAME].to(torch.float8_e4m3fn)}), [NAME, "F8_E4M3"]),
    ],
    ids=["nan", "inf", "missing", "extra", "shape", "integers", "quantised"],
)
def test_a_wrong_tensor_is_refused_by_name(folder, change, words):
    """Tests 3 and 4."""
    change_weights(folder, change)
    refused(folder, *words)


def test_buffers_of_older_versions_are_tolerated(folder):
    change_weights(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    load(folder)


@pytest.fixture
def sharded(tmp_path) -> Path:
    return save_pico(tmp_path / "sharded", max_shard_size="60KB")


def change_index(folder: Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "/evil.safetensors", "a/b.safetensors", "..\\evil.safetensors",
     "C:evil.safetensors", "evil.bin", ".hidden.safetensors", "x\n.safetensors", 7, None, ["x"]],
)  # fmt: skip
def test_an_index_that_leads_outside_is_refused(sharded, name):
    """Test 5: also when the file it names exists and is a good one."""
    (sharded.parent / "evil.safetensors").write_bytes(next(sharded.glob("model-*1-of*")).read_bytes())
    change_index(sharded, lambda shards: shards.update({NAME: name}))
    refused(sharded, "shard index names", "outside")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(NAME), [NAME, "does not name"]),
        (lambda s: s.update(ghost=s[NAME]), ["ghost", "lacks"]),
        (lambda s: s.update({NAME: next(v for v in s.values() if v != s[NAME])}), [NAME, "index places in"]),
        (lambda s: s.update({NAME: "other.safetensors"}), ["other.safetensors", "is missing"]),
        (lambda s: s.clear(), ["no weight_map"]),
    ],
    ids=["unnamed", "ghost", "moved", "absent", "empty"],
)  # fmt: skip
def test_index_and_shards_must_agree(sharded, change, words):
    load(sharded)
    change_index(sharded, change)
    refused(sharded, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "1000000000"]),
        ({"num_hidden_layers": 2000}, ["num_hidden_layers", "hold 57 tensors"]),
        ({"num_hidden_layers": 7}, ["parameters", "hold"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 1.5}, ["num_hidden_layers", "whole number"]),
        ({"hidden_size": -32}, ["hidden_size", "'-32'"]),
        ({"hidden_size": 10**12}, ["hidden_size"]),
        ({"hidden_size": 2**28, "vocab_size": 2**28}, ["model"]),
        ({"hidden_size": 64}, ["the shape", "[128, 32]", "[128, 64]"]),
        ({"vocab_size": 10**6}, ["the shape"]),
        ({"num_attention_heads": 0}, ["model"]),
        ({"num_key_value_heads": 0}, ["model"]),
        ({"num_local_experts": 10**9}, ["num_local_experts"]),
        (
            {"num_local_experts": 16000, "num_hidden_layers": 57},
            ["num_local_experts", "layers times experts"],
        ),
        ({"max_position_embeddings": 2**70}, ["max_position_embeddings", "64-bit"]),
        ({"layer_types": ["full_attention"] * 200_000}, ["layer_types"]),
        ({"model_type": "falcon-nothing"}, ["falcon-nothing"]),
        ({"text_config": {"num_hidden_layers": 10**9}}, ["text_config.num_hidden_layers"]),
        ({"attn_implementation": "evil/kernel"}, ["attn_implementation", "evil/kernel"]),
        ({"_attn_implementation": "evil/kernel@main:run"}, ["_attn_implementation"]),
        ({"dtype": "load"}, ["dtype", "'load'"]),
        ({"torch_dtype": "int8"}, ["torch_dtype"]),
        ({"transformers_weights": "../evil.safetensors"}, ["transformers_weights"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantization_config"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, dict) else "",
)
def test_a_hostile_config_is_refused_before_memory_is_taken(folder, changes, words, monkeypatch):
    """Test 6."""
    monkeypatch.setattr(access, "_check_finite", lambda model: pytest.fail("weights were loaded"))
    change_config(folder, **changes)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b"\xff\xfe{}", "no UTF-8"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_broken_json_is_refused_by_file_name(folder, name, content, words):
    (folder / name).write_bytes(content)
    refused(folder, name, words)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt"])
def test_a_huge_file_is_refused_by_its_size(folder, name, monkeypatch):
    """Test 6: 100 MB of configuration, sparse here; nothing of it is read."""
    monkeypatch.setattr(folder_module, "MAXIMUM_TOKENIZER_BYTES", 1 << 20)
    with (folder / name).open("wb") as file:
        file.truncate(100_000_000)
    refused(folder, name, "bytes")


def evil_code(folder: Path, model_type: str) -> Path:
    marker = folder.parent / "was-run"
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'evil'\nclass M(LlamaForCausalLM):\n    config_class = C\n"
    )
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    change_config(folder, model_type=model_type, auto_map=code)
    return marker


def test_code_of_an_unknown_architecture_is_refused_with_the_flag_named(folder):
    marker = evil_code(folder, "evil")
    error = refused(folder, "auto_map", "not run")
    assert "trust_remote_code" in error.hint and "revision" in error.hint
    assert not marker.exists()


def test_code_beside_a_known_architecture_never_runs(folder):
    marker = evil_code(folder, "llama")
    assert load(folder).structure.num_blocks == 6
    assert not marker.exists()


def test_code_runs_when_the_user_says_so(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = evil_code(folder, "evil")
    assert load(folder, trust_remote_code=True).structure.num_blocks == 6
    assert marker.exists()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc", "A" * 40])
def test_code_from_the_hub_needs_a_pinned_commit(revision):
    settings = ModelSettings(name="owner/name", trust_remote_code=True, revision=revision)
    for function in (build_without_weights, load_tokenizer):
        with pytest.raises(UsageError, match="pinned commit"):
            function(settings)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(folder):
    """Test 7."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["\u00e9"] = 128
    path.write_text(json.dumps(content))
    refused(folder, "token ids up to 128", "128 rows")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("model"),
        lambda c: c["model"].update(type="Nothing"),
        lambda c: c["model"].update(vocab=[1, 2]),
        lambda c: c.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}
        ),
        lambda c: c.update(added_tokens=[{"id": -1}]),
    ],
)
def test_a_tokenizer_that_the_library_cannot_read_is_refused(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refused(folder, "tokenizer")


def test_a_model_that_is_a_file_a_loop_or_a_pipe_is_refused(folder, tmp_path):
    """Test 9."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    for name in ("loop", "pipe", "file"):
        with pytest.raises(FalconError) as caught:
            load(tmp_path / name)
        assert name in caught.value.message and caught.value.exit_code == 2
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(name)
        with pytest.raises(FalconError):
            load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_an_unreadable_file_is_refused_by_name(folder, name, monkeypatch):
    """Root may read everything, so the refusal of the system is put in its place."""
    original = Path.open

    def refuse(self, *arguments, **keywords):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refuse)
    refused(folder, name, "Permission denied")


def test_weights_that_change_between_check_and_use_are_noticed(folder, monkeypatch):
    check = access.check_vocabulary
    loaded = load(folder)
    refuse_changed(folder, loaded.marks)
    original = access.check_tensors

    def replace(bare, inventory, name):
        original(bare, inventory, name)
        save_file(pico_model("llama", seed=1).state_dict(), folder / WEIGHTS, metadata={"format": "pt"})
        os.utime(folder / WEIGHTS, ns=(1, 1))

    monkeypatch.setattr(access, "check_tensors", replace)
    refused(folder, WEIGHTS, "changed while it was in use")
    assert check is access.check_vocabulary
    with pytest.raises(ModelError, match="was changed"):
        refuse_changed(folder, loaded.marks)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="vanished"):
        refuse_changed(folder, loaded.marks)
