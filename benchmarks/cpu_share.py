"""Say what share of the measured matrix-product peak the window step and the caching pass reach.

    python benchmarks/cpu_share.py [--threads 2] [--steps 4] [--samples 24] [--batch 8] [--out FILE]

Three blocks of random weights, float32, samples of 64 to 128 tokens. FLOP are those of real tokens: padding
and attention scores count as nothing done. On a busy machine compare processor time, not wall time: both are
given, and so is the load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, bench_recipe, build_model, random_data

from falcon_unlearn.activations.collect import batches_by_length
from falcon_unlearn.events import Event, StageFinished, StageStarted, TrainingStepped
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import plan_layout
from falcon_unlearn.training.session import step_plan, unlearn_window

BLOCKS, BATCH, LENGTHS = 3, 8, (64, 128)


def peak(seconds: float = 2.0, size: int = 1536) -> dict[str, float]:
    """Measure float32 matrix products, FLOP per second of wall and of processor time; best of many."""
    left, best = torch.randn(size, size), {"wall": 0.0, "processor": 0.0}
    left @ left
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        wall, processor = time.perf_counter(), time.process_time()
        left @ left
        best["wall"] = max(best["wall"], 2 * size**3 / (time.perf_counter() - wall))
        best["processor"] = max(best["processor"], 2 * size**3 / max(1e-9, time.process_time() - processor))
    return best


class Clock:
    """Take processor time at the ends of stages and steps."""

    def __init__(self) -> None:
        self.cache = 0.0
        self.steps: list[tuple[float, float]] = []
        self._wall, self._processor = time.perf_counter(), time.process_time()
        self.cache_wall = 0.0

    def __call__(self, event: Event) -> None:
        """Note the time since the last mark."""
        wall, processor = time.perf_counter() - self._wall, time.process_time() - self._processor
        if isinstance(event, StageFinished) and event.stage == "cache":
            self.cache_wall, self.cache = wall, processor
        if isinstance(event, TrainingStepped):
            self.steps.append((wall, processor))
        if isinstance(event, StageStarted | StageFinished | TrainingStepped):
            self._wall, self._processor = time.perf_counter(), time.process_time()


def padding(data: Any, recipe: Any) -> dict[str, float]:
    """Return the share of tokens fed that are padding, in the caching pass and in the steps."""
    corpora = [[len(e.input_ids) for e in c.training] for c in (*data.forget, *data.retain)]
    fed = sum(
        len(batch) * max(lengths[i] for i in batch)
        for lengths in corpora
        for batch in batches_by_length(lengths, recipe.runtime.cache_batch_tokens)
    )
    real_steps = fed_steps = padded_steps = 0
    for step in range(recipe.train.steps):
        batch = step_plan(data, recipe).batch(step)
        forget = [corpora[batch.domain][i] for i in batch.forget]
        retain = [corpora[len(data.forget) + c][i] for c, i in batch.retain]
        for lengths in (forget, retain):
            layout = plan_layout(lengths, max(lengths), torch.device("cpu"))
            padded = len(lengths) * max(lengths)
            real_steps += sum(lengths)
            padded_steps += padded
            fed_steps += padded if layout is None else layout.position_ids_RW.numel()
    return {
        "cache": 1 - sum(map(sum, corpora)) / fed,
        "steps": 1 - real_steps / fed_steps,
        "steps_without_packing": 1 - real_steps / padded_steps,
    }


def measure(name: str, steps: int, samples: int = 24, batch: int = BATCH) -> dict[str, Any]:
    """Run a session over three blocks of a shape."""
    shape = SHAPES[name]
    data, recipe = random_data(1, samples, LENGTHS, 256), bench_recipe(steps, batch, "float32")
    torch.manual_seed(0)
    small = type(shape)(**{**vars(shape), "vocabulary": 256})
    engine = BlockEngine(build_model(small, "cpu", torch.float32, BLOCKS))
    best, clock = peak(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = unlearn_window(engine, data, recipe, BLOCKS - 1, Path(folder), clock).result
    block = sum(p.numel() for p in engine.block(0).parameters())
    trained = result.trained_parameters
    plan = step_plan(data, recipe)
    tokens = [
        sum(len(data.forget[0].training[i].input_ids) for i in plan.batch(s).forget)
        + sum(len(data.retain[c].training[i].input_ids) for c, i in plan.batch(s).retain)
        for s in range(steps)
    ]
    # Forward through all blocks, activation gradients of all but the lowest, weight gradients.
    per_token = 2 * (block * BLOCKS + block * (BLOCKS - 1) + trained)
    rates = [
        [per_token * n / seconds for seconds in pair] for n, pair in zip(tokens, clock.steps, strict=True)
    ]
    cache_flops = 2 * block * BLOCKS * result.cached_tokens
    return {
        "peak_gflops": {kind: value / 1e9 for kind, value in best.items()},
        "step_share": statistics.median(rate[0] for rate in rates) / best["wall"],
        "step_share_processor_time": statistics.median(rate[1] for rate in rates) / best["processor"],
        "cache_share": cache_flops / clock.cache_wall / best["wall"],
        "cache_share_processor_time": cache_flops / clock.cache / best["processor"],
        "padding": padding(data, recipe),
    }


def main() -> None:
    """Measure the shapes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--shapes", default="smollm2,zephyr-7b")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        **{key: getattr(arguments, key) for key in ("threads", "steps", "samples", "batch")},
        "blocks": BLOCKS,
        "load_before": os.getloadavg()[0],
    }
    for name in arguments.shapes.split(","):
        result[name] = measure(name, arguments.steps, arguments.samples, arguments.batch)
    result["load_after"] = os.getloadavg()[0]
    text = json.dumps(result, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
