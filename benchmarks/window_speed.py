"""Compare the window engine with a plain loop, and say where the time goes.

    python benchmarks/window_speed.py [--model DIR] [--steps 40]

Every part runs in a fresh process, so that peak memory is its own; ratios compare parts of one invocation.
The result is written to benchmarks/results/window_speed.json and printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LAYER, WINDOW = 7, (5, 7)
RESULTS = Path(__file__).parent / "results"


def batches(steps: int, batch: int, length: int, seed: int) -> list[list[list[int]]]:
    """Draw token ids that differ in every step, so that caching cannot profit from repetition."""
    import random

    draw = random.Random(seed)
    return [[[draw.randrange(20, 49000) for _ in range(length)] for _ in range(batch)] for _ in range(steps)]


def load(model: str, dtype: str) -> Any:
    """Load the model in a dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded.eval()


def peaks() -> dict[str, float]:
    """Measure the matrix-product peak of this machine in GFLOP/s, best of several sizes."""
    import torch

    from falcon_unlearn.models.precision import matrix_product_speed

    device = torch.device("cpu")
    return {
        name: max(matrix_product_speed(dtype, device, size=size, repeats=9) for size in (1024, 2048)) / 1e9
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }


def memory() -> int:
    """Return peak resident bytes of this process so far."""
    from falcon_unlearn.training.session import peak_memory_bytes

    return peak_memory_bytes()


def part_import(_: argparse.Namespace) -> dict[str, Any]:
    """Measure what the libraries alone take."""
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    return {"peak_bytes": memory(), "peaks_gflops": peaks()}


def part_plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the plain loop."""
    import torch
    from plain_loop import run_plain_loop

    model = load(arguments.model, arguments.dtype)
    forget = [torch.tensor(ids) for ids in batches(arguments.steps, arguments.batch, arguments.length, 1)]
    retain = [torch.tensor(ids) for ids in batches(arguments.steps, arguments.batch, arguments.length, 2)]
    started = time.perf_counter()
    losses = run_plain_loop(model, forget, retain, LAYER, list(range(WINDOW[0], WINDOW[1] + 1)), 1e-3)
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": memory(),
        "losses": [losses[0], losses[-1]],
    }


def part_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run our session on the same number of distinct samples, caching included."""
    from falcon_unlearn.config.recipe import Recipe
    from falcon_unlearn.data.corpora import Corpus, PreparedData
    from falcon_unlearn.events import ignore_events
    from falcon_unlearn.examples import EncodedExample
    from falcon_unlearn.models.engine import BlockEngine
    from falcon_unlearn.results import DataResult
    from falcon_unlearn.training.session import unlearn_window

    def corpus(name: str, seed: int) -> Corpus:
        rows = [
            row for step in batches(arguments.steps, arguments.batch, arguments.length, seed) for row in step
        ]
        examples = tuple(EncodedExample(tuple(row), (True,) * len(row), "", False) for row in rows)
        return Corpus(name, 1.0, examples, (), ())

    recipe = Recipe.model_validate(
        {
            "model": {"name": "benchmark"},
            "data": {"forget": [{"name": "f", "path": "f"}], "retain": [{"name": "r", "path": "r"}]},
            "objective": {"offset": {"granularity": arguments.granularity}},
            "train": {
                "steps": arguments.steps,
                "batch_size": arguments.batch,
                "learning_rate": 1e-3,
                "compute_dtype": "auto" if arguments.dtype == "bfloat16" else "float32",
                "divergence_factor": 1e9,
            },
        }
    )
    model = load(arguments.model, arguments.dtype).requires_grad_(False)
    data = PreparedData((corpus("f", 1),), (corpus("r", 2),), DataResult(corpora=[]))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        session = unlearn_window(BlockEngine(model), data, recipe, LAYER, Path(folder), ignore_events)
    seconds = time.perf_counter() - started
    result = session.result
    step_seconds = [row["seconds"] for row in result.history]
    return {
        "seconds": seconds,
        "seconds_cache": result.seconds_cache,
        "seconds_train": result.seconds_train,
        "median_step_seconds": statistics.median(step_seconds),
        "peak_bytes": memory(),
        "flops": result.flops,
        "compute_dtype": result.compute_dtype,
        "losses": [result.history[0]["forget_loss"], result.history[-1]["forget_loss"]],
    }


