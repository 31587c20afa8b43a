"""Many runs in one process: flat memory, nothing left over, nothing left open."""

from __future__ import annotations

import gc
import os
import threading

import psutil
import pytest
import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.pipeline import unlearn
from pico_files import save_pico

WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()
LARGEST_GROWTH = 16 * 2**20
"""Bytes of resident memory over the second half of the runs: far less than one leaked model per ten runs."""


def recipe(folder):
    def texts(name, start):
        rows = [
            f"{start + n} {WORDS[n % 15]} {WORDS[(3 * n) % 15]} {WORDS[(7 * n + 1) % 15]}" for n in range(12)
        ]
        (folder / name).write_text("\n".join(rows) + "\n")
        return {"name": name.split(".")[0], "path": str(folder / name)}

    save_pico(folder / "model")
    return Recipe.model_validate(
        {
            "model": {"name": str(folder / "model")},
            "data": {
                "forget": [texts("f.txt", 100)],
                "retain": [texts("r.txt", 200)],
                "chat_template": False,
                "holdout_share": 0,
            },
            "selection": {"layer": 3},
            "objective": {"offset": {"directions": 4}},
            "train": {"steps": 2, "batch_size": 4, "layers": 2, "compute_dtype": "float32"},
            "runtime": {"device": "cpu", "save_seconds": 0},
        }
    )


def open_things():
    gc.collect()
    process = psutil.Process()
    tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    mapped = sum(1 for m in process.memory_maps() if ".work" in m.path or "partial" in m.path)
    return {
        "tensors": tensors,
        "handles": process.num_fds(),
        "mapped": mapped,
        "threads": threading.active_count(),
        "children": len(process.children()),
    }


def soak(folder, runs):
    chosen = recipe(folder)
    before, memory = None, []
    work = folder / "runs"
    work.mkdir()
    for number in range(runs):
        unlearn(chosen, work / f"out-{number % 3}", typed_recipe="", command="")
        assert sorted(os.listdir(work)) == [f"out-{number % 3}"]
        for path in sorted((work / f"out-{number % 3}").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (work / f"out-{number % 3}").rmdir()
        memory.append(psutil.Process().memory_info().rss)
        if number == 1:  # the first run fills caches of the libraries
            before = open_things()
    assert open_things() == before
    return memory


def test_a_few_runs_leave_no_tensor_no_handle_and_no_file(tmp_path):
    soak(tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_runs_do_not_grow(tmp_path):
    memory = soak(tmp_path, 200)
    assert max(memory[150:]) - max(memory[50:100]) < LARGEST_GROWTH
