"""Compare three ways to unlearn a Zephyr-7B shape of random weights: 150 steps of 4 x 512 tokens.

    python benchmarks/gpu_window.py [--device cuda] [--modes plain,truncated,ours,compiled] [--out FILE]

Two domains. plain: two whole models, full forward passes with the head. truncated: two models cut above the
loss layer. ours: states cached once, then the window alone; its time includes caching. compiled: ours with
torch.compile of the window, compilation included. Known figure for the
truncated loop on an A100-40G, RMU: 62 s and 29.8 GB. `--shape pico --device cpu` runs everywhere.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, Shape, bench_recipe, build_model, random_data
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.events import ignore_events
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.precision import matrix_product_speed
from falcon_unlearn.runs.memory import peak_memory_bytes
from falcon_unlearn.training.session import step_plan, unlearn_window

WINDOW = 3


def loop_states(model: Any, ids_BL: Tensor, layer: int) -> Tensor:
    """Run what there is of the model, head included where it has one, and return the output of the layer."""
    kept: dict[str, Tensor] = {}
    hook = model.model.layers[layer].register_forward_hook(lambda _m, _i, out: kept.__setitem__("s", out))
    (model if model.lm_head is not None else model.model)(input_ids=ids_BL, use_cache=False)
    hook.remove()
    return kept["s"]


def run_loop(model: Any, shape: Shape, data: PreparedData, recipe: Any, device: torch.device) -> None:
    """Train with two models in memory: contrastive forget loss, cosine retention, projection."""
    frozen = copy.deepcopy(model)
    layers = range(shape.layer - WINDOW + 1, shape.layer + 1)
    trained = [model.model.layers[i].mlp.down_proj.weight.requires_grad_(True) for i in layers]
    optimizer = torch.optim.AdamW(trained, lr=recipe.train.learning_rate)
    target_D = torch.nn.functional.normalize(torch.randn(shape.hidden, device=device), dim=0)
    plan = step_plan(data, recipe)
    for step in range(recipe.train.steps):
        batch = plan.batch(step)
        forget = [data.forget[batch.domain].training[i].input_ids for i in batch.forget]
        retain = [data.retain[c].training[i].input_ids for c, i in batch.retain]
        gradients = []
        for ids, is_forget in ((forget, True), (retain, False)):
            ids_BL = torch.tensor(ids, device=device)
            new_BLD = loop_states(model, ids_BL, shape.layer).float()
            with torch.no_grad():
                old_BLD = loop_states(frozen, ids_BL, shape.layer).float()
            kept_BL = cosine_similarity(new_BLD, old_BLD, dim=-1)
            wanted_BL = cosine_similarity(new_BLD, target_D.expand_as(new_BLD), dim=-1)
            loss = softplus((kept_BL - wanted_BL) / 0.7).mean() if is_forget else (1 - kept_BL).mean()
            gradients.append(torch.autograd.grad(loss, trained))
        for parameter, u, q in zip(trained, *gradients, strict=True):
            product = (u.float() * q.float()).sum()
            square = q.float().square().sum().clamp_min(1e-30)
            parameter.grad = u - (product.clamp_max(0) / square).to(u.dtype) * q + q
        optimizer.step()


def loop_flops(shape: Shape, block: int, tokens: float, *, whole: bool) -> float:
    """Return FLOP of a loop over `tokens`: two forward passes each, backward from the loss layer."""
    blocks = shape.blocks if whole else shape.layer + 1
    head = shape.vocabulary * shape.hidden if whole else 0
    trained = WINDOW * shape.hidden * shape.intermediate
    return tokens * (2 * 2 * (blocks * block + head) + 2 * block * (WINDOW - 1) + 2 * trained)


def measure(mode: str, shape: Shape, device: torch.device, steps: int, batch: int, length: int) -> Any:
    """Build a model, run one mode, and return its figures."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    # As many samples as the steps of one domain use, so that caching is paid in full.
    data = random_data(2, max(batch, steps * batch // 2), (length, length), shape.vocabulary)
    compiling = "on" if mode == "compiled" else "off"
    recipe = bench_recipe(
        steps, batch, str(dtype).removeprefix("torch."), cache_batch_tokens=8192, compile=compiling
    )
    model = build_model(shape, str(device), dtype)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    facts: dict[str, Any] = {}
    tokens = 2.0 * steps * batch * length
    if mode in {"ours", "compiled"}:
        with tempfile.TemporaryDirectory() as folder:
            engine = BlockEngine(model)
            result = unlearn_window(engine, data, recipe, shape.layer, Path(folder), ignore_events).result
        facts = {"seconds_cache": result.seconds_cache, "seconds_train": result.seconds_train}
        flops = sum(result.flops.values())
    else:
        if mode == "truncated":
            model.model.layers = model.model.layers[: shape.layer + 1]
            model.lm_head = None
        run_loop(model, shape, data, recipe, device)
        flops = loop_flops(shape, block, tokens, whole=mode == "plain")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    peak = matrix_product_speed(dtype, device, size=4096 if device.type == "cuda" else 512)
    return facts | {
        "seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else peak_memory_bytes(),
        "flops": flops,
        "share_of_peak": flops / seconds / peak,
    }


def run(shape: str, device: str, modes: list[str], steps: int, batch: int, length: int) -> dict[str, Any]:
    """Run all modes after another in this process; peak memory on the processor is that of all so far."""
    chosen = torch.device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "processor"
    result: dict[str, Any] = {
        "shape": shape,
        "device": name,
        "steps": steps,
        "batch": batch,
        "length": length,
    }
    for mode in modes:
        result[mode] = measure(mode, SHAPES[shape], chosen, steps, batch, length)
        gc.collect()
        if chosen.type == "cuda":
            torch.cuda.empty_cache()
    return result


def main() -> None:
    """Parse the flags, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="zephyr-7b", choices=list(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--modes", default="ours,compiled,truncated,plain")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    result = run(
        arguments.shape,
        arguments.device,
        arguments.modes.split(","),
        arguments.steps,
        arguments.batch,
        arguments.length,
    )
    text = json.dumps(result, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
