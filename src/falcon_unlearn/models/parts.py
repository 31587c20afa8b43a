"""Observe what attention and MLP of each block add to the residual stream.

Shapes: B batch, L tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.models.engine import BlockEngine

_ATTENTION_NAMES = ("self_attn", "attention", "attn")
_TOLERANCE = 0.02
"""Relative error of a sum of three terms that half-precision rounding may cause."""


@dataclass(frozen=True)
class BlockStates:
    """Hold the states of one block in one forward pass, each B x L x D."""

    entering: Tensor
    attention: Tensor
    """What the attention adds."""
    mlp: Tensor
    """What the MLP adds."""
    leaving: Tensor


PartsObserver = Callable[[int, BlockStates], None]


def writers(block: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return the modules whose outputs attention and MLP add to the stream; None: not recognised.

    Blocks with a norm behind each part (Gemma 2 and 3, OLMo 2) add what the norm gives.
    """
    children = dict(block.named_children())
    if "post_feedforward_layernorm" in children and "post_attention_layernorm" in children:
        return children["post_attention_layernorm"], children["post_feedforward_layernorm"]
    attention = next((children[name] for name in _ATTENTION_NAMES if name in children), None)
    mlp = children.get("mlp")
    return None if attention is None or mlp is None else (attention, mlp)


@contextmanager
def observe_parts(engine: BlockEngine, observer: PartsObserver) -> Iterator[None]:
    """Call `observer` with every executed block's index and states while the context is open.

    Raises:
        KeyError: A block has no recognised parts; ask `has_additive_parts` first.
    """
    handles: list[Any] = []
    try:
        for layer in range(engine.structure.num_blocks):
            handles += _attach(engine.block(layer), layer, observer)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(block: nn.Module, layer: int, observer: PartsObserver) -> list[Any]:
    found = writers(block)
    if found is None:
        raise KeyError(layer)
    seen: dict[str, Tensor] = {}

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["entering"] = args[0] if args else kwargs["hidden_states"]

    def keep(part: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[part] = _first(output)

        return hook

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        observer(layer, BlockStates(seen["entering"], seen["attention"], seen["mlp"], _first(output)))
        seen.clear()

    return [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        found[0].register_forward_hook(keep("attention")),
        found[1].register_forward_hook(keep("mlp")),
        block.register_forward_hook(leave),
    ]


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def has_additive_parts(engine: BlockEngine, token_ids: Sequence[int]) -> bool:
    """Tell whether in every block entering state, attention and MLP add up to what leaves it.

    Runs one forward pass over `token_ids`. Families that scale their residuals answer no.
    """
    if any(writers(engine.block(layer)) is None for layer in range(engine.structure.num_blocks)):
        return False
    fits: list[bool] = []

    def compare(_layer: int, states: BlockStates) -> None:
        total = states.entering.float() + states.attention.float() + states.mlp.float()
        error = (total - states.leaving.float()).norm()
        fits.append(bool(error <= _TOLERANCE * states.leaving.float().norm()))

    with torch.inference_mode(), observe_parts(engine, compare):
        engine.base(input_ids=torch.tensor([list(token_ids)], device=engine.device), use_cache=False)
    return all(fits)
