"""Tensors that are mapped from a file stay what they are, whatever is saved over or beside that file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from falcon_unlearn.checkpoints.delta import apply_delta, write_delta
from falcon_unlearn.checkpoints.writer import write_checkpoint
from falcon_unlearn.errors import UsageError
from falcon_unlearn.runs import Snapshots, sha256_file, staged_folder
from falcon_unlearn.training.states import TENSORS, LoopState, TrainingStates

NAMES = ("first", "second", "third")


def tensors(seed=0):
    draw = torch.Generator().manual_seed(seed)
    # Larger than a page, so that what is mapped is not read before the file changes.
    return {name: torch.randn(300, 300, generator=draw) for name in NAMES}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_saving_over_the_mapped_file_writes_the_mapped_values(source):
    """Before 0.8, safetensors emptied the file first, and what was mapped from it was saved as zeros."""
    path = source / "model.safetensors"
    mapped = load_file(path)
    save_file({**mapped, "second": mapped["second"] * 2}, path, metadata={"format": "pt"})
    wanted = tensors()
    assert_equal(mapped, wanted)
    assert_equal(load_file(path), {**wanted, "second": wanted["second"] * 2})


@pytest.mark.parametrize("copies", ["auto", "hardlink", "reflink"])
def test_a_checkpoint_is_written_beside_the_one_that_its_tensors_are_mapped_from(source, copies, tmp_path):
    path, before = source / "model.safetensors", sha256_file(source / "model.safetensors")
    mapped = load_file(path)
    destination = tmp_path / "new"
    destination.mkdir()
    changed = {"second": mapped["first"], "third": mapped["third"]}  # still in the file
    write_checkpoint(destination, changed, source=source, model=None, tokenizer=None, copies=copies)
    wanted = tensors()
    assert_equal(load_file(destination / path.name), {**wanted, "second": wanted["first"]})
    assert_equal(mapped, wanted)
    assert sha256_file(path) == before


def test_a_delta_is_exported_while_both_files_are_mapped(source, tmp_path):
    hashes = {"model.safetensors": sha256_file(source / "model.safetensors")}
    delta, whole = tmp_path / "delta", tmp_path / "whole"
    delta.mkdir()
    whole.mkdir()
    new = {"second": tensors(1)["second"]}
    write_delta(delta, new, source=source, base_model="m", hashes=hashes)
    held = load_file(source / "model.safetensors"), load_file(next(delta.glob("*.safetensors")))
    apply_delta(delta, source, whole)
    assert_equal(load_file(whole / "model.safetensors"), {**tensors(), **new})
    assert_equal(held[0], tensors())
    assert_equal(held[1], new)


def test_a_state_that_is_mapped_is_replaced_by_the_next_ones(tmp_path):
    """What a resumed loop holds of its optimizer may be mapped from a state that is removed meanwhile."""

    def loop():
        values = tensors()
        return values, torch.optim.AdamW(list(values.values()), lr=0.1)

    def step(values, optimizer, number):
        for value in values.values():
            value.grad = torch.full_like(value, float(number))
        optimizer.step()

    whole, optimizer = loop()
    for number in range(1, 8):
        step(whole, optimizer, number)
    values, optimizer = loop()
    states = TrainingStates(Snapshots(tmp_path, "f"), 0)
    state = states.restore(values, optimizer)
    for number in range(1, 8):
        step(values, optimizer, number)
        states.save(LoopState(step=number), values, optimizer)
        if number == 3:  # goes on from what is on the disk
            values, optimizer = loop()
            states = TrainingStates(Snapshots(tmp_path, "f"), 0)
            state = states.restore(values, optimizer)
    assert state.step == 3
    assert_equal(values, whole)
    newest = Snapshots(tmp_path, "f").newest()
    assert newest is not None
    assert_equal(
        {n: t for n, t in load_file(newest.path / TENSORS).items() if n.startswith("value|")},
        {f"value|{name}": value for name, value in whole.items()},
    )


def test_the_folder_of_the_mapped_model_is_refused_as_output(source):
    mapped, before = load_file(source / "model.safetensors"), sha256_file(source / "model.safetensors")
    with pytest.raises(UsageError, match="output folder in use"), staged_folder(source):
        pytest.fail("staged over the model")
    assert sha256_file(source / "model.safetensors") == before
    assert_equal(mapped, tensors())
