"""Write the unlearned model: shards with changed tensors are rewritten, all else is copied as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from falcon_unlearn.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors", ".py", ".md")
_COPIED_PREFIXES = ("LICENSE", "NOTICE")


def write_checkpoint(
    destination: Path, changed: dict[str, Tensor], *, source: Path | None, model: Any, tokenizer: Any
) -> None:
    """Fill `destination` with a folder that `from_pretrained` loads.

    Args:
        destination: Existing empty folder.
        changed: New tensors by parameter name, in the source dtype.
        source: Folder of the original safetensors checkpoint, or None when there is none (GGUF, in memory).
        model: The model holding the changed tensors; saved whole when `source` is None.
        tokenizer: Saved beside it when `source` is None.

    Raises:
        ModelError: A changed tensor is not in the checkpoint under its name and shape.
    """
    if source is None:
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)
        return
    shards = shards_of(source, changed)
    weights = set(tensor_locations(source).values())
    if len(weights) > 1 or SINGLE_FILE not in weights:
        weights.add(INDEX_FILE)
    for path in sorted(source.iterdir()):
        if path.is_file() and _belongs(path.name, weights):
            names = shards.get(path.name)
            if names:
                _rewrite_shard(path, destination / path.name, {name: changed[name] for name in names})
            else:
                shutil.copyfile(path, destination / path.name)


def shards_of(folder: Path, names: dict[str, Tensor]) -> dict[str, list[str]]:
    """Return which shard file holds which of the named tensors.

    Raises:
        ModelError: A tensor is in no shard.
    """
    where = tensor_locations(folder)
    missing = sorted(set(names) - set(where))
    if missing:
        raise ModelError(
            f"the checkpoint has no tensor named {missing[0]!r}: "
            "it stores weights under other names than the model",
            hint="Save it once with transformers (save_pretrained) and give the new folder.",
        )
    shards: dict[str, list[str]] = {}
    for name in names:
        shards.setdefault(where[name], []).append(name)
    return shards


def tensor_locations(folder: Path) -> dict[str, str]:
    """Return the shard file name of every tensor of a checkpoint, read from headers only."""
    from safetensors import safe_open

    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    # transformers prefers the single file where both exist.
    if index.is_file() and not single.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        unsafe = [name for name in weight_map.values() if Path(name).name != name]
        if unsafe:
            raise ModelError(f"the shard index names {unsafe[0]!r}, which lies outside the model folder")
        return weight_map
    locations: dict[str, str] = {}
    for path in [single] if single.is_file() else sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            locations |= dict.fromkeys(shard.keys(), path.name)
    return locations


def _rewrite_shard(source: Path, destination: Path, changed: dict[str, Tensor]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    with safe_open(source, framework="pt") as shard:
        metadata = shard.metadata()
        # A safetensors handle is not iterable itself.
        for name in shard.keys():
            tensors[name] = shard.get_tensor(name)
    for name, tensor in changed.items():
        if tensors[name].shape != tensor.shape:
            raise ModelError(
                f"tensor {name!r} has shape {list(tensors[name].shape)} on disk "
                f"and {list(tensor.shape)} in the model"
            )
        tensors[name] = tensor.detach().to("cpu", tensors[name].dtype).contiguous()
    save_file(tensors, destination, metadata=metadata)


def _belongs(name: str, weights: set[str]) -> bool:
    if ".safetensors" in name:
        # A second copy of the weights in another layout would still hold what was unlearned.
        return name in weights
    # The base card is read and merged by the caller; a README of ours replaces it.
    return name != "README.md" and (name.endswith(_COPIED_SUFFIXES) or name.startswith(_COPIED_PREFIXES))
