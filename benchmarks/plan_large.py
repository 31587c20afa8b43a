"""Plan models that do not fit here: 70 and 405 billion parameters, on paper.

    python benchmarks/plan_large.py [--out benchmarks/results/plan_large.json]

Builds checkpoints whose files have headers and sizes but no content (sparse files), and asks `plan` what a
run would take: 128 texts of 128 tokens in two forget domains and one retain set each, 150 steps of batch 4.
Times are left out: they would only say how fast this machine is.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.pipeline import plan_run

ROOT = Path(__file__).parent.parent
SHAPES = {
    "8b": (32, 4096, 14336, 32),
    "70b": (80, 8192, 28672, 64),
    "405b": (126, 16384, 53248, 128),
}
"""Blocks, hidden size, intermediate size, heads; 8 key-value heads and 128,256 words each."""
LIMITS = {"8b": "6GiB", "70b": "24GiB", "405b": "96GiB"}
WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()


def build(folder: Path, shape: tuple[int, int, int, int]) -> int:
    """Write config, tokenizer and empty shards of the right sizes; return the number of parameters."""
    sys.path.insert(0, str(ROOT / "tests"))
    from pico import pico_tokenizer

    blocks, hidden, intermediate, heads = shape
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")
        shards.setdefault(part[2] if "layers" in part else "rest", {})[name] = tuple(parameter.shape)
    weight_map = {}
    for number, members in enumerate(shards.values(), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_hollow(folder / file, members)
        weight_map |= dict.fromkeys(members, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(parameter.numel() for parameter in model.parameters())


def _write_hollow(path: Path, members: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in members.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def plan(name: str) -> dict[str, Any]:
    """Return what `plan` says of one shape."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = build(folder / "model", SHAPES[name])
        for seed, file in enumerate(("one", "two", "rest")):
            draw = random.Random(seed)
            rows = [json.dumps({"text": " ".join(draw.choices(WORDS, k=40))[:128]}) for _ in range(128)]
            (folder / f"{file}.jsonl").write_text("\n".join(rows))
        recipe = Recipe.model_validate(
            {
                "model": {"name": str(folder / "model")},
                "data": {
                    "forget": [{"name": n, "path": str(folder / f"{n}.jsonl")} for n in ("one", "two")],
                    "retain": [{"name": "rest", "path": str(folder / "rest.jsonl")}],
                    "chat_template": False,
                    "maximum_tokens": 128,
                    "holdout_share": 0.0,
                },
                "train": {"steps": 150, "batch_size": 4},
                "evaluation": {"sets": [], "held_out": False},
                "runtime": {"device": "cpu", "memory_limit": LIMITS[name]},
            }
        )
        found = plan_run(recipe).model_dump(
            include={"streamed", "placement", "memory_bytes", "disk_bytes", "flops"}
        )
    return {"parameters": parameters, "limit": LIMITS[name], **found}


def main() -> None:
    """Plan all shapes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "plan_large.json")
    arguments = parser.parse_args()
    result = {name: plan(name) for name in SHAPES}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
