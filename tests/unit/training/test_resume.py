"""A session that ends in the middle goes on to the very same parameters, for every method."""

from __future__ import annotations

import hashlib
import json
import pickle

import pytest
import torch

from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.errors import DataError
from falcon_unlearn.events import Notice, StageStarted, TrainingStepped
from falcon_unlearn.runs import open_work
from falcon_unlearn.runs.snapshots import MANIFEST_FILE
from falcon_unlearn.training.states import TENSORS
from killed_sessions import Killed, assert_equal, kill_at, recipe_of, session

CASES = [
    *((method, {}) for method in METHODS),
    ("falcon", {"optimizer": "sgd"}),
    ("falcon", {"optimizer": "sign_momentum"}),
    ("falcon", {"optimizer": "sophia_reference"}),
    ("falcon", {"maximum_retain_drift": 0.01}),
    ("npo", {"parameters": "lora"}),
]


@pytest.mark.parametrize(("method", "train"), CASES, ids=lambda value: str(value) or None)
def test_a_session_killed_twice_ends_in_the_same_bits(method, train, tmp_path):
    recipe = recipe_of(method, **train)
    whole = session(recipe, tmp_path / "whole")
    path = tmp_path / ".out.work"
    for step in (2, 4):
        with pytest.raises(Killed):
            session(recipe, tmp_path, kill_at(step), open_work(path, {"recipe": 1}))
            raise Killed  # a budget may end the session before the step
    steps = []

    def count(event):
        if isinstance(event, TrainingStepped):
            steps.append(event.step)

    resumed = session(recipe, tmp_path, count, open_work(path, {"recipe": 1}))
    assert_equal(whole, resumed)
    assert 1 not in steps


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    from falcon_unlearn.training import session as module

    recipe = recipe_of("falcon")
    first = session(recipe, tmp_path, work=open_work(tmp_path / ".out.work", {}))
    monkeypatch.setattr(module, "cache_states", lambda *_, **__: pytest.fail("cached again"))
    monkeypatch.setattr(module.UnlearningLoop, "step", lambda *_: pytest.fail("trained again"))
    assert_equal(first, session(recipe, tmp_path, work=open_work(tmp_path / ".out.work", {})))


def test_a_damaged_store_is_computed_again(tmp_path):
    recipe = recipe_of("falcon")
    whole = session(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        session(recipe, tmp_path, kill_at(3), open_work(tmp_path / ".out.work", {}))
    store = tmp_path / ".out.work" / "stores" / "forget-f.outputs"
    content = bytearray(store.read_bytes())
    content[100] ^= 255
    store.write_bytes(content)
    assert_equal(whole, session(recipe, tmp_path, work=open_work(tmp_path / ".out.work", {})))


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest"])
def test_a_damaged_state_is_told_and_kept_and_the_one_before_is_used(damage, tmp_path):
    recipe = recipe_of("falcon")
    whole = session(recipe, tmp_path / "whole")
    path = tmp_path / ".out.work"
    with pytest.raises(Killed):
        session(recipe, tmp_path, kill_at(5), open_work(path, {}))
    newest = max((path / "training").iterdir())
    file = newest / (TENSORS if damage != "no manifest" else "MANIFEST.json")
    content = file.read_bytes()
    if damage == "no manifest":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-100])
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    events = []
    resumed = session(recipe, tmp_path, events.append, open_work(path, {}, sink=events.append))
    assert_equal(whole, resumed)
    warnings = [e.message for e in events if isinstance(e, Notice) and e.level == "warning"]
    assert any(newest.name in words for words in warnings)
    assert next(e.step for e in events if isinstance(e, TrainingStepped)) == 4
    assert newest.is_dir() or damage != "no manifest"


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_pickle_in_place_of_a_state_is_never_opened_even_if_its_manifest_vouches_for_it(tmp_path):
    recipe, path, marker = recipe_of("falcon"), tmp_path / ".out.work", tmp_path / "was-run"
    with pytest.raises(Killed):
        session(recipe, tmp_path, kill_at(3), open_work(path, {}))
    content = pickle.dumps(Bomb(marker))
    for state in (path / "training").iterdir():
        (state / TENSORS).write_bytes(content)
        manifest = json.loads((state / MANIFEST_FILE).read_text())
        for file in manifest["files"]:
            if file["name"] == TENSORS:
                file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (state / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no safetensors file") as caught:
        session(recipe, tmp_path, work=open_work(path, {}))
    assert "--resume never" in caught.value.hint
    assert not marker.exists()


def test_the_dtype_that_was_measured_stays(tmp_path, monkeypatch):
    from falcon_unlearn.training import session as module

    answers = iter([torch.bfloat16, torch.float32])
    real = module.resolve_compute_dtype

    def measured(requested, device):
        return next(answers) if requested == "auto" else real(requested, device)

    monkeypatch.setattr(module, "resolve_compute_dtype", measured)
    recipe = recipe_of("falcon", compute_dtype="auto")
    with pytest.raises(Killed):
        session(recipe, tmp_path, kill_at(3), open_work(tmp_path / ".out.work", {}))
    resumed = session(recipe, tmp_path, work=open_work(tmp_path / ".out.work", {}))
    assert resumed.result.compute_dtype == "bfloat16"


def test_without_work_nothing_is_kept(tmp_path):
    events = []
    session(recipe_of("falcon"), tmp_path / "stores", events.append)
    assert any(isinstance(event, StageStarted) for event in events)
    assert {path.name.split(".")[0] for path in (tmp_path / "stores").iterdir()} == {"forget-f", "retain-r"}
