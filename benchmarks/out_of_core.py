"""Unlearn a model of Mistral-7B's shape, and select its layer, inside a memory limit.

    python benchmarks/out_of_core.py FOLDER [--limit 6GiB] [--blocks 32] [--keep]

Builds a random checkpoint (14.5 GB of bfloat16 in shards) in FOLDER, plans, unlearns and selects in fresh
processes, checks the result file by file, and writes benchmarks/results/out_of_core.json. FOLDER is removed
at the end unless --keep is given. Threads are those of OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOCKS_PER_SHARD = 2
WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()


def build(folder: Path, blocks: int) -> None:
    """Write config, tokenizer and random shards; one shard is in memory at a time."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import MistralConfig, MistralForCausalLM

    sys.path.insert(0, str(ROOT / "tests"))
    from pico import pico_tokenizer

    config = MistralConfig(**SHAPE, num_hidden_layers=blocks, dtype="bfloat16")
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    with init_empty_weights():
        model = MistralForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    # One pool of normal numbers, read from another offset by every tensor: drawing 7 billion takes longer.
    pool = (torch.randn(2**27 + 2**25, generator=generator) * 0.02).bfloat16()
    draw = random.Random(0)
    groups: dict[int, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")
        shard = 1 + int(part[2]) // BLOCKS_PER_SHARD if "layers" in part else 0 if "embed" in name else 10**6
        groups.setdefault(shard, {})[name] = tuple(parameter.shape)
    weight_map = {}
    for number, (_, members) in enumerate(sorted(groups.items()), start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name, shape in members.items():
            count = torch.Size(shape).numel()
            start = draw.randrange(len(pool) - count)
            values = pool[start : start + count].clone().view(shape)
            tensors[name] = 1 + values if len(shape) == 1 else values
            weight_map[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
        print(f"built {file}", file=sys.stderr, flush=True)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_data(folder: Path) -> None:
    """Write two forget domains and one retain set of 32 texts of 128 characters, one token each."""
    for seed, name in enumerate(("one", "two", "rest")):
        draw = random.Random(seed)
        texts = [" ".join(draw.choices(WORDS, k=40))[:128] for _ in range(32)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def recipe_of(arguments: argparse.Namespace, **changes: Any) -> Any:
    """Return the recipe of all parts."""
    from falcon_unlearn.config.recipe import Recipe

    folder = Path(arguments.folder)
    values: dict[str, Any] = {
        "model": {"name": str(folder / "model")},
        "data": {
            "forget": [
                {"name": name, "path": str(folder / f"{name}.jsonl"), "limit": arguments.rows}
                for name in ("one", "two")
            ],
            "retain": [{"name": "rest", "path": str(folder / "rest.jsonl"), "limit": arguments.rows}],
            "chat_template": False,
            "maximum_tokens": 128,
            "holdout_share": 0.0,
        },
        "selection": {"layer": arguments.layer},
        "train": {"steps": arguments.steps, "batch_size": arguments.batch},
        "evaluation": {"sets": [], "held_out": False},
        "runtime": {"device": "cpu", "memory_limit": arguments.limit},
    }
    return Recipe.model_validate(values | changes)


def selection_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of step 1: few samples, so that 32 blocks take minutes."""
    return {"selection": {"layer": None, "samples": arguments.samples, "resamples": 20}}


def memory() -> int:
    """Return peak resident bytes of this process so far."""
    from falcon_unlearn.runs.memory import peak_memory_bytes

    return peak_memory_bytes()


def part_plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Predict the run, and measure the peak of matrix products and the pace of a read."""
    import torch

    from falcon_unlearn.models.precision import matrix_product_speed
    from falcon_unlearn.pipeline import plan_run

    run = plan_run(recipe_of(arguments))
    select = plan_run(recipe_of(arguments, **selection_settings(arguments)))
    device = torch.device("cpu")
    peaks = {
        str(dtype).removeprefix("torch."): max(
            matrix_product_speed(dtype, device, size=size, repeats=5) for size in (512, 1024)
        )
        / 1e9
        for dtype in (torch.float32, torch.bfloat16)
    }
    shard = max(Path(arguments.folder, "model").glob("*.safetensors"))
    started = time.perf_counter()
    with shard.open("rb") as file:
        while file.read(2**24):
            pass
    pace = shard.stat().st_size / (time.perf_counter() - started)
    keep = {"streamed", "placement", "memory_bytes", "disk_bytes", "flops", "seconds"}
    return {
        "run": run.model_dump(include=keep),
        "selection": select.model_dump(include=keep),
        "peaks_gflops": peaks,
        "read_bytes_per_second": pace,
    }


def part_unlearn(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all stages, and split the time by the events."""
    from falcon_unlearn.events import Progress, StageStarted, TrainingStepped
    from falcon_unlearn.pipeline import run_pipeline

    marks: list[tuple[float, Any]] = []
    peaks: dict[str, int] = {}

    def note(event: Any) -> None:
        marks.append((time.perf_counter(), event))
        peaks[getattr(event, "stage", "train" if isinstance(event, TrainingStepped) else "other")] = memory()
        print(
            f"{time.strftime('%H:%M:%S')} {memory() / 2**30:.2f} GiB {event}"[:300],
            file=sys.stderr,
            flush=True,
        )

    output = Path(arguments.folder) / "output"
    started = time.perf_counter()
    summary = run_pipeline(recipe_of(arguments), output, typed_recipe="", command="", sink=note)
    first = arguments.layer - 2
    cache_start = next(t for t, e in marks if isinstance(e, StageStarted) and e.stage == "cache")
    prefix_end = next(
        t for t, e in marks if isinstance(e, Progress) and e.stage == "cache" and e.done == first
    )
    window_end = next(
        t for t, e in marks if isinstance(e, Progress) and e.stage == "cache" and e.done > first
    )
    training = summary.training
    return {
        "seconds": time.perf_counter() - started,
        "stages": summary.seconds,
        "split": {
            "prefix_blocks": prefix_end - cache_start,
            "window_frozen_outputs": window_end - prefix_end,
            "train": training.seconds_train,
            "write": summary.seconds["write"],
            "hash_and_report": summary.seconds["report"],
            "read_inside_the_above": training.seconds_read,
        },
        "step_seconds": [row["seconds"] for row in training.history],
        "peak_bytes": memory(),
        "peak_bytes_by_stage": peaks,
        "bytes_read": training.bytes_read,
        "compute_dtype": training.compute_dtype,
        "flops": training.flops,
        "cache_bytes": training.cache_bytes,
        "cached_tokens": training.cached_tokens,
        "forget_loss": [training.history[0]["forget_loss"], training.history[-1]["forget_loss"]],
        "trained": training.trained,
        "relative_change": [change.relative_change for change in training.changes],
    }


def part_select(arguments: argparse.Namespace) -> dict[str, Any]:
    """Select over all blocks."""
    from falcon_unlearn.pipeline import select_layer

    started = time.perf_counter()
    result = select_layer(
        recipe_of(arguments, **selection_settings(arguments)),
        sink=lambda event: print(f"{time.strftime('%H:%M:%S')} {event}"[:200], file=sys.stderr, flush=True),
    )
    return {
        "seconds": time.perf_counter() - started,
        "seconds_forward": result.seconds_forward,
        "seconds_estimator": result.seconds_estimator,
        "layers_scored": len(result.layers),
        "samples": result.samples,
        "peak_bytes": memory(),
    }


def part_check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the written folder with the source: hashes, names, shapes, and what transformers says."""
    from transformers import AutoModelForCausalLM

    from falcon_unlearn.models.safety.inventory import take_inventory
    from falcon_unlearn.runs import sha256_file, verify_manifest

    source, output = Path(arguments.folder) / "model", Path(arguments.folder) / "output"
    manifest = verify_manifest(output)
    hashes = {file.name: file.sha256 for file in manifest.files}
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    same = [name for name in shards if hashes[name] == sha256_file(source / name)]
    before, after = take_inventory(source).tensors, take_inventory(output).tensors
    _, info = AutoModelForCausalLM.from_pretrained(output, device_map={"": "meta"}, output_loading_info=True)
    return {
        "shards": len(shards),
        "identical_shards": len(same),
        "changed_shards": sorted(set(shards) - set(same)),
        "linked_shards": sum((output / name).samefile(source / name) for name in shards),
        "same_names_shapes_and_types": dict(before) == dict(after),
        "missing_keys": sorted(info["missing_keys"]),
        "unexpected_keys": sorted(info["unexpected_keys"]),
    }


PARTS = {"plan": part_plan, "unlearn": part_unlearn, "select": part_select, "check": part_check}


def in_process(arguments: argparse.Namespace, part: str) -> dict[str, Any]:
    """Run one part in a fresh process and return its figures, with the peak that the system saw."""
    flags = [
        f"--{key}={value}"
        for key, value in vars(arguments).items()
        if key in {"limit", "steps", "rows", "batch", "layer", "samples"}
    ]
    command = [sys.executable, __file__, arguments.folder, f"--part={part}", *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{part}: {figures}", file=sys.stderr, flush=True)
    return figures


def compare(arguments: argparse.Namespace, runs: dict[str, Any]) -> dict[str, Any]:
    """Set measurements against predictions and floors."""
    plan, unlearned, selected = runs["plan"], runs["unlearn"], runs["select"]
    peak = plan["peaks_gflops"][unlearned["compute_dtype"]] * 1e9
    work = sum(unlearned["flops"].values())
    predicted = plan["run"]
    floor_read = unlearned["bytes_read"] / plan["read_bytes_per_second"]
    return {
        "peak_gib": unlearned["peak_bytes"] / 2**30,
        "selection_peak_gib": selected["peak_bytes"] / 2**30,
        "inside_limit": max(unlearned["peak_bytes"], selected["peak_bytes"]) <= limit_bytes(arguments.limit),
        "memory_predicted_over_measured": predicted["memory_bytes"]["total"] / unlearned["peak_bytes"],
        "selection_memory_predicted_over_measured": plan["selection"]["memory_bytes"]["total"]
        / selected["peak_bytes"],
        "seconds_predicted_over_measured": {
            part: predicted["seconds"][part] / unlearned["stages"][part] for part in ("cache", "train")
        },
        "selection_seconds_predicted_over_measured": plan["selection"]["seconds"]["selection"]
        / selected["seconds_forward"],
        "store_predicted_equals_measured": predicted["disk_bytes"]["store"] == unlearned["cache_bytes"],
        "flops_predicted_equal_measured": {
            k: predicted["flops"][k] == v for k, v in unlearned["flops"].items()
        },
        "floor_seconds": {"products_at_peak": work / peak, "read_once": floor_read},
        "cache_and_train_over_floor": (unlearned["stages"]["cache"] + unlearned["stages"]["train"])
        / (work / peak + floor_read),
        "share_of_peak": {
            part: unlearned["flops"][part] / unlearned["stages"][part] / peak for part in ("cache", "train")
        },
    }


def limit_bytes(text: str) -> int:
    """Return the limit in bytes."""
    from falcon_unlearn.config.memory import parse_memory

    return parse_memory(text)


def main() -> None:
    """Parse the flags and run a part, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--limit", default="6GiB")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32, help="texts of 128 tokens per set, up to 32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--samples", type=int, default=8, help="selection samples per set")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--result", default=str(RESULTS / "out_of_core.json"))
    parser.add_argument("--part", default="all", choices=["all", *PARTS])
    arguments = parser.parse_args()
    if arguments.part != "all":
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    folder = Path(arguments.folder)
    if not (folder / "model").exists():
        (folder / "model").mkdir(parents=True)
        build(folder / "model", arguments.blocks)
        write_data(folder)
    runs: dict[str, Any] = {}
    for part in ("plan", "unlearn", "check", "select"):
        runs[part] = in_process(arguments, part)
        # Written after every part, so that an interruption keeps what is measured.
        save(arguments, runs, {})
    save(arguments, runs, compare(arguments, runs))
    print(json.dumps(compare(arguments, runs), indent=2))
    if not arguments.keep:
        shutil.rmtree(folder)


def save(arguments: argparse.Namespace, runs: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write the result file; it names no path of this machine."""
    settings = {k: v for k, v in vars(arguments).items() if k not in {"folder", "result", "part", "keep"}}
    result = {
        "settings": settings | {"threads": os.environ.get("OMP_NUM_THREADS"), "load": os.getloadavg()[0]},
        "machine": platform.processor() or platform.machine(),
        "summary": summary,
        "runs": runs,
    }
    Path(arguments.result).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
