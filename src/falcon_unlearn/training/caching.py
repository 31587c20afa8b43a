"""Say what the stores of cached states take, and fill them block by block for a model that stays on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from falcon_unlearn.activations.collect import CachedStates, reopen_states, state_files
from falcon_unlearn.activations.kept import files_are_whole, kept_files
from falcon_unlearn.activations.sweep import cache_states_by_block
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.events import EventSink, Notice, Progress
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.runs import WorkFolder, format_bytes, free_disk_check


def announce_stores(
    engine: BlockEngine, data: PreparedData, folder: Path, store_dtype: torch.dtype, sink: EventSink
) -> None:
    """Announce the bytes that the cached states of all corpora take, checked against the free disk.

    Raises:
        PrerequisiteError: The disk has too little free space.
    """
    tokens = sum(len(e.input_ids) for corpus in (*data.forget, *data.retain) for e in corpus.training)
    num_bytes = 2 * tokens * engine.structure.hidden_size * store_dtype.itemsize
    free_disk_check(folder, num_bytes, headroom=1.0)
    sink(Notice(message=f"cached states of {tokens:,} tokens: {format_bytes(num_bytes)} of disk"))


def cache_by_block(
    engine: BlockEngine,
    data: PreparedData,
    recipe: Recipe,
    window: tuple[int, int],
    folder: Path,
    compute_dtype: torch.dtype,
    store_dtype: torch.dtype,
    sink: EventSink,
    work: WorkFolder | None,
    team: Team,
) -> dict[str, CachedStates]:
    """Cache the states around the window for all corpora in one pass over the blocks, by store name.

    Each rank reads all blocks and takes its own part of the samples through them.
    """
    corpora = {f"forget-{corpus.name}": corpus for corpus in data.forget}
    corpora |= {f"retain-{corpus.name}": corpus for corpus in data.retain}
    samples = {name: [e.input_ids for e in corpus.training] for name, corpus in corpora.items()}
    hidden = engine.structure.hidden_size
    key = "cache:by-block"
    files = [path for name in corpora for path in state_files(folder, name)]
    return kept_files(
        work,
        key,
        files,
        compute=lambda: cache_states_by_block(
            engine,
            samples,
            window,
            folder,
            compute_dtype=compute_dtype,
            store_dtype=store_dtype,
            batch_tokens=recipe.runtime.cache_batch_tokens,
            progress=lambda done, total: sink(
                Progress(stage="cache", done=done, total=total, message="blocks")
            ),
            team=team,
        ),
        reopen=lambda: {
            name: reopen_states(folder, name, list(map(len, rows)), hidden, store_dtype, team)
            for name, rows in samples.items()
        },
        is_whole=team.from_leader(lambda: files_are_whole(work, key, files)),
    )
