"""Run frozen linear maps from weights of a narrower dtype, and blocks without kept activations.

Both change memory only: the products are those of the converted weights. A window of three blocks of a 7B
model holds 1.0 GB of frozen bfloat16 weights this way instead of 1.9 GB in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class _WidenedProduct(torch.autograd.Function):
    """Multiply by a frozen weight that is converted in the forward and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        wide_bias = None if bias is None else bias.to(inputs.dtype)
        return functional.linear(inputs, weight.to(inputs.dtype), wide_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.to(gradient.dtype), None, None


def _widened_forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    result: Tensor = _WidenedProduct.apply(inputs, module.weight, module.bias)  # type: ignore[no-untyped-call]
    return result


def frozen_linears(block: nn.Module, trained: Iterable[nn.Parameter]) -> list[nn.Linear]:
    """Return the plain linear maps of `block` whose parameters are not trained."""
    kept = {id(parameter) for parameter in trained}
    return [
        module
        for module in block.modules()
        if type(module) is nn.Linear and not any(id(p) in kept for p in module.parameters())
    ]


@contextmanager
def widened_products(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Let `linears` convert their weights to the dtype of their input at each use, inside the context."""
    changed = list(linears)
    try:
        for module in changed:
            module.forward = partial(_widened_forward, module)  # type: ignore[method-assign]
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


@contextmanager
def recomputed_blocks(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Keep only what enters a block for the backward pass, and run the block again there."""
    changed = list(blocks)
    try:
        for block in changed:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in changed:
            block.__dict__.pop("forward", None)
