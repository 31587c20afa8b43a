"""A synthetic run with plausible numbers: 30 layers, 60 steps, two forget domains, six evaluation sets."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Records = dict[str, Any]
CHANCE = 0.25
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def _wilson(value: float, number: int) -> tuple[float, float]:
    z = 1.96
    centre = (value + z * z / (2 * number)) / (1 + z * z / number)
    half = z * math.sqrt(value * (1 - value) / number + z * z / (4 * number * number)) / (1 + z * z / number)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_metric(name: str, value: float, number: int, desired: str, chance: float | None = None) -> Records:
    low, high = _wilson(value, number)
    return {
        "name": name,
        "value": value,
        "low": low,
        "high": high,
        "interval": "wilson",
        "unit": "share",
        "chance": chance,
        "desired": desired,
        "num_items": number,
    }


def plain_metric(name: str, value: float, spread: float, number: int, unit: str, desired: str) -> Records:
    return {
        "name": name,
        "value": value,
        "low": value - spread,
        "high": value + spread,
        "interval": "bootstrap",
        "unit": unit,
        "chance": None,
        "desired": desired,
        "num_items": number,
    }


def _items(name: str, metric: str, value: float, number: int) -> list[Records]:
    correct = round(value * number)
    return [
        {"id": f"{name}-{i}", "cluster": "", "metric": metric, "value": float(i < correct)}
        for i in range(number)
    ]


def _choice_set(name: str, role: str, text: float, letter: float, number: int = 80) -> Records:
    desired = "lower" if role == "forget" else "unchanged"
    metrics = [
        share_metric("accuracy_text", text, number, desired, CHANCE),
        share_metric("accuracy_letter", letter, number, desired, CHANCE),
        share_metric("letter_mass", 0.97, number, "unchanged"),
    ]
    items = _items(name, "accuracy_text", text, number) + _items(name, "accuracy_letter", letter, number)
    return {
        "name": name,
        "role": role,
        "kind": "choice",
        "num_items": number,
        "metrics": metrics,
        "items": items,
    }


def _generation_set(name: str, role: str, value: float, samples: list[Records], number: int = 60) -> Records:
    desired = "lower" if role == "forget" else "unchanged"
    return {
        "name": name,
        "role": role,
        "kind": "generation",
        "num_items": number,
        "metrics": [share_metric("accuracy_generation", value, number, desired)],
        "items": _items(name, "accuracy_generation", value, number),
        "samples": samples,
    }


def _text_set(name: str, role: str, perplexity: float, divergence: float | None) -> Records:
    desired = "higher" if role == "forget" else "unchanged"
    metrics = [plain_metric("perplexity", perplexity, 0.08 * perplexity, 40, "per token", desired)]
    if divergence is not None:
        metrics.append(
            plain_metric("divergence", divergence, 0.3 * divergence, 40, "nats per token", "unchanged")
        )
    return {"name": name, "role": role, "kind": "perplexity", "num_items": 40, "metrics": metrics}


def _samples(after: bool) -> list[Records]:
    rows = [
        ("The chemical symbol for sodium is", " Na.", " the same as the one for the", "Na"),
        (
            "The chemical symbol for iron is",
            " Fe. It is a metal that",
            " a very good thing to have, and",
            "Fe",
        ),
        ("In a formula, tungsten is written as", " W.", " W.", "W"),
    ]
    return [
        {
            "prompt": prompt,
            "completion": changed if after else original,
            "expected": expected,
            "correct": expected in (changed if after else original),
        }
        for prompt, original, changed, expected in rows
    ]


def evaluation(label: str, *, forget: float, letter: float, free: float, kept: float = 0.95) -> Records:
    after = label == "after"
    return {
        "label": label,
        "model": MODEL,
        "sets": [
            _choice_set("symbols", "forget", forget, letter),
            _generation_set("symbols_free", "forget", free, _samples(after)),
            _choice_set("languages", "forget", min(1.0, forget + 0.02), letter, 48),
            _choice_set("neighbour_chemistry", "neighbour", kept - (0.05 if after else 0.0), kept - 0.3, 64),
            _choice_set("capitals", "retain", kept, kept - 0.28, 72),
            _text_set("general_text", "general", 36.52 if after else 36.25, 0.021 if after else None),
        ],
        "skipped": ["exact_memorisation: the rows hold no answers"],
        "seconds": 41.7,
    }


def _selection() -> Records:
    generator = random.Random(3)
    layers = []
    for layer in range(30):
        value = 0.55 + 0.25 * math.cos((layer - 22) / 5.1) + generator.gauss(0, 0.004)
        spread = 0.03 + 0.02 * generator.random()
        layers.append(
            {
                "layer": layer,
                "value": value,
                "low": value - spread,
                "high": value + spread,
                "null_mean": 0.05,
                "null_low": 0.02,
                "null_high": 0.09,
                "components": 64,
                "probability_best": 0.0,
                "candidate": 4 <= layer <= 18,
                "flags": [],
            }
        )
    for layer, won in ((4, 0.44), (5, 0.3), (6, 0.2), (7, 0.06)):
        layers[layer]["probability_best"] = won
    for layer, fall in ((4, 0.72), (11, 0.28), (18, 1.21)):
        layers[layer] |= {"fall": fall, "fall_error": 0.15}
    return {
        "estimator": "pooled",
        "unit": "nats",
        "layer": 4,
        "best_layer": 6,
        "fixed": False,
        "rule": "earliest_tied",
        "rank_stability": 0.93,
        "tied_layers": [4, 5, 6, 7],
        "trial": {
            "updates": 30,
            "speed": 4.0,
            "measured": 48,
            "share": 0.4,
            "strongest_layer": 18,
            "seconds": 61.0,
        },
        "layers": layers,
        "samples": {"symbols": 256, "languages": 192, "retain": 256},
        "pooling": "mean",
        "eta": 0.0,
        "explanation": "Layer 4 is the lowest candidate whose information between state and domain cannot be "
        "told apart from the best one (layer 6).",
        "seconds_forward": 14.2,
        "seconds_estimator": 3.1,
    }


def _history(tensors: list[str]) -> list[Records]:
    generator = random.Random(5)
    rows = []
    for step in range(1, 61):
        decay = math.exp(-step / 18)
        row = {
            "step": step,
            "domain": step % 2,
            "forget_loss": 0.25 + 0.62 * decay + generator.gauss(0, 0.02),
            "retain_loss": 0.0004 * (1 - decay) + abs(generator.gauss(0, 0.00002)),
            "conflict_share": min(1.0, max(0.0, 0.5 + 0.3 * math.sin(step / 5))),
            "forget_norm": 104 + 30 * (1 - decay) + generator.gauss(0, 1.5),
            "retain_norm": 103 + generator.gauss(0, 0.8),
            "sink_norm": 742 + generator.gauss(0, 2),
            "retain_drift": 0.004 * (1 - decay) + abs(generator.gauss(0, 1e-4)),
            "learning_rate": 0.001,
            "seconds": 0.4,
        }
        row |= {f"cosine:{name}": generator.gauss(-0.1 + 0.05 * i, 0.12) for i, name in enumerate(tensors)}
        rows.append(row)
    return rows


def _training() -> Records:
    tensors = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3, 4)]
    changed = [
        {
            "name": name,
            "shape": [576, 1536],
            "norm_before": 61.2 + i,
            "norm_change": 5.1 - i,
            "relative_change": (5.1 - i) / (61.2 + i),
            "largest_change": 0.041,
        }
        for i, name in enumerate(tensors)
    ]
    return {
        "method": "falcon",
        "status": "completed",
        "steps_planned": 60,
        "steps_done": 60,
        "kept_step": 60,
        "window": [2, 4],
        "trained": tensors,
        "trained_parameters": 2_654_208,
        "total_parameters": 134_515_008,
        "learning_rate": 0.00108,
        "compute_dtype": "float32",
        "history": _history(tensors),
        "domains": ["symbols", "languages"],
        "changes": changed,
        "seconds_cache": 9.4,
        "seconds_train": 27.9,
        "cached_tokens": 18_240,
        "cache_bytes": 84_049_920,
        "peak_memory_bytes": 1_420_000_000,
        "flops": {"cache": 1.1e12, "train": 9.4e12},
    }


def _corpus(name: str, role: str, number: int) -> Records:
    return {
        "name": name,
        "role": role,
        "source": f"{name}.jsonl",
        "sha256": "ab" * 32,
        "read": number + 3,
        "too_short": 1,
        "cut": 0,
        "duplicates": 2,
        "overlapping": 0,
        "training": number - 20,
        "held_out": 20,
        "tokens": number * 17,
    }


def synthetic_run() -> Records:
    """Return file name -> content of a run that worked."""
    return {
        "recipe.resolved.yaml": {
            "model": {"name": MODEL},
            "data": {
                "forget": [
                    {"name": "symbols", "path": "symbols.jsonl"},
                    {"name": "languages", "path": "languages.jsonl"},
                ],
                "retain": [{"name": "capitals", "path": "capitals.jsonl"}],
            },
        },
        "data.json": {
            "corpora": [
                _corpus("symbols", "forget", 264),
                _corpus("languages", "forget", 192),
                _corpus("capitals", "retain", 640),
            ],
            "warnings": [],
        },
        "selection.json": _selection(),
        "training.json": _training(),
        "evaluation.before.json": evaluation("before", forget=0.9625, letter=0.65, free=0.9),
        "evaluation.after.json": evaluation("after", forget=0.2625, letter=0.2375, free=1 / 60),
        "environment.json": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "packages": {"torch": "2.13.0", "transformers": "5.23.1"},
            "processor": "x86_64",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8_000_000_000,
            "device": "cpu",
            "seed": 0,
            "started": "2026-01-05T09:30:00Z",
        },
        "manifest.json": {
            "package_version": "0.1.0",
            "fingerprint": "c0ffee" * 8,
            "base_model": MODEL,
            "base_weights_sha256": {"model.safetensors": "cd" * 32},
            "files": [],
            "command": f"falcon-unlearn run {MODEL} --forget symbols=symbols.jsonl --output out",
            "seconds": {
                "data": 0.6,
                "selection": 17.3,
                "evaluation before": 41.7,
                "caching": 9.4,
                "training": 27.9,
                "saving": 1.2,
                "evaluation after": 41.7,
            },
        },
    }


def write_run(folder: Path, run: Records) -> Path:
    """Write a synthetic run with a checkpoint header that names 272 tensors."""
    records = folder / "falcon"
    records.mkdir(parents=True, exist_ok=True)
    for name, content in run.items():
        text = yaml.safe_dump(content) if name.endswith(".yaml") else json.dumps(content)
        (records / name).write_text(text, encoding="utf-8")
    header = json.dumps({"__metadata__": {"format": "pt"}, **{f"t{i}": {} for i in range(272)}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


@pytest.fixture
def run() -> Records:
    return synthetic_run()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Records], Path]:
    return lambda records: write_run(tmp_path / "output", records)
