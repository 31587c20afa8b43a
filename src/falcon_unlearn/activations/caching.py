"""Fill the stores that replace the second model: states entering the window, and frozen states leaving it.

Legend: B batch, L tokens, D hidden, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from falcon_unlearn.activations.collect import (
    CachedStates,
    ProgressCallback,
    batches_by_length,
    open_states,
    pad_token_ids,
)
from falcon_unlearn.activations.sweep import cache_states_by_block, write_rows
from falcon_unlearn.distributed.stores import exchange_states
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.models.engine import BlockEngine


@torch.no_grad()
def cache_states(
    engine: BlockEngine,
    samples: Sequence[Sequence[int]],
    window: tuple[int, int],
    folder: Path,
    name: str,
    *,
    compute_dtype: torch.dtype,
    store_dtype: torch.dtype,
    batch_tokens: int,
    progress: ProgressCallback,
    team: Team | None = None,
) -> CachedStates:
    """Run every sample once up to the loss layer and keep two of its states.

    Blocks below the window run in `compute_dtype` as the window does, so that a processor without matrix
    units for bfloat16 is not slow there. Where that means a conversion, block after block is converted once
    and sees all samples; memory holds one converted block more.

    Args:
        engine: The engine over the unchanged model, which is in memory.
        samples: Token ids of each sample.
        window: First and last block, inclusive.
        folder: Existing folder for the two files.
        name: Stem of their names.
        compute_dtype: Dtype of the products; must be that of training, so that step 0 has no drift.
        store_dtype: Dtype on disk.
        batch_tokens: Padded tokens per forward pass.
        progress: Receives samples done and in total.
        team: Ranks that share the work; `folder` is then one that all ranks of a machine see.
    """
    first, last = window
    if _needs_conversion(engine, first, compute_dtype):
        return cache_states_by_block(
            engine,
            {name: samples},
            window,
            folder,
            compute_dtype=compute_dtype,
            store_dtype=store_dtype,
            batch_tokens=batch_tokens,
            progress=lambda done, total: progress(len(samples) * done // total, len(samples)),
            team=team,
        )[name]
    team = team or Team()
    lengths = [len(sample) for sample in samples]
    stores = open_states(folder, name, lengths, engine.structure.hidden_size, store_dtype)
    done = 0
    batches = list(batches_by_length(lengths, batch_tokens))
    with engine.computing(first, last, compute_dtype):
        for batch in team.own_part(batches):
            ids_BL, _ = pad_token_ids(samples, batch, engine.device)
            entering_BLD = engine.embed(ids_BL).to(compute_dtype)
            if first > 0:
                entering_BLD = engine.run(entering_BLD, 0, first - 1)
            # Training reads the stored, rounded inputs, so the frozen outputs must come from those too.
            entering_BLD = entering_BLD.to(store_dtype).to(compute_dtype)
            write_rows(stores.inputs, batch, entering_BLD)
            write_rows(stores.outputs, batch, engine.run(entering_BLD, first, last))
            done += len(batch) * team.size
            progress(min(done, len(samples)), len(samples))
    exchange_states(team, (stores.inputs, stores.outputs), batches)
    return stores


def _needs_conversion(engine: BlockEngine, first: int, dtype: torch.dtype) -> bool:
    """Tell whether a block below `first` holds parameters of another floating-point dtype."""
    parameters = (p for layer in range(first) for p in engine.block(layer).parameters())
    return any(p.is_floating_point() and p.dtype != dtype for p in parameters)
