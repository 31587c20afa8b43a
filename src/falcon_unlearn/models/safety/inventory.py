"""List the tensors of a model folder from headers and index alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.files import MAXIMUM_INDEX_BYTES, FileMarks, mark_files, read_json_object
from falcon_unlearn.models.safety.safetensors_header import TensorEntry, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class Inventory:
    """Say what the weight files hold."""

    tensors: Mapping[str, TensorEntry]
    marks: FileMarks
    """The weight files at the time of the check."""

    @property
    def num_elements(self) -> int:
        """Number of elements of all tensors."""
        return sum(entry.num_elements for entry in self.tensors.values())


def take_inventory(folder: Path) -> Inventory:
    """Check every weight file that would be loaded, and list its tensors.

    Raises:
        ModelError: A file is damaged, missing or outside the folder, or index and shards disagree.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    # transformers prefers the single file where both exist.
    if single.exists() or not index.exists():
        if not single.exists():
            raise ModelError(
                f"model: the folder {folder.name!r} has neither {SINGLE_FILE} nor {INDEX_FILE}",
                hint="Save it once with transformers (save_pretrained) and give the new folder.",
            )
        marks = mark_files([single])
        return Inventory(read_header(single), marks)
    return _sharded(folder, read_index(index))


def read_index(path: Path) -> dict[str, str]:
    """Return the shard file of every tensor, as the index at `path` says; shards lie beside the index.

    Raises:
        ModelError: The index is damaged, or names a file that is not a safetensors file beside it.
    """
    weight_map = read_json_object(path, MAXIMUM_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"model: {path.name}: has no weight_map", hint="The file is damaged.")
    for name in weight_map.values():
        if not isinstance(name, str) or not _lies_beside(name):
            raise ModelError(
                f"model: {path.name}: the shard index names {str(name)[:120]!r}, which lies outside the "
                "model folder or is no safetensors file",
                hint="Do not use this model: a correct index names files beside it.",
            )
    return weight_map


def _lies_beside(name: str) -> bool:
    plain = name.isprintable() and not any(mark in name for mark in "/\\:")
    return plain and name.endswith(".safetensors") and not name.startswith(".")


def _sharded(folder: Path, weight_map: Mapping[str, str]) -> Inventory:
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"model: the shard {missing[0]!r} is missing ({len(missing)} of {len(files)} are)",
            hint="Complete the folder.",
        )
    marks = mark_files([folder / name for name in files])
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        entries = read_header(folder / file)
        for name in entries:
            if weight_map.get(name) != file:
                raise ModelError(
                    f"model: {file}: holds the tensor {name[:80]!r}, which the shard index "
                    + (f"places in {weight_map[name]!r}" if name in weight_map else "does not name"),
                    hint="Index and shards are of different models; fetch both again.",
                )
        tensors |= entries
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise ModelError(
            f"model: {weight_map[absent[0]]}: lacks the tensor {absent[0][:80]!r} that the shard index names"
        )
    return Inventory(tensors, marks)
