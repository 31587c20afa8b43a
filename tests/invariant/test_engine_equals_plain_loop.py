"""Proof (a): the engine and a plain loop over two whole models trace the same trajectory."""

from __future__ import annotations

import random

import pytest
import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.events import ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.architectures import resolve_trained_parameters
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.objectives.offsets import seeded_generator
from falcon_unlearn.results import DataResult
from falcon_unlearn.training.session import step_plan, unlearn_window
from pico import FAMILIES, pico_model
from plain_falcon import PlainSettings, run_plain

LAYER, STEPS, DIRECTIONS, RATE = 3, 20, 4, 3e-4


def corpus(name: str, count: int, lengths: tuple[int, int], seed: int) -> Corpus:
    draw = random.Random(seed)
    rows = [tuple(draw.randrange(3, 128) for _ in range(draw.randint(*lengths))) for _ in range(count)]
    examples = tuple(EncodedExample(row, (True,) * len(row), "", False) for row in rows)
    return Corpus(name, 1.0, examples, (), ())


def prepared(num_domains: int, lengths: tuple[int, int]) -> PreparedData:
    forget = tuple(corpus(f"f{i}", 9, lengths, i) for i in range(num_domains))
    return PreparedData(forget, (corpus("r", 14, lengths, 100),), DataResult(corpora=[]))


def recipe(**changes) -> Recipe:
    base = {
        "model": {"name": "pico"},
        "data": {"forget": [{"name": "f", "path": "f"}], "retain": [{"name": "r", "path": "r"}]},
        "objective": {
            "offset": {"directions": DIRECTIONS, "granularity": "sample"}, "retain_multiplier": 3.0,
        },
        "train": {
            "steps": STEPS, "batch_size": 4, "layers": 2, "learning_rate": RATE, "schedule": "constant",
            "compute_dtype": "float32",
            "divergence_factor": 1e6,
        },
    }  # fmt: skip
    base["train"].update(changes)
    return Recipe.model_validate(base)


# Every family with and without padding, with one domain and with two; padding and domains do not meet the
# family's own code together, so one family shows all four pairs.
CASES = [(family, padded, 1 + padded) for family in FAMILIES for padded in (False, True)]
CASES += [(FAMILIES[0], padded, 2 - padded) for padded in (False, True)]


@pytest.mark.parametrize(("family", "padded", "num_domains"), CASES)
def test_same_trajectory(family, padded, num_domains, tmp_path):
    model = pico_model(family).eval().requires_grad_(False)
    data = prepared(num_domains, (11, 16) if padded else (12, 12))
    settings = recipe()
    before = {name: p.clone() for name, p in model.named_parameters()}
    engine = BlockEngine(model)
    plan = step_plan(data, settings)

    def plain_plan(step):
        batch = plan.batch(step)
        return batch.domain, batch.forget, batch.retain

    def draw_random(domain, sample):
        return torch.randn((1, 32), generator=seeded_generator(settings.seed, "sample", domain, sample))[0]

    layers = range(LAYER - 1, LAYER + 1)
    trained = list(resolve_trained_parameters(model, engine.structure, ["mlp.down"], layers))
    plain = run_plain(
        model,
        [[e.input_ids for e in c.training] for c in data.forget],
        [[e.input_ids for e in c.training] for c in data.retain],
        plain_plan,
        draw_random,
        PlainSettings(LAYER, trained, DIRECTIONS, 0.7, 3.0, RATE, STEPS, settings.seed, 5.0),
        extra_padding=1 if padded else 0,
    )
    session = unlearn_window(engine, data, settings, LAYER, tmp_path, ignore_events)
    for name in trained:
        assert (session.changed[name] - plain[name]).abs().max() < 1e-5, name
        assert (session.changed[name] - before[name]).abs().max() > 1e-3, (
            "nothing moved, so nothing was proved"
        )
    after = dict(model.named_parameters())
    for name, value in before.items():
        if name not in trained:
            assert torch.equal(after[name], value), f"{name} changed although it is not trained"
