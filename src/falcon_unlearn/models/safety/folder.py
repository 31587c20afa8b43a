"""Check a model folder before transformers reads it."""

from __future__ import annotations

from pathlib import Path

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.config_bounds import read_config
from falcon_unlearn.models.safety.files import (
    MAXIMUM_CONFIG_BYTES,
    MAXIMUM_TOKENIZER_BYTES,
    file_size,
    read_json_object,
)
from falcon_unlearn.models.safety.inventory import Inventory, take_inventory

_ADAPTER = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_OTHERS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja")


def check_folder(folder: Path, *, allow_code: bool) -> Inventory:
    """Check weights, configuration and tokenizer files of a folder, reading headers and JSON only.

    Raises:
        ModelError: Naming the file and what is wrong with it.
    """
    check_small_files(folder, allow_code=allow_code)
    inventory = take_inventory(folder)
    read_config(folder, allow_code=allow_code, num_tensors=len(inventory.tensors))
    return inventory


def check_small_files(folder: Path, *, allow_code: bool) -> None:
    """Check everything but the weights; see `check_folder`."""
    refuse_adapter(folder)
    read_config(folder, allow_code=allow_code, num_tensors=None)
    if (folder / "generation_config.json").exists():
        read_json_object(folder / "generation_config.json", MAXIMUM_CONFIG_BYTES)
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            read_json_object(folder / name, MAXIMUM_TOKENIZER_BYTES)
    for name in _TOKENIZER_OTHERS:
        if (folder / name).exists() and file_size(folder / name) > MAXIMUM_TOKENIZER_BYTES:
            raise ModelError(f"model: {name}: has more than {MAXIMUM_TOKENIZER_BYTES} bytes")


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter: transformers would follow it to a base model of the adapter's choice.

    Raises:
        ModelError: Naming the base that the adapter asks for, and how to merge.
    """
    path = folder / _ADAPTER
    if not path.exists():
        return
    base = read_json_object(path, MAXIMUM_CONFIG_BYTES).get("base_model_name_or_path")
    raise ModelError(
        f"model: the folder {folder.name!r} holds an adapter ({_ADAPTER}) for the base {str(base)[:120]!r}; "
        "an adapter's base is not chosen by its file",
        hint="Merge it into the base you trust: PeftModel.from_pretrained(BASE, DIR).merge_and_unload()"
        ".save_pretrained(NEW_DIR), and give NEW_DIR.",
    )
