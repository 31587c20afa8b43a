"""Compare a model without weights with what the weight files hold, before memory is allocated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.inventory import Inventory
from falcon_unlearn.models.safety.safetensors_header import FLOATING

_TOLERATED = (
    "rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
"""Buffers that older versions of transformers saved and newer ones compute."""


def check_tensors(bare: Any, inventory: Inventory, folder_name: str) -> None:
    """Compare names, shapes, types and the number of parameters.

    Args:
        bare: The model on the meta device.
        inventory: What the files hold.
        folder_name: For messages.

    Raises:
        ModelError: Naming the tensor that is missing or has another shape or type.
    """
    parameters = dict(bare.named_parameters())
    for name, parameter in parameters.items():
        entry = inventory.tensors.get(name)
        if entry is None:
            continue
        if entry.shape != tuple(parameter.shape):
            raise ModelError(
                f"model: the tensor {name!r} has the shape {list(entry.shape)} in the files of "
                f"{folder_name!r} "
                f"and {list(parameter.shape)} by its config.json",
                hint="config.json and weights are of different models.",
            )
        if entry.dtype not in FLOATING:
            raise ModelError(
                f"model: the tensor {name!r} is stored as {entry.dtype}; weights must be one of "
                f"{', '.join(sorted(FLOATING))}",
                hint="Give the unquantised checkpoint.",
            )
    missing = sorted(parameters.keys() - inventory.tensors.keys())
    check_size(bare, inventory.num_elements, folder_name, missing[0] if missing else None)


def check_size(bare: Any, num_elements: int, name: str, missing: str | None = None) -> None:
    """Refuse a model of more parameters than the files of `name` hold elements.

    Raises:
        ModelError: With both numbers, and the first `missing` tensor.
    """
    num_parameters = sum(parameter.numel() for parameter in bare.parameters())
    if num_parameters > num_elements:
        raise ModelError(
            f"model: the configuration of {name!r} describes {num_parameters} parameters, its weights hold "
            f"{num_elements}" + (f"; the first missing tensor is {missing!r}" if missing else ""),
            hint="Complete the weights, or give the configuration that belongs to them.",
        )


def refuse_missing(missing: Iterable[str], folder_name: str) -> None:
    """Refuse a checkpoint that lacks tensors; transformers would fill them with random numbers.

    Raises:
        ModelError: Naming the first one.
    """
    names = sorted(missing)
    if names:
        raise ModelError(
            f"model: the checkpoint in {folder_name!r} lacks {len(names)} tensors, first {names[0]!r}; "
            "loading it would fill them with random numbers",
            hint="Complete the folder, or give that of another causal language model.",
        )


def refuse_leftovers(unexpected: Iterable[str], folder_name: str) -> None:
    """Refuse tensors that the model does not use: they would be carried into the output with what they know.

    Raises:
        ModelError: Naming the first one.
    """
    extra = sorted(name for name in unexpected if not name.endswith(_TOLERATED))
    if extra:
        raise ModelError(
            f"model: the checkpoint in {folder_name!r} holds {len(extra)} tensors that the model does not "
            f"use, first {extra[0][:120]!r}; they would be carried into the output unchanged",
            hint="Save the model once with transformers (save_pretrained) and give the new folder.",
        )


def check_vocabulary(tokenizer: Any, num_rows: int) -> None:
    """Make sure that every ordinary token has a row in the embedding.

    Added tokens beyond the table are common (placeholders of images); a text that holds one is
    refused.

    Raises:
        ModelError: The tokenizer is of another model.
    """
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    largest = max((index for index in tokenizer.get_vocab().values() if index not in added), default=-1)
    if largest >= num_rows:
        raise ModelError(
            f"model: the tokenizer has token ids up to {largest}, the embedding has {num_rows} rows",
            hint="Tokenizer and weights are of different models.",
        )
