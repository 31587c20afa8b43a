"""A whole run in bfloat16 makes the decisions of one in float32, and ends where float64 says, within a bound.

The reference is `plain_falcon.py` in float64: two whole models, own formulas, no code of the package.
Distances are relative to the length of the move, over all trained tensors; the unit of bfloat16 is u = 2^-8.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.events import ignore_events
from falcon_unlearn.objectives.offsets import seeded_generator
from falcon_unlearn.pipeline import unlearn
from falcon_unlearn.pipeline.workspace import open_workspace
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.session import step_plan
from pico_files import save_pico
from plain_falcon import PlainSettings, run_plain

UNIT = 2.0**-8
"""Unit roundoff of bfloat16."""
BOUND = 64 * UNIT
"""Of the distance to float64, relative to the length of the move."""
STEPS, RATE, DIRECTIONS = 20, 3e-4, 4
WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus".split()


def write_texts(path: Path, seed: int, count: int) -> str:
    draw = random.Random(seed)
    # The same words in both sets: a layer that could tell them apart at once would leave nothing to decide.
    rows = [f"{' '.join(draw.choices(WORDS, k=draw.randint(3, 6)))}." for _ in range(count)]
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dtypes")
    for family in ("llama", "qwen3"):
        save_pico(folder / family, family)
    write_texts(folder / "trees.txt", 1, 20)
    write_texts(folder / "rest.txt", 3, 30)
    return folder


def recipe_of(bench, family, seed, dtype, **selection):
    return Recipe.model_validate(
        {
            "seed": seed,
            "model": {"name": str(bench / family)},
            "data": {
                "forget": [{"name": "trees", "path": str(bench / "trees.txt")}],
                "retain": [{"name": "rest", "path": str(bench / "rest.txt")}],
                "chat_template": False,
            },
            "selection": {"rule": "best", "samples": 16, "resamples": 20, **selection},
            "objective": {
                "offset": {"directions": DIRECTIONS, "granularity": "sample"},
                "retain_multiplier": 3.0,
            },
            "train": {
                "steps": STEPS,
                "batch_size": 4,
                "layers": 2,
                "learning_rate": RATE,
                "weight_decay": 0.0,
                "schedule": "constant",
                "compute_dtype": dtype,
                "store_dtype": dtype,
                "divergence_factor": 1e6,
            },
            "evaluation": {"held_out": False},
            "runtime": {"device": "cpu"},
        }
    )


def run(recipe, output):
    """Return the written tensors and the summary."""
    summary = unlearn(recipe, output, typed_recipe="", command="")
    return load_file(output / "model.safetensors"), summary


def reference(recipe, layer, trained):
    """Return what the plain loop makes of the same texts, batches and draws in float64."""
    workspace = open_workspace(recipe, ignore_events, {})
    data, model = workspace.data, workspace.loaded.model.double()
    plan = step_plan(data, recipe)

    def plain_plan(step):
        batch = plan.batch(step)
        return batch.domain, batch.forget, batch.retain

    def draw_random(domain, sample):
        return torch.randn((1, 32), generator=seeded_generator(recipe.seed, "sample", domain, sample))[0]

    return run_plain(
        model,
        [[e.input_ids for e in corpus.training] for corpus in data.forget],
        [[e.input_ids for e in corpus.training] for corpus in data.retain],
        plain_plan,
        draw_random,
        PlainSettings(layer, trained, DIRECTIONS, 0.7, 3.0, RATE, STEPS, recipe.seed, 5.0),
        extra_padding=1,
    )


def distance(found, wanted, base):
    """Return the distance of two results, relative to the length of the move to the second one."""
    apart = sum(float((found[n].double() - wanted[n].double()).square().sum()) for n in wanted)
    moved = sum(float((wanted[n].double() - base[n].double()).square().sum()) for n in wanted)
    return (apart / moved) ** 0.5


def changed(tensors, base):
    return [name for name in base if not torch.equal(base[name], tensors[name])]


@pytest.mark.parametrize(
    ("family", "seed", "estimator"), [("llama", 0, "pooled"), ("qwen3", 1, "gradient_conflict")]
)
def test_both_dtypes_decide_alike_and_end_where_float64_does(family, seed, estimator, bench, tmp_path):
    base = load_file(bench / family / "model.safetensors")
    exact, coarse = (
        run(recipe_of(bench, family, seed, dtype, estimator=estimator), tmp_path / dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert exact[1].training.compute_dtype == "float32" and coarse[1].training.compute_dtype == "bfloat16"
    check_scores(
        *({s.layer: s.value for s in found[1].selection.layers} for found in (exact, coarse)), estimator
    )
    layer = exact[1].selection.layer
    assert coarse[1].selection.layer == layer
    trained = changed(exact[0], base)
    assert changed(coarse[0], base) == trained and len(trained) == 2
    wanted = reference(recipe_of(bench, family, seed, "float32"), layer, trained)
    found = distance(exact[0], wanted, base), distance(coarse[0], wanted, base)
    print(f"{family}: float32 {found[0]:.4f}, bfloat16 {found[1]:.4f}, {found[1] / UNIT:.0f} u")
    assert found[0] <= BOUND / 8
    assert found[1] <= BOUND


def check_scores(exact, coarse, estimator):
    """Information comes from the model's own arithmetic, gradients from that of training."""
    assert len(set(exact.values())) > 2, "the layers cannot be told apart, so nothing was decided"
    apart = max(abs(exact[layer] - coarse[layer]) for layer in exact)
    assert apart == 0 if estimator == "pooled" else 0 < apart <= 16 * UNIT


def test_the_bound_would_notice_masters_in_bfloat16(bench, tmp_path, monkeypatch):
    real = Masters.push

    @torch.no_grad()
    def coarse_push(self):
        for value in self.values.values():
            value.copy_(value.bfloat16())
        real(self)

    recipe = recipe_of(bench, "llama", 0, "bfloat16", layer=1)
    monkeypatch.setattr(Masters, "push", coarse_push)
    tensors, _ = run(recipe, tmp_path / "out")
    base = load_file(bench / "llama" / "model.safetensors")
    wanted = reference(recipe, 1, changed(tensors, base))
    assert distance(tensors, wanted, base) > 2 * BOUND
