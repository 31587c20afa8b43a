"""Keep only what changed: a small folder with the new tensors and the hashes of what they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from falcon_unlearn.checkpoints.patches import patched_sha256
from falcon_unlearn.checkpoints.sharing import CopyMode
from falcon_unlearn.checkpoints.writer import shards_of, write_checkpoint
from falcon_unlearn.errors import DataError
from falcon_unlearn.models.safety.safetensors_header import read_header
from falcon_unlearn.models.shards import tensor_locations
from falcon_unlearn.results import DeltaManifest, DeltaTensor
from falcon_unlearn.runs import public_name, sha256_file, write_json_atomic

DELTA_WEIGHTS = "delta.safetensors"
DELTA_MANIFEST = "delta.json"


def write_delta(
    destination: Path,
    changed: Mapping[str, Tensor],
    *,
    source: Path,
    base_model: str,
    hashes: Mapping[str, str],
) -> DeltaManifest:
    """Write the changed tensors and the manifest into an existing folder.

    Args:
        destination: Existing folder.
        changed: New tensors by parameter name, in the source dtype.
        source: Folder of the original checkpoint.
        base_model: Its name for people.
        hashes: sha256 of its weight files by name.

    Raises:
        ModelError: A changed tensor is not in the checkpoint under its name and shape.
    """
    from safetensors.torch import save_file

    shards = shards_of(source, changed)
    expected = {
        shard: patched_sha256(source / shard, {name: changed[name] for name in names})
        for shard, names in shards.items()
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in changed.items()}
    save_file(tensors, destination / DELTA_WEIGHTS, metadata={"format": "pt"})
    used = sorted(set(tensor_locations(source).values()))
    manifest = DeltaManifest(
        base_model=public_name(base_model),
        base_sha256={name: hashes[name] for name in used},
        result_sha256=expected,
        tensors=[
            DeltaTensor(name=name, shard=shard, shape=list(changed[name].shape))
            for shard, names in shards.items()
            for name in names
        ],
        delta_sha256=sha256_file(destination / DELTA_WEIGHTS),
    )
    write_json_atomic(destination / DELTA_MANIFEST, manifest)
    return manifest


def read_delta(folder: Path) -> tuple[DeltaManifest, dict[str, Tensor]]:
    """Read a delta folder and check it against its own manifest.

    Raises:
        DataError: It is no delta folder, or its weights were changed.
        ModelError: Its weight file is damaged.
    """
    from safetensors.torch import load_file

    path, weights = folder / DELTA_MANIFEST, folder / DELTA_WEIGHTS
    try:
        manifest = DeltaManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no delta folder, {DELTA_MANIFEST} is missing",
            hint="Give the --output folder of a run with --output-format delta.",
        ) from error
    except (OSError, ValidationError) as error:
        raise DataError(f"{path}: damaged or from another version of falcon-unlearn") from error
    if sha256_file(weights) != manifest.delta_sha256:
        raise DataError(f"{weights}: was changed after the run", hint="Fetch or write the delta again.")
    if read_header(weights).keys() != {tensor.name for tensor in manifest.tensors}:
        raise DataError(f"{weights}: holds other tensors than its manifest names")
    return manifest, load_file(weights)


def apply_delta(
    folder: Path, base: Path, destination: Path, *, copies: CopyMode = "auto"
) -> tuple[DeltaManifest, dict[str, int]]:
    """Write the whole model that a delta folder and its base make, and verify every weight file.

    Args:
        folder: Delta folder.
        base: Folder of the base model.
        destination: Existing empty folder.
        copies: How untouched weight files get there.

    Returns:
        The manifest, and the number of weight files by how they were made.

    Raises:
        DataError: The base is not the one the delta was made from, or the result is not what it should be.
    """
    manifest, changed = read_delta(folder)
    _compare(base, manifest.base_sha256, "is not the file that the delta was made from")
    made = write_checkpoint(destination, changed, source=base, model=None, tokenizer=None, copies=copies)
    _compare(destination, manifest.base_sha256 | manifest.result_sha256, "did not come out as recorded")
    return manifest, made


def _compare(folder: Path, expected: Mapping[str, str], problem: str) -> None:
    for name, digest in expected.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(f"{DELTA_MANIFEST}: names {name[:120]!r}, which is no weight file")
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder}: {name} is missing", hint="Give the base model named in delta.json.")
        if sha256_file(path) != digest:
            raise DataError(f"{path}: {problem}", hint="Give exactly the base model named in delta.json.")
