"""Measure how fast this machine computes one block of a model, without the model's weights.

Square products alone mislead: narrow blocks lose much of the peak to attention, norms and Python, wide ones
hardly any, and an update touches memory only. So a block of the model's own class and sizes is run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.config.objective import ConflictSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.precision import matrix_product_speed, synchronise
from falcon_unlearn.optimizers import build_optimizer
from falcon_unlearn.pipeline.costs import Shapes
from falcon_unlearn.training.cost import cache_flops, train_flops
from falcon_unlearn.training.guards import check_finite_optimizer, check_finite_tensors
from falcon_unlearn.training.loop import combine

LARGEST_BLOCK = 2**30
"""Bytes of a block that is built to be measured; larger ones are guessed from square products."""
EFFICIENCY = 0.75
"""Share of square products that blocks too large to build reach; wide blocks lose little."""
WORK = 2e11
"""FLOP of one measured pass, at most: a second or two on two cores."""
ROW = 128
"""Tokens of a measured sequence, at most."""
ELEMENTS = 2**24
"""Elements of the tensor on which an update is measured, at most."""


@dataclass(frozen=True)
class Pace:
    """Hold measured speeds."""

    forward: float
    """FLOP per second of forward passes."""
    training: float
    """FLOP per second of forward and backward passes, by the count of `train_flops`."""
    update: float
    """Seconds that one trained element costs per step: inner products, combination, checks, optimizer."""
    widen: float
    """Seconds to convert one element to the compute dtype."""


def measure_pace(
    recipe: Recipe,
    model: Any,
    engine: BlockEngine,
    shapes: Shapes,
    trained: list[str],
    dtype: torch.dtype,
    device: torch.device,
) -> Pace:
    """Run one block forward, and forward and backward, and update one tensor; a few seconds at most.

    Args:
        recipe: Names the optimizer and the conflict rule.
        model: Model without weights, but with real buffers.
        engine: Engine over it.
        shapes: Its sizes.
        trained: Names of the tensors that are trained.
        dtype: Compute dtype.
        device: Where a run would compute.
    """
    update, widen = _update_seconds(recipe, shapes, device), _widen_seconds(shapes, dtype, device)
    if shapes.block * dtype.itemsize > LARGEST_BLOCK:
        speed = EFFICIENCY * matrix_product_speed(dtype, device)
        return Pace(speed, speed, update, widen)
    tokens = int(max(64, min(recipe.runtime.cache_batch_tokens, WORK / (2 * shapes.block))))
    with _one_block(model, engine, shapes.top, dtype, device) as block:
        states_BLD = torch.ones(
            -(-tokens // ROW), min(tokens, ROW), shapes.hidden_size, dtype=dtype, device=device
        )
        prefix = engine.structure.block_prefix(shapes.top)
        chosen = [p for name, p in block.named_parameters() if prefix + name in trained]
        count = states_BLD.shape[0] * states_BLD.shape[1]
        forward = _best(lambda: _forward(engine, states_BLD), device)
        training = _best(lambda: _both_ways(engine, states_BLD, chosen), device)
    return Pace(
        cache_flops(count, shapes.block, 0) / forward,
        train_flops(count, shapes.block, 1, sum(p.numel() for p in chosen)) / training,
        update,
        widen,
    )


@contextmanager
def _one_block(
    model: Any, engine: BlockEngine, layer: int, dtype: torch.dtype, device: torch.device
) -> Iterator[nn.Module]:
    """Open a window on one block that holds constants: what they are does not change the time."""
    block = copy.deepcopy(engine.block(layer)).to_empty(device=device).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(0.01)
    block.requires_grad_(False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device != device:
                module.register_buffer(name, buffer.to(device), persistent=False)
    with engine.substituted({layer: block}), engine.window(layer, layer):
        yield block


@torch.no_grad()
def _forward(engine: BlockEngine, states_BLD: Tensor) -> None:
    engine.forward(states_BLD)


def _both_ways(engine: BlockEngine, states_BLD: Tensor, chosen: list[nn.Parameter]) -> None:
    inputs_BLD = states_BLD.detach().requires_grad_(True)
    for parameter in chosen:
        parameter.requires_grad_(True)
    output = engine.forward(inputs_BLD)
    torch.autograd.grad(output.float().square().mean(), [inputs_BLD, *chosen], allow_unused=True)
    for parameter in chosen:
        parameter.requires_grad_(False)


def _update_seconds(recipe: Recipe, shapes: Shapes, device: torch.device) -> float:
    count = int(min(shapes.largest_trained, ELEMENTS))
    value = torch.ones(count, device=device, requires_grad=True)
    optimizer = build_optimizer(recipe.train.optimizer, [value], learning_rate=1e-6, weight_decay=0.0)

    def update() -> None:
        forget, retain = torch.full_like(value, 1e-3), torch.full_like(value, -1e-3)
        started = time.perf_counter()
        resolved = combine({"x": forget}, {"x": retain}, ConflictSettings(), {"x": 0}, overwrite=True)
        check_finite_tensors("gradient", resolved.gradients, 0)
        value.grad = resolved.gradients["x"]
        optimizer.step()
        check_finite_tensors("parameter", {"x": value.detach()}, 0)
        check_finite_optimizer(optimizer, ["x"], 0)
        synchronise(device)
        taken.append(time.perf_counter() - started)

    taken: list[float] = []
    for _ in range(3):
        update()
    best: float = min(taken)
    return best / count


def _widen_seconds(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> float:
    if shapes.source_bytes == dtype.itemsize:
        return 0.0
    count = int(min(max(shapes.largest_linear, 2**20), ELEMENTS))
    narrow = torch.ones(count, dtype=torch.bfloat16, device=device)
    seconds: float = _best(lambda: narrow.to(dtype), device)
    return seconds / count


def _best(action: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Return the least seconds of some calls; the first, which warms up, counts only if it is slow."""
    taken: list[float] = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        action()
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return min(taken)
