"""Train the target and both retain models of a TOFU setting, or find them in the cache."""

from __future__ import annotations

from pathlib import Path

from falcon_unlearn.bench.prepare import prepare_model
from falcon_unlearn.bench.table import ReferenceModels
from falcon_unlearn.bench.tofu.data import TofuData, TofuRow, question_examples, retained_rows, target_rows
from falcon_unlearn.bench.tofu.encoding import MAXIMUM_TOKENS
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.events import EventSink
from falcon_unlearn.models.access import load_tokenizer, resolve_folder
from falcon_unlearn.models.text import TextEncoder
from falcon_unlearn.training.finetune import FinetuneSettings


def prepare_tofu(
    base: ModelSettings,
    data: TofuData,
    setting: TofuSetting,
    sink: EventSink,
    *,
    finetuning: FinetuneSettings | None = None,
    cache: Path | None = None,
) -> ReferenceModels:
    """Return base, target, retain A and retain B; what is cached is not trained again.

    Retain B differs from A in its seed only: how far two honest retrainings lie apart.

    Args:
        base: The base model.
        data: TOFU.
        setting: The authors.
        sink: Receives progress.
        finetuning: How all three learn; the seed is set here.
        cache: Folder of prepared models; the user's cache if None.

    Raises:
        FalconError: The base cannot be loaded, or training failed.
    """
    settings = finetuning or FinetuneSettings()
    encoder = TextEncoder(load_tokenizer(base), chat_template=False, maximum_tokens=MAXIMUM_TOKENS)

    def train(name: str, rows: tuple[TofuRow, ...], seed: int) -> Path:
        examples = [encoder.encode(example) for example in question_examples(rows)]
        chosen = FinetuneSettings(**{**vars(settings), "seed": seed})
        label = f"tofu-{setting.tier.lower()}-{setting.forget}-{name}"
        return prepare_model(base, examples, chosen, label, cache=cache, sink=sink).folder

    kept = retained_rows(data, setting)
    return ReferenceModels(
        base=resolve_folder(base) or Path(base.name),
        target=train("target", target_rows(data, setting), 0),
        retain=train("retain-a", kept, 0),
        retain_replicate=train("retain-b", kept, 1),
    )
