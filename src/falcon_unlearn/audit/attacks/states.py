"""Collect block outputs at the tokens of the attacker's texts.

Shapes: N states, D hidden.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from falcon_unlearn.activations.collect import batches_by_length, pad_token_ids
from falcon_unlearn.models.engine import BlockEngine

_SKIPPED_TOKENS = 1
"""The first token of a text is the attention sink."""


def block_outputs(
    engine: BlockEngine, texts: Sequence[Sequence[int]], *, maximum_states: int, batch_tokens: int, seed: int
) -> list[Tensor]:
    """Return for every block N x D float32 states on the processor, at the same tokens for every model.

    Args:
        engine: Engine over the model.
        texts: Token ids; the first token of each is left out.
        maximum_states: Most states kept, drawn from all texts.
        batch_tokens: Tokens per forward pass.
        seed: Decides which states are kept.
    """
    places = [(text, token) for text, ids in enumerate(texts) for token in range(_SKIPPED_TOKENS, len(ids))]
    if len(places) > maximum_states:
        places = random.Random(f"{seed}:states").sample(places, maximum_states)
    tokens_of: dict[int, list[int]] = {}
    for text, token in sorted(places):
        tokens_of.setdefault(text, []).append(token)
    kept: list[list[Tensor]] = [[] for _ in range(engine.structure.num_blocks)]
    with torch.inference_mode():
        for batch in batches_by_length([len(text) for text in texts], batch_tokens):
            ids_BL, _ = pad_token_ids(texts, batch, engine.device)
            found = [(row, token) for row, text in enumerate(batch) for token in tokens_of.get(text, [])]
            rows = torch.tensor([row for row, _ in found], dtype=torch.long, device=engine.device)
            columns = torch.tensor([token for _, token in found], dtype=torch.long, device=engine.device)

            def keep(layer: int, states: Tensor, rows: Tensor = rows, columns: Tensor = columns) -> None:
                kept[layer].append(states[rows, columns].float().cpu())

            with engine.observe(keep):
                engine.base(input_ids=ids_BL, use_cache=False)
    return [torch.cat(parts) if parts else torch.empty(0, engine.structure.hidden_size) for parts in kept]
