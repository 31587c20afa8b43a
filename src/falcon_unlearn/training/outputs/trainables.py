"""The parameters that a run on outputs trains: all, a window's, or adapters."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import UsageError
from falcon_unlearn.models.architectures import ModelStructure, resolve_trained_parameters

OUTSIDE_BLOCKS = -1
"""Layer index of embeddings, final norm and head."""


class Trainables(Protocol):
    """Offer what the loop needs; `Masters` and `AdapterValues` do."""

    parameters: dict[str, nn.Parameter]
    """Leaves of the graph."""
    values: dict[str, Tensor]
    """Float32 values that the optimizer updates."""

    def push(self) -> None:
        """Write the values into the leaves."""


class AdapterValues:
    """Let the optimizer update adapters directly: they are float32 already."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.values: dict[str, Tensor] = {name: p.detach() for name, p in parameters.items()}

    def push(self) -> None:
        """Do nothing: leaves and values share their memory."""


def trained_names(model: nn.Module, structure: ModelStructure, recipe: Recipe, layer: int) -> dict[str, int]:
    """Name the weights to train, with their block index or OUTSIDE_BLOCKS.

    Raises:
        UsageError: A role is unknown.
    """
    settings = recipe.train
    if settings.parameters == "window":
        blocks = range(layer - settings.layers + 1, layer + 1)
        return resolve_trained_parameters(model, structure, settings.modules, blocks)
    prefix = f"{structure.base_path}.{structure.blocks_name}."
    named = {
        name: _block_index(name, prefix)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }
    if not named:
        raise UsageError("the model has no floating-point parameter to train")
    return named


def _block_index(name: str, prefix: str) -> int:
    rest = name.removeprefix(prefix)
    return int(rest.split(".")[0]) if rest != name else OUTSIDE_BLOCKS


def global_norm(gradients: dict[str, Tensor]) -> float:
    """Return the norm of all gradients together."""
    return float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
