"""A compiled window gives the result of one that is not, and leaves no trace in the model."""

from __future__ import annotations

import pytest
import torch

from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.events import Notice
from falcon_unlearn.models import compiling
from falcon_unlearn.models.compiling import compiled_blocks, missing_compiler
from falcon_unlearn.training import compiling as training_compiling
from falcon_unlearn.training.compiling import compiled_window
from tiny_runs import LAYER, run_session, tiny_engine, tiny_recipe

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="torch.compile needs a C++ compiler on CPU")
def test_a_compiled_window_unlearns_to_the_same_tensors(tmp_path):
    sessions, frames = {}, []
    for mode in ("off", "on"):
        engine = tiny_engine()
        names = list(engine.model.state_dict())
        folder = tmp_path / mode
        folder.mkdir()
        torch._dynamo.utils.counters.clear()
        sessions[mode] = run_session(folder, tiny_recipe(runtime={"compile": mode}), engine=engine)
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert list(engine.model.state_dict()) == names
        assert all("forward" not in block.__dict__ for block in engine.blocks)
    assert frames[0] == 0 < frames[1]
    plain, compiled = sessions["off"], sessions["on"]
    assert list(plain.changed) == list(compiled.changed)
    for name, tensor in plain.changed.items():
        assert (tensor - plain.original[name]).abs().max() > 1e-3
        assert (tensor - compiled.changed[name]).abs().max() < 1e-5
    for one, other in zip(plain.result.history, compiled.result.history, strict=True):
        assert one["forget_loss"] == pytest.approx(other["forget_loss"], rel=1e-4)


def test_a_forward_that_was_replaced_before_comes_back():
    block = tiny_engine().block(LAYER)
    with compiled_blocks([block]):
        assert "forward" in block.__dict__
    assert "forward" not in block.__dict__
    block.forward = before = block.forward
    with compiled_blocks([block]):
        assert block.__dict__["forward"] is not before
    assert block.__dict__["forward"] is before


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_nothing_is_compiled_on_a_processor_unless_asked(mode, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    with compiled_window(tiny_engine(), (2, 3), mode, lambda _: None, is_sharded=False):
        pass


def test_a_missing_compiler_is_named_before_the_first_step(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    with pytest.raises(PrerequisiteError, match=r"runtime\.compile=on: no C\+\+ compiler"):
        run_session(tmp_path, tiny_recipe(runtime={"compile": "on"}))


def test_a_compiler_that_is_there_but_fails_is_told_before_the_first_step(monkeypatch, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(training_compiling, "missing_compiler", lambda _: None)
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": (str(compiler),), "force_disable_caches": True}),
        pytest.raises(PrerequisiteError, match=r"runtime\.compile=on: torch\.compile fails here \(.*C\+\+"),
    ):
        run_session(tmp_path, tiny_recipe(runtime={"compile": "on"}))


def test_an_accelerator_whose_compiler_fails_goes_on_and_says_so(monkeypatch):
    class OnCard:
        device = torch.device("cuda")

    monkeypatch.setattr(training_compiling, "missing_compiler", lambda _: None)
    monkeypatch.setattr(training_compiling, "failed_compilation", lambda _: "torch.compile fails here (why)")
    told = []
    # Nothing here has blocks to compile: asking for one would fail.
    with compiled_window(OnCard(), (2, 3), "auto", told.append, is_sharded=False):
        pass
    assert [notice.message for notice in told] == [
        "the window is not compiled: torch.compile fails here (why)"
    ]


def test_an_accelerator_without_compiler_goes_on_and_says_so(monkeypatch):
    class OnCard:
        device = torch.device("cuda")

    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    told = []
    with compiled_window(OnCard(), (2, 3), "auto", told.append, is_sharded=False):
        pass
    assert [notice.message for notice in told if isinstance(notice, Notice)] == [
        "the window is not compiled: the package triton is not installed"
    ]
    with (
        pytest.raises(PrerequisiteError, match="split over ranks"),
        compiled_window(OnCard(), (2, 3), "on", told.append, is_sharded=True),
    ):
        pass
