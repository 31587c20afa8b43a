"""Shared, patched and exported weight files."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from falcon_unlearn.checkpoints import sharing
from falcon_unlearn.checkpoints.delta import apply_delta, write_delta
from falcon_unlearn.checkpoints.patches import patch_shard, patched_sha256
from falcon_unlearn.checkpoints.sharing import share_file
from falcon_unlearn.checkpoints.writer import write_checkpoint
from falcon_unlearn.errors import DataError, ModelError
from falcon_unlearn.runs import sha256_file
from pico import pico_model
from pico_files import save_pico

NAMES = ["model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"]


@pytest.fixture
def source(tmp_path):
    model = pico_model("llama").to(torch.bfloat16)
    return save_pico(tmp_path / "in", model=model, max_shard_size="24KB")


@pytest.fixture
def changed():
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(32, 48, generator=generator).bfloat16() for name in NAMES}


def hashes(folder):
    return {path.name: sha256_file(path) for path in folder.glob("*.safetensors")}


def write(tmp_path, source, changed, copies):
    destination = tmp_path / copies
    destination.mkdir()
    made = write_checkpoint(destination, changed, source=source, model=None, tokenizer=None, copies=copies)
    return destination, made


@pytest.mark.parametrize("copies", ["auto", "hardlink", "copy"])
def test_every_way_of_sharing_gives_the_same_bytes(copies, source, changed, tmp_path):
    before = hashes(source)
    destination, made = write(tmp_path, source, changed, copies)
    assert hashes(source) == before
    assert made.pop("rewritten") == 2 and sum(made.values()) == len(before) - 2
    assert set(made) <= ({"copy"} if copies == "copy" else {"reflink", "hardlink", "copy"})
    for name, digest in hashes(destination).items():
        tensors = load_file(destination / name)
        if set(tensors) & set(NAMES):
            assert digest != before[name]
            for key, tensor in tensors.items():
                assert torch.equal(tensor, changed.get(key, load_file(source / name)[key]))
        else:
            assert digest == before[name]


def test_independent_copies_do_not_follow_edits_of_the_source_and_hard_links_do(source, changed, tmp_path):
    linked, made = write(tmp_path, source, changed, "hardlink")
    copied, _ = write(tmp_path, source, changed, "copy")
    untouched = next(p.name for p in source.glob("*.safetensors") if (linked / p.name).samefile(p))
    assert made["hardlink"] > 0
    before = sha256_file(copied / untouched)
    with (source / untouched).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"xx")
    assert sha256_file(copied / untouched) == before
    assert sha256_file(linked / untouched) != before
    # What people edit by hand is never one file under two names.
    assert not (linked / "config.json").samefile(source / "config.json")


def test_rewritten_shards_never_reach_the_source(source, changed, tmp_path):
    destination, _ = write(tmp_path, source, changed, "hardlink")
    for path in destination.glob("*.safetensors"):
        if set(load_file(path)) & set(NAMES):
            assert not path.samefile(source / path.name)


def test_where_links_fail_files_are_copied(source, changed, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(sharing.os, "link", refuse)
    monkeypatch.setattr(sharing, "_reflink", lambda *_: False)
    assert share_file(next(source.glob("*.safetensors")), tmp_path / "x") == "copy"


def test_a_symbolic_link_is_followed(source, tmp_path):
    real = next(source.glob("*.safetensors"))
    (tmp_path / "link.safetensors").symlink_to(real)
    share_file(tmp_path / "link.safetensors", tmp_path / "out.safetensors", "hardlink")
    assert not (tmp_path / "out.safetensors").is_symlink()
    assert (tmp_path / "out.safetensors").read_bytes() == real.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_patched_file_equals_one_that_safetensors_writes(dtype, tmp_path, monkeypatch):
    from falcon_unlearn.checkpoints import patches

    monkeypatch.setattr(patches, "_PIECE_BYTES", 64)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn(3, 5 + i, generator=generator).to(dtype) for i in range(4)}
    new = {name: torch.randn(tensors[name].shape, generator=generator) for name in ("t0", "t2")}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"note": "kept"})
    expected = tensors | {name: tensor.to(dtype) for name, tensor in new.items()}
    save_file(expected, tmp_path / "b.safetensors", metadata={"note": "kept"})
    digest = patched_sha256(tmp_path / "a.safetensors", new)
    patch_shard(tmp_path / "a.safetensors", tmp_path / "c.safetensors", new, "auto")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert digest == sha256_file(tmp_path / "b.safetensors")


def test_a_delta_is_small_and_exports_to_the_whole_model(source, changed, tmp_path):
    whole, _ = write(tmp_path, source, changed, "copy")
    delta, out = tmp_path / "delta", tmp_path / "out"
    delta.mkdir(), out.mkdir()
    manifest = write_delta(delta, changed, source=source, base_model="pico", hashes=hashes(source))
    assert {path.name for path in delta.iterdir()} == {"delta.safetensors", "delta.json"}
    assert set(load_file(delta / "delta.safetensors")) == set(NAMES)
    assert manifest.base_sha256 == hashes(source) and len(manifest.result_sha256) == 2
    apply_delta(delta, source, out)
    assert hashes(out) == hashes(whole)


def test_a_delta_is_refused_on_another_base_or_after_a_change(source, changed, tmp_path):
    delta = tmp_path / "delta"
    delta.mkdir()
    write_delta(delta, changed, source=source, base_model="pico", hashes=hashes(source))

    def apply(name, base=source):
        (tmp_path / name).mkdir()
        apply_delta(delta, base, tmp_path / name)

    other = save_pico(tmp_path / "other", model=pico_model("llama", seed=5).bfloat16(), max_shard_size="24KB")
    with pytest.raises(DataError, match="is not the file that the delta was made from"):
        apply("a", other)
    single = save_pico(tmp_path / "single", model=pico_model("llama").bfloat16())
    with pytest.raises(DataError, match="is missing"):
        apply("b", single)
    manifest = json.loads((delta / "delta.json").read_text())
    kept = dict(manifest["base_sha256"])
    manifest["base_sha256"] = {"../x.safetensors": "0" * 64}
    (delta / "delta.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no weight file"):
        apply("c")
    manifest["base_sha256"] = kept
    (delta / "delta.json").write_text(json.dumps(manifest))
    weights = delta / "delta.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"zz")
    with pytest.raises(DataError, match="changed after the run"):
        apply("d")
    (delta / "delta.json").unlink()
    with pytest.raises(DataError, match="no delta folder"):
        apply("e")


def test_a_delta_of_an_unknown_tensor_is_refused(source, tmp_path):
    (tmp_path / "delta").mkdir()
    with pytest.raises(ModelError, match="no tensor named"):
        write_delta(tmp_path / "delta", {"x": torch.zeros(2)}, source=source, base_model="p", hashes={})
