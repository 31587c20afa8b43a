"""Run blocks that do not fit into memory: each is read once and sees all samples before the next one comes.

Legend: B batch, L tokens, D hidden, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from falcon_unlearn.activations.collect import (
    CachedStates,
    ProgressCallback,
    batches_by_length,
    pad_token_ids,
    pool_tokens,
)
from falcon_unlearn.activations.store import ActivationStore
from falcon_unlearn.distributed.stores import exchange_states
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.models.engine import BlockEngine

Corpora = Mapping[str, Sequence[Sequence[int]]]
"""Token ids of each sample, by the name of the corpus."""
Visitor = Callable[[str, int, list[int], Tensor, Tensor], None]
"""Receives corpus, block, sample indices, that block's output B x L x D, and the mask B x L."""


def _ignore(*_: object) -> None:
    """Drop what a sweep shows."""


@torch.no_grad()
def open_stores(
    engine: BlockEngine,
    corpora: Corpora,
    folder: Path,
    kind: str,
    *,
    store_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    batch_tokens: int,
    team: Team | None = None,
) -> dict[str, ActivationStore]:
    """Create one store per corpus and fill it with the states that enter block 0, each rank its own part."""
    stores = {}
    for name, samples in corpora.items():
        lengths = [len(sample) for sample in samples]
        stores[name] = ActivationStore(
            folder / f"{name}.{kind}", lengths, engine.structure.hidden_size, store_dtype
        )
        for batch in own_batches(lengths, batch_tokens, team):
            ids_BL, _ = pad_token_ids(samples, batch, engine.device)
            write_rows(stores[name], batch, engine.embed(ids_BL).to(compute_dtype))
    return stores


@torch.no_grad()
def sweep_blocks(
    engine: BlockEngine,
    stores: Mapping[str, ActivationStore],
    first: int,
    last: int,
    *,
    compute_dtype: torch.dtype,
    batch_tokens: int,
    visit: Visitor = _ignore,
    progress: ProgressCallback,
    team: Team | None = None,
) -> None:
    """Take the states of all stores through blocks [first .. last], in place, with one block in memory.

    Args:
        engine: The engine; blocks are read and dropped one by one.
        stores: States that enter block `first`; afterwards those that leave block `last`.
        first: First block.
        last: Last block, inclusive; nothing happens when it lies below `first`.
        compute_dtype: Dtype of the products. States are rounded to the dtype of the stores between blocks.
        batch_tokens: Padded tokens per forward pass.
        visit: Sees the output of every block, before rounding.
        progress: Receives blocks done and in total.
        team: Ranks that share the samples: each takes those of its own batches through all blocks.
    """
    for layer in range(first, last + 1):
        with engine.resident(layer, layer, compute_dtype):
            for name, store in stores.items():
                for batch in own_batches(store.lengths, batch_tokens, team):
                    states_BLD, mask_BL = store.batch(batch)
                    states_BLD = states_BLD.to(device=engine.device, dtype=compute_dtype)
                    states_BLD = engine.run(states_BLD, layer, layer)
                    visit(name, layer, batch, states_BLD, mask_BL.to(engine.device))
                    write_rows(store, batch, states_BLD)
        progress(layer - first + 1, last - first + 1)


@torch.no_grad()
def cache_states_by_block(
    engine: BlockEngine,
    corpora: Corpora,
    window: tuple[int, int],
    folder: Path,
    *,
    compute_dtype: torch.dtype,
    store_dtype: torch.dtype,
    batch_tokens: int,
    progress: ProgressCallback,
    team: Team | None = None,
) -> dict[str, CachedStates]:
    """Fill the stores of `caching.cache_states` for all corpora, reading every block below the window once.

    Blocks below the window run in `compute_dtype` too. Where the stores have that dtype, the states equal
    those of a model in memory bit for bit; narrower stores round them between blocks.

    Args:
        engine: The engine over the unchanged model, on disk or in memory.
        corpora: Token ids by corpus.
        window: First and last block, inclusive.
        folder: Existing folder for the files.
        compute_dtype: Dtype of the products, here and in training.
        store_dtype: Dtype on disk.
        batch_tokens: Padded tokens per forward pass.
        progress: Receives blocks done and in total.
        team: Ranks that share the samples; every rank reads every block.
    """
    team = team or Team()
    first, last = window
    inputs = open_stores(
        engine,
        corpora,
        folder,
        "inputs",
        store_dtype=store_dtype,
        compute_dtype=compute_dtype,
        batch_tokens=batch_tokens,
        team=team,
    )
    total = last + 1
    sweep_blocks(
        engine,
        inputs,
        0,
        first - 1,
        compute_dtype=compute_dtype,
        batch_tokens=batch_tokens,
        progress=lambda done, _: progress(done, total),
        team=team,
    )
    cached = {}
    with engine.resident(first, last), engine.computing(first, last, compute_dtype):
        for name, store in inputs.items():
            outputs = ActivationStore(
                folder / f"{name}.outputs", store.lengths, engine.structure.hidden_size, store_dtype
            )
            for batch in own_batches(store.lengths, batch_tokens, team):
                entering_BLD = store.batch(batch)[0].to(device=engine.device, dtype=compute_dtype)
                write_rows(outputs, batch, engine.run(entering_BLD, first, last))
            cached[name] = CachedStates(store, outputs)
    for states in cached.values():
        batches = list(batches_by_length(states.inputs.lengths, batch_tokens))
        exchange_states(team, (states.inputs, states.outputs), batches)
    progress(total, total)
    return cached


@torch.no_grad()
def pool_by_block(
    engine: BlockEngine,
    corpora: Corpora,
    folder: Path,
    *,
    compute_dtype: torch.dtype,
    store_dtype: torch.dtype,
    pooling: str,
    sink_factor: float,
    batch_tokens: int,
    progress: ProgressCallback,
) -> dict[str, Tensor]:
    """Pool the output of every block as `collect.pool_all_layers` does, with one block in memory.

    Returns:
        Blocks x N x D in float32 on the processor, by corpus.
    """
    blocks, hidden = engine.structure.num_blocks, engine.structure.hidden_size
    pooled = {name: torch.empty(blocks, len(samples), hidden) for name, samples in corpora.items()}

    def keep(name: str, layer: int, batch: list[int], states_BLD: Tensor, mask_BL: Tensor) -> None:
        pooled[name][layer, batch] = pool_tokens(states_BLD, mask_BL, pooling, sink_factor).float().cpu()

    stores = open_stores(
        engine,
        corpora,
        folder,
        "states",
        store_dtype=store_dtype,
        compute_dtype=compute_dtype,
        batch_tokens=batch_tokens,
    )
    sweep_blocks(
        engine,
        stores,
        0,
        blocks - 1,
        compute_dtype=compute_dtype,
        batch_tokens=batch_tokens,
        visit=keep,
        progress=progress,
    )
    return pooled


def own_batches(lengths: Sequence[int], batch_tokens: int, team: Team | None) -> list[list[int]]:
    """Return the batches of samples that this rank works on: all of them without a team."""
    batches = list(batches_by_length(lengths, batch_tokens))
    return batches if team is None else team.own_part(batches)


def write_rows(store: ActivationStore, batch: Sequence[int], states_BLD: Tensor) -> None:
    """Store the states of a batch without its padding."""
    for row, index in enumerate(batch):
        store.write(index, states_BLD[row, : store.lengths[index]])
