"""Turn a delta folder and its base into a whole model, with the evidence of the run."""

from __future__ import annotations

import shutil
from pathlib import Path

from falcon_unlearn.checkpoints.delta import apply_delta
from falcon_unlearn.checkpoints.sharing import CopyMode
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import UsageError
from falcon_unlearn.models.access import resolve_folder
from falcon_unlearn.results import ExportResult
from falcon_unlearn.runs import (
    MANIFEST,
    RECORDS,
    public_name,
    staged_folder,
    verify_manifest,
    write_manifest,
)


def export_model(
    delta: Path, base: ModelSettings, output: Path, *, copies: CopyMode = "auto"
) -> ExportResult:
    """Apply a delta to its base and verify every weight file of both.

    Args:
        delta: Folder that a run with `--output-format delta` wrote.
        base: The base model.
        output: New folder for the whole model; records, card and report of the run come along.
        copies: How untouched weight files get there.

    Raises:
        DataError: A file was changed, or the base is another model.
        UsageError: `output` is in use, or the base is no folder of safetensors files.
    """
    folder = resolve_folder(base)
    if folder is None:
        raise UsageError(
            f"--base: {public_name(base.name)!r} is a GGUF file; a delta belongs to safetensors files"
        )
    recorded = verify_manifest(delta)
    with staged_folder(output) as staging:
        manifest, made = apply_delta(delta, folder, staging, copies=copies)
        records = shutil.ignore_patterns(Path(MANIFEST).name)
        shutil.copytree(delta / RECORDS, staging / RECORDS, ignore=records)
        if (delta / "README.md").is_file():
            shutil.copyfile(delta / "README.md", staging / "README.md")
        write_manifest(
            staging,
            fingerprint=recorded.fingerprint,
            base_model=recorded.base_model,
            base_weights_sha256=recorded.base_weights_sha256,
            command=recorded.command,
            seconds=recorded.seconds,
        )
    return ExportResult(
        output=public_name(output),
        base_model=manifest.base_model,
        tensors=[tensor.name for tensor in manifest.tensors],
        weight_files=made,
    )
