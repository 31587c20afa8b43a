from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
import torch

from falcon_unlearn.activations import store as store_module
from falcon_unlearn.activations.store import ActivationStore, mask_from_lengths
from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.pipeline.costs import STORE_PAGES

LENGTHS = (3, 1, 5, 2)


def filled(path, dtype=torch.float32):
    store = ActivationStore(path, LENGTHS, 6, dtype)
    states = [torch.randn(length, 6, dtype=torch.float64) for length in LENGTHS]
    for index in (2, 0, 3, 1):  # samples arrive in the order of the batches, not in their own
        store.write(index, states[index])
    return store, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written_rounded_once(tmp_path, dtype):
    store, states = filled(tmp_path / "s", dtype)
    assert len(store) == 4
    for index, expected in enumerate(states):
        assert store.read(index).dtype == dtype
        assert torch.equal(store.read(index), expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_holds_real_tokens_only(tmp_path, dtype):
    store, states = filled(tmp_path / "s", dtype)
    assert store.num_bytes == (tmp_path / "s").stat().st_size == sum(LENGTHS) * 6 * dtype.itemsize
    raw = torch.from_file(str(tmp_path / "s"), size=sum(LENGTHS) * 6, dtype=dtype)
    assert torch.equal(raw.view(-1, 6), torch.cat(states).to(dtype))


def test_a_batch_is_padded_on_the_right_with_zeros(tmp_path):
    store, states = filled(tmp_path / "s")
    batch, mask = store.batch([3, 2, 1])
    assert batch.shape == (3, 5, 6)
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    for row, index in enumerate((3, 2, 1)):
        assert torch.equal(batch[row, : LENGTHS[index]], states[index].float())
        assert not batch[row, LENGTHS[index] :].any()


def test_a_batch_is_a_copy(tmp_path):
    store, states = filled(tmp_path / "s")
    store.batch([2])[0].zero_()
    assert torch.equal(store.read(2), states[2].float())


def test_too_little_disk_says_how_much_is_needed_and_creates_nothing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage(0, 0, 2**30))
    ActivationStore(tmp_path / "fits", (8,), 4, torch.float32)
    with pytest.raises(PrerequisiteError, match=r"need 2\.00 GiB, 1\.00 GiB are free") as caught:
        ActivationStore(tmp_path / "big", (2**19,), 1024, torch.float32)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "big").exists()


def test_mask_from_lengths():
    assert mask_from_lengths([2, 3]).tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs Linux")
def test_the_stores_of_a_run_stay_inside_the_memory_that_its_plan_counts(tmp_path):
    lengths = [128] * 25
    stores = [ActivationStore(tmp_path / f"{n}.bin", lengths, 4096, torch.float32) for n in range(6)]
    states = torch.ones(128, 4096)
    for store in stores:
        for index in range(len(lengths)):
            store.write(index, states)
    assert all(store.read(0)[0, 0] == 1.0 for store in stores)
    assert 6 * stores[0].num_bytes > STORE_PAGES
    assert 0 < _mapped(tmp_path) <= STORE_PAGES


def _mapped(folder: Path) -> int:
    """Return the bytes of files below `folder` that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = str(folder) in line
        elif first == "Rss:" and inside:
            total += int(line.split()[1]) * 1024
    return total
