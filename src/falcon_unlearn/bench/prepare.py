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
from falcon_unlearn.errors import DataError, PrerequisiteError, UsageError
from falcon_unlearn.events import EventSink, Notice, ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.access import load_model, pick_device, resolve_folder
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.pipeline.resuming import kept_on_failure
from falcon_unlearn.runs import (
    WorkFolder,
    cache_folder,
    fingerprint,
    free_disk_check,
    open_work,
    public_name,
    remove_work,
    sha256_file,
    staged_folder,
    verify_manifest,
    work_path,
    write_json_atomic,
    write_manifest,
)
from falcon_unlearn.training.finetune import (
    SAVE_SECONDS,
    STATE_BYTES,
    STATES,
    FinetuneSettings,
    finetune,
    trainable_names,
)

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
    """Mean loss per epoch, in nats per token."""


def prepare_model(
    base: ModelSettings,
    examples: Sequence[EncodedExample],
    settings: FinetuneSettings,
    name: str,
    *,
    device: str = "auto",
    cache: Path | None = None,
    sink: EventSink = ignore_events,
    save_seconds: float = SAVE_SECONDS,
) -> PreparedModel:
    """Return the base model fine-tuned on `examples`, from the cache if it is there.

    An interrupted training goes on from its last saved step.

    Args:
        base: The base model.
        examples: What it learns.
        settings: How.
        name: Start of the folder's name, such as `tofu-t-m-target`.
        device: Where to train.
        cache: Folder of prepared models; the user's cache if None.
        sink: Receives progress.
        save_seconds: Work between two saved states of the training; 0 means after every step.

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
            work = _open_work(folder, key, sink)
            with kept_on_failure(work):
                _train(base, examples, settings, folder, device, sink, key, work, save_seconds)
        # Only now: until the folder is in place, a kill must find the states.
        _remove_states(folder)
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


def _open_work(folder: Path, key: str, sink: EventSink) -> WorkFolder:
    """Open the states of a training, or start new ones where those that are there cannot be trusted."""
    try:
        return open_work(work_path(folder), {"preparation": key}, sink=sink)
    except UsageError as error:
        sink(Notice(message=f"the training starts again: {error.message}", level="warning"))
        return open_work(work_path(folder), {"preparation": key}, "never", sink)


def _remove_states(folder: Path) -> None:
    remove_work(work_path(folder))
    for suffix in (".state", ".part"):  # of versions that kept one file
        folder.with_name(f".{folder.name}{suffix}").unlink(missing_ok=True)


def _check_disk(engine: BlockEngine, settings: FinetuneSettings, folder: Path) -> None:
    """Make sure that the model and three states have room: two are kept while the next one is written."""
    parameters = dict(engine.model.named_parameters())
    trained = sum(
        parameters[name].numel() for name in trainable_names(engine, embeddings=settings.embeddings)
    )
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    there = sum(p.stat().st_size for p in (work_path(folder) / STATES).rglob("*") if p.is_file())
    free_disk_check(folder, max(0, 3 * STATE_BYTES * trained + weights - there), headroom=1.1)


def _train(
    base: ModelSettings,
    examples: Sequence[EncodedExample],
    settings: FinetuneSettings,
    folder: Path,
    device: str,
    sink: EventSink,
    key: str,
    work: WorkFolder,
    save_seconds: float,
) -> None:
    loaded = load_model(base, pick_device(device))
    engine = BlockEngine(loaded.model, loaded.structure)
    _check_disk(engine, settings, folder)
    sink(Notice(message=f"training {folder.name} on {len(examples)} examples; it is kept in the cache"))
    result = finetune(engine, examples, settings, sink, work, save_seconds=save_seconds)
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
