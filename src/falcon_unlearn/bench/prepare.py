"""Train the models that a benchmark starts from, once: the target, and the retain models that never saw
what is to be forgotten. They are kept in the user's cache under a hash of everything that defines them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from falcon_unlearn._version import __version__
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.events import EventSink, Notice, ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.access import load_model, pick_device, resolve_folder
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.runs import (
    cache_folder,
    fingerprint,
    free_disk_check,
    public_name,
    sha256_file,
    staged_folder,
    verify_manifest,
    write_json_atomic,
    write_manifest,
)
from falcon_unlearn.training.finetune import FinetuneSettings, finetune

RECORD = "finetuning.json"
FORMAT = 1
"""Part of the key; raised when the fine-tuning itself changes."""


@dataclass(frozen=True)
class PreparedModel:
    """Point to one prepared model."""

    folder: Path
    seconds: float
    """Time the training took, on the machine that did it."""
    losses: tuple[float, ...]
    """Mean loss per epoch, in nats per token, of the epochs of the last session."""


def prepare_model(
    base: ModelSettings,
    examples: Sequence[EncodedExample],
    settings: FinetuneSettings,
    name: str,
    *,
    device: str = "auto",
    cache: Path | None = None,
    sink: EventSink = ignore_events,
) -> PreparedModel:
    """Return the base model fine-tuned on `examples`, from the cache if it is there.

    An interrupted training goes on from its last finished epoch.

    Args:
        base: The base model.
        examples: What it learns.
        settings: How.
        name: Start of the folder's name, such as `tofu-t-m-target`.
        device: Where to train.
        cache: Folder of prepared models; the user's cache if None.
        sink: Receives progress.

    Raises:
        FalconError: The base cannot be loaded, the disk is full, or training diverged.
    """
    key = _key(base, examples, settings)
    home = (cache or cache_folder()) / "prepared"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError(f"cache folder {home}: {error.strerror or error}") from error
    folder = home / f"{name}-{key[:12]}"
    with FileLock(home / f".{folder.name}.preparing"):
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)  # what is left of a damaged one
            _train(base, examples, settings, folder, device, sink, key)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return PreparedModel(folder, record["seconds"], tuple(record["losses"]))


def _key(base: ModelSettings, examples: Sequence[EncodedExample], settings: FinetuneSettings) -> str:
    folder = resolve_folder(base)
    weights = sorted(folder.glob("*.safetensors")) if folder is not None else [Path(base.name).expanduser()]
    return fingerprint(
        weights=[sha256_file(path) for path in weights],
        examples=[(example.input_ids, example.answer_mask) for example in examples],
        settings=asdict(settings),
        dtype=base.dtype,
        format=FORMAT,
    )


def _is_complete(folder: Path) -> bool:
    """Tell whether a prepared model is there, every file with the content it was written with."""
    try:
        verify_manifest(folder)
    except DataError:
        return False
    return True


def _train(
    base: ModelSettings,
    examples: Sequence[EncodedExample],
    settings: FinetuneSettings,
    folder: Path,
    device: str,
    sink: EventSink,
    key: str,
) -> None:
    loaded = load_model(base, pick_device(device))
    # Weights in the source dtype, the state of training (three float32 copies), and the staged folder.
    free_disk_check(folder, 14 * sum(p.numel() for p in loaded.model.parameters()), headroom=1.1)
    sink(Notice(message=f"training {folder.name} on {len(examples)} examples; it is kept in the cache"))
    state = folder.parent / f".{folder.name}.state"
    result = finetune(BlockEngine(loaded.model, loaded.structure), examples, settings, sink, state)
    with staged_folder(folder) as staging:
        loaded.model.save_pretrained(staging)
        loaded.tokenizer.save_pretrained(staging)
        write_json_atomic(
            staging / RECORD,
            {
                "base": public_name(base.name),
                "settings": asdict(settings),
                "examples": len(examples),
                "tokens": result.tokens,
                "losses": result.losses,
                "seconds": result.seconds,
            },
        )
        write_manifest(
            staging,
            fingerprint=key,
            base_model=public_name(base.name),
            base_weights_sha256={},
            command=f"falcon-unlearn bench (prepare {folder.name}, version {__version__})",
            seconds={"train": result.seconds},
        )
