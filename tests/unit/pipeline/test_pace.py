from __future__ import annotations

import math

import pytest
import torch

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.models.access import build_without_weights
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.pipeline import pace
from falcon_unlearn.pipeline.costs import Shapes
from pico import FAMILIES, pico_model
from pico_files import save_pico


def measured(bench, folder, family="llama", dtype=torch.float32, **settings):
    save_pico(folder, model=pico_model(family))
    recipe = bench.bare(model={"name": str(folder)}, **settings)
    model = build_without_weights(ModelSettings(name=str(folder)), real_buffers=True)
    engine = BlockEngine(model, find_structure(model))
    names = [n for n, p in model.named_parameters() if ".2." in n and p.dim() == 2][-1:]
    shapes = Shapes(model, engine.structure, (1, 2), {names[0]: 2})
    before = [name for name, _ in model.named_parameters()]
    found = pace.measure_pace(recipe, model, engine, shapes, names, dtype, torch.device("cpu"))
    assert [name for name, _ in model.named_parameters()] == before
    assert all(parameter.is_meta for parameter in model.parameters()), "nothing of the model was built"
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_of_every_family_is_run(family, bench, tmp_path):
    found = measured(bench, tmp_path / "m", family)
    speeds = (found.forward, found.training, found.update)
    assert all(math.isfinite(value) and value > 0 for value in speeds)


def test_states_stay_finite_so_that_no_slow_arithmetic_is_measured(bench, tmp_path, monkeypatch):
    seen = []
    forward = pace.BlockEngine.forward

    def spied(self, states_BLD):
        seen.append(forward(self, states_BLD))
        return seen[-1]

    monkeypatch.setattr(pace.BlockEngine, "forward", spied)
    measured(bench, tmp_path / "m")
    assert len(seen) >= 4 and all(bool(states.isfinite().all()) for states in seen)
    assert max(states.shape[0] * states.shape[1] for states in seen) <= 1024


def test_blocks_too_large_to_build_are_guessed_from_products(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "LARGEST_BLOCK", 1)
    monkeypatch.setattr(pace, "matrix_product_speed", lambda dtype, device: 8e10)
    found = measured(bench, tmp_path / "m")
    assert found.forward == found.training == pytest.approx(6e10)
