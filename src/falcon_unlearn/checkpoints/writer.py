"""Write the unlearned model: shards with changed tensors are patched copies, all else is shared as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from falcon_unlearn.checkpoints.patches import patch_shard
from falcon_unlearn.checkpoints.sharing import CopyMode, share_file
from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.inventory import INDEX_FILE, SINGLE_FILE
from falcon_unlearn.models.shards import tensor_locations

_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors", ".py", ".md")
_COPIED_PREFIXES = ("LICENSE", "NOTICE")


def write_checkpoint(
    destination: Path,
    changed: Mapping[str, Tensor],
    *,
    source: Path | None,
    model: Any,
    tokenizer: Any,
    copies: CopyMode = "auto",
) -> dict[str, int]:
    """Fill `destination` with a folder that `from_pretrained` loads; no shard is ever in memory.

    Args:
        destination: Existing empty folder.
        changed: New tensors by parameter name, in the source dtype.
        source: Folder of the original safetensors checkpoint, or None when there is none (GGUF, in memory).
        model: The model holding the changed tensors; saved whole when `source` is None.
        tokenizer: Saved beside it when `source` is None.
        copies: How untouched weight files get there.

    Returns:
        Number of weight files by how they were made: rewritten, reflink, hardlink, copy.

    Raises:
        ModelError: A changed tensor is not in the checkpoint under its name and shape.
    """
    if source is None:
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)
        return {}
    shards = shards_of(source, changed)
    made: Counter[str] = Counter()
    for path in checkpoint_files(source):
        target = destination / path.name
        if path.name in shards:
            patch_shard(path, target, {name: changed[name] for name in shards[path.name]}, copies)
            made["rewritten"] += 1
        elif path.suffix == ".safetensors":
            made[share_file(path, target, copies)] += 1
        else:
            # Small files are edited by hand now and then: they stay independent.
            share_file(path, target, "reflink")
    return dict(made)


def checkpoint_files(source: Path) -> list[Path]:
    """Return the files of a model folder that belong to a published copy of it, in order of their names."""
    weights = set(tensor_locations(source).values())
    if len(weights) > 1 or SINGLE_FILE not in weights:
        weights.add(INDEX_FILE)
    return [path for path in sorted(source.iterdir()) if path.is_file() and _belongs(path.name, weights)]


def shards_of(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Return which shard file holds which of the named tensors.

    Raises:
        ModelError: A tensor is in no shard.
    """
    where = tensor_locations(folder)
    wanted = list(names)
    missing = sorted(set(wanted) - set(where))
    if missing:
        raise ModelError(
            f"the checkpoint has no tensor named {missing[0]!r}: "
            "it stores weights under other names than the model",
            hint="Save it once with transformers (save_pretrained) and give the new folder.",
        )
    shards: dict[str, list[str]] = {}
    for name in wanted:
        shards.setdefault(where[name], []).append(name)
    return shards


def _belongs(name: str, weights: set[str]) -> bool:
    if ".safetensors" in name:
        # A second copy of the weights in another layout would still hold what was unlearned.
        return name in weights
    # The base card is read and merged by the caller; a README of ours replaces it.
    return name != "README.md" and (name.endswith(_COPIED_SUFFIXES) or name.startswith(_COPIED_PREFIXES))
