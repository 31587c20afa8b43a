"""Train the target and both retain models of a small MUSE, or find them in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from falcon_unlearn.bench.muse.data import MuseData
from falcon_unlearn.bench.muse.small import TIERS, retain_texts, small_muse, target_texts, training_chunks
from falcon_unlearn.bench.prepare import prepare_model
from falcon_unlearn.bench.table import ReferenceModels
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import EventSink
from falcon_unlearn.models.access import load_tokenizer, resolve_folder
from falcon_unlearn.training.finetune import FinetuneSettings

FINETUNING = FinetuneSettings(epochs=8, batch_size=4, learning_rate=5e-4, everything=True)
"""Chunks of 512 tokens, all of them learnt. Where the target does not recite the texts, more epochs or a
higher rate is the answer, not a looser gate."""


def muse_tier(data: MuseData, tier: str | None) -> MuseData:
    """Cut MUSE-News down to the tier of a table.

    Raises:
        UsageError: There is no such tier; the whole of MUSE starts from published models.
    """
    if tier in (None, "full"):
        raise UsageError(
            f"--tier: got {tier or 'none'}; tables and prepared models exist for small tiers",
            hint=f"allowed: {', '.join(TIERS)}; score published models of the whole MUSE one by one",
        )
    return small_muse(data, str(tier))


def prepare_muse(
    base: ModelSettings,
    data: MuseData,
    sink: EventSink,
    *,
    finetuning: FinetuneSettings = FINETUNING,
    cache: Path | None = None,
) -> ReferenceModels:
    """Return base, target, retain A and retain B; what is cached is not trained again.

    Retain B differs from A in its seed only: how far two honest retrainings lie apart.

    Args:
        base: The base model.
        data: A tier.
        sink: Receives progress.
        finetuning: How all three learn; the seed is set here.
        cache: Folder of prepared models; the user's cache if None.

    Raises:
        FalconError: The base cannot be loaded, or training failed.
    """
    tokens = Subject(None, load_tokenizer(base))

    def train(name: str, texts: Mapping[str, tuple[str, ...]], seed: int) -> Path:
        # Piece by piece: a chunk must not run from an article to be forgotten into one that is kept.
        examples = [chunk for piece in texts.values() for chunk in training_chunks(tokens, piece)]
        settings = FinetuneSettings(**{**vars(finetuning), "seed": seed})
        label = f"muse-{data.corpus.lower()}-{data.setting['tier'].lower()}-{name}"
        return prepare_model(base, examples, settings, label, cache=cache, sink=sink).folder

    kept = retain_texts(data)
    return ReferenceModels(
        base=resolve_folder(base) or Path(base.name),
        target=train("target", target_texts(data), 0),
        retain=train("retain-a", kept, 0),
        retain_replicate=train("retain-b", kept, 1),
    )