def part_selection(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pool all layers of 400 + 400 samples and score them."""
    from falcon_unlearn.activations.collect import pool_all_layers
    from falcon_unlearn.models.engine import BlockEngine
    from falcon_unlearn.selection.estimators import score_layers
    from falcon_unlearn.selection.settings import InformationSettings

    engine = BlockEngine(load(arguments.model, arguments.dtype).requires_grad_(False))
    sets = {}
    started = time.perf_counter()
    for name, seed in (("forget", 1), ("retain", 2)):
        rows = [tuple(row) for step in batches(100, 4, arguments.length, seed) for row in step]
        sets[name] = pool_all_layers(
            engine, rows, pooling="mean", sink_factor=5.0, batch_tokens=4096, progress=lambda *_: None
        )
    forward = time.perf_counter() - started
    gc.collect()
    seconds = {}
    for estimator in ("pooled", "paired"):
        started = time.perf_counter()
        score_layers(
            {"forget": dict(enumerate(sets["forget"]))},
            dict(enumerate(sets["retain"])),
            InformationSettings(estimator=estimator, num_resamples=50, on_failure="record"),  # type: ignore[arg-type]
        )
        seconds[estimator] = time.perf_counter() - started
    return {"seconds_forward": forward, "seconds_estimator": seconds, "peak_bytes": memory()}


PARTS = {"import": part_import, "plain": part_plain, "engine": part_engine, "selection": part_selection}


def in_process(arguments: argparse.Namespace, part: str, **changes: Any) -> dict[str, Any]:
    """Run one part in a fresh process and return its figures."""
    settings = {**vars(arguments), **changes, "part": part}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    done = subprocess.run([sys.executable, __file__, *flags], check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{part:10} {changes} {figures}", file=sys.stderr, flush=True)
    return figures


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all parts, and form the ratios."""
    libraries = in_process(arguments, "import")
    peak = libraries["peaks_gflops"]
    runs: dict[str, Any] = {"libraries": libraries}
    for dtype in ("float32", "bfloat16"):
        runs[f"plain_{dtype}"] = in_process(arguments, "plain", dtype=dtype)
        runs[f"engine_{dtype}"] = in_process(arguments, "engine", dtype=dtype)
    runs["selection"] = in_process(arguments, "selection", dtype="bfloat16")
    ours = runs["engine_bfloat16"]
    own = ours["peak_bytes"] - libraries["peak_bytes"]
    step_flops = ours["flops"]["train"] / arguments.steps
    summary = {
        "ratio_time_to_plain_float32": runs["plain_float32"]["seconds"] / ours["seconds"],
        "ratio_time_to_plain_bfloat16": runs["plain_bfloat16"]["seconds"] / ours["seconds"],
        "ratio_time_same_float32": runs["plain_float32"]["seconds"] / runs["engine_float32"]["seconds"],
        "share_of_plain_float32_memory": ours["peak_bytes"] / runs["plain_float32"]["peak_bytes"],
        "share_of_plain_bfloat16_memory": ours["peak_bytes"] / runs["plain_bfloat16"]["peak_bytes"],
        "share_of_plain_float32_memory_without_libraries": own
        / (runs["plain_float32"]["peak_bytes"] - libraries["peak_bytes"]),
        "window_step_gflops": step_flops / ours["median_step_seconds"] / 1e9,
        "window_step_share_of_peak": step_flops
        / ours["median_step_seconds"]
        / 1e9
        / peak[ours["compute_dtype"]],
        "cache_share_of_peak": ours["flops"]["cache"] / ours["seconds_cache"] / 1e9 / peak["bfloat16"],
        "floor_seconds_at_peak": (ours["flops"]["train"] + ours["flops"]["cache"])
        / 1e9
        / peak[ours["compute_dtype"]],
        "selection_estimator_share": {
            name: seconds / (seconds + runs["selection"]["seconds_forward"])
            for name, seconds in runs["selection"]["seconds_estimator"].items()
        },
    }
    return {
        "settings": vars(arguments),
        "machine": platform.processor() or platform.machine(),
        "runs": runs,
        "summary": summary,
    }


def main() -> None:
    """Parse the flags and run a part, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--granularity", default="sample")
    parser.add_argument("--part", default="all", choices=["all", *PARTS])
    arguments = parser.parse_args()
    if not arguments.model:
        from falcon_unlearn.demo.weights import smollm2_folder

        arguments.model = str(smollm2_folder())
    if arguments.part != "all":
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    result = compare(arguments)
    result["settings"] = {**result["settings"], "model": "SmolLM2-135M-Instruct"}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "window_speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()
