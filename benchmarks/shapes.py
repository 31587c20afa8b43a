"""Random models of given shapes, and corpora of random tokens, for benchmarks without downloads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.results import DataResult


@dataclass(frozen=True)
class Shape:
    """Give the sizes of a model."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    blocks: int
    vocabulary: int
    layer: int
    """Loss layer; three blocks train."""


SHAPES = {
    "pico": Shape(32, 48, 4, 2, 6, 128, 3),
    "smollm2": Shape(576, 1536, 9, 3, 30, 49152, 7),
    "zephyr-7b": Shape(4096, 14336, 32, 8, 32, 32000, 7),
}


def build_model(shape: Shape, device: str, dtype: torch.dtype, blocks: int | None = None) -> Any:
    """Build a random Mistral on the device, with `blocks` of its blocks."""
    from transformers import AutoModelForCausalLM, MistralConfig

    config = MistralConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.hidden // shape.heads,
        num_hidden_layers=blocks or shape.blocks,
        vocab_size=shape.vocabulary,
        sliding_window=None,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def random_corpus(name: str, count: int, lengths: tuple[int, int], vocabulary: int, seed: int) -> Corpus:
    """Return samples of random tokens, of random lengths between two bounds."""
    draw = random.Random(seed)
    rows = [tuple(draw.randrange(4, vocabulary) for _ in range(draw.randint(*lengths))) for _ in range(count)]
    return Corpus(
        name, 1.0, tuple(EncodedExample(row, (True,) * len(row), "", False) for row in rows), (), ()
    )


def random_data(domains: int, count: int, lengths: tuple[int, int], vocabulary: int) -> PreparedData:
    """Return forget domains and one retain set of `count` samples each."""
    forget = tuple(random_corpus(f"f{n}", count, lengths, vocabulary, n) for n in range(domains))
    retain = random_corpus("r", count, lengths, vocabulary, 100)
    return PreparedData(forget, (retain,), DataResult(corpora=[]))


def bench_recipe(steps: int, batch: int, dtype: str, **runtime: Any) -> Recipe:
    """Return FALCON with one target per sample and a small constant rate."""
    return Recipe.model_validate(
        {
            "model": {"name": "random"},
            "data": {"forget": [{"name": "f", "path": "f"}], "retain": [{"name": "r", "path": "r"}]},
            "objective": {"offset": {"directions": 4}},
            "train": {
                "steps": steps,
                "batch_size": batch,
                "learning_rate": 1e-5,
                "compute_dtype": dtype,
                "divergence_factor": 1e9,
            },
            "runtime": runtime,
        }
    )
