"""Low-rank adapters on every linear map of the decoder blocks, put in place and taken out without a trace.

The result of training them is the sum of weight and adapter, not the adapter: an adapter beside the weights
could simply be switched off.

Source: LoRA, Hu et al. 2021, arXiv 2106.09685. The layers are those of the optional package `peft`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.config.train import LoraSettings
from falcon_unlearn.errors import ModelError, PrerequisiteError
from falcon_unlearn.models.architectures import find_structure

LORA_WARNING = (
    "low-rank edits are easily undone: EleutherAI's tests brought the knowledge back in about 5 fine-tuning "
    "steps after representation rerouting with LoRA. Use adapters to save memory, and claim no resistance "
    "without a relearning test"
)
"""For every record of a run that trained adapters."""

_ADAPTER = "falcon"


class LoraAdapters:
    """Offer the adapters of one open `lora_adapters` context."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self._layers = layers
        self.parameters: dict[str, nn.Parameter] = {}
        """Trained float32 tensors: `PATH.lora_A.weight`, rank x inputs, and `PATH.lora_B.weight`, outputs x
        rank."""
        for path, layer in layers.items():
            self.parameters[f"{path}.lora_A.weight"] = layer.lora_A[_ADAPTER].weight
            self.parameters[f"{path}.lora_B.weight"] = layer.lora_B[_ADAPTER].weight

    @torch.no_grad()
    def merged(self, originals: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return weight + alpha / rank * B A of every adapted matrix in float32, by its original name.

        Args:
            originals: Weights to add to, by name, where the model's own are rounded at the moment, for
                instance to bfloat16 for training; what is missing here is taken from the model.
        """
        result = {}
        for path, layer in self._layers.items():
            weight = (originals or {}).get(f"{path}.weight", layer.get_base_layer().weight)
            delta = layer.get_delta_weight(_ADAPTER).float()
            result[f"{path}.weight"] = weight.detach().to(delta.device).float() + delta
        return result


@contextmanager
def lora_adapters(model: nn.Module, settings: LoraSettings, seed: int) -> Iterator[LoraAdapters]:
    """Adapt every linear map of the decoder blocks while the context is open; outputs start unchanged.

    Module paths stay, so the model's own forward and `BlockEngine` run through the adapters. Only adapter
    parameters require a gradient inside. On exit, also after an error, the model has its own modules, names,
    tensors and gradient flags again; the adapters are dropped, so take `merged` before.

    Args:
        model: A transformers causal language model.
        settings: Rank and scale.
        seed: Decides the start values; the global random state is left as it was.

    Raises:
        PrerequisiteError: The package `peft` is absent.
        ModelError: A matrix of a block is no linear map, or the model carries adapters already.
    """
    linears = linear_maps(model)
    if hasattr(model, "peft_config"):
        raise ModelError(
            "the model carries peft adapters already",
            hint="Merge them first (merge_and_unload), and give the merged model.",
        )
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        adapters = LoraAdapters(_attach(model, settings, list(linears)))
        _start(adapters, seed)
        yield adapters
    finally:
        for path, linear in linears.items():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, linear)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        if hasattr(model, "peft_config"):
            del model.peft_config


def linear_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every linear map inside the decoder blocks by its dotted path, lowest block first.

    Raises:
        ModelError: A block holds a matrix that is not the weight of a linear map, such as fused experts:
            it would stay as it is, with whatever it knows.
    """
    structure = find_structure(model)
    prefix = structure.block_prefix("")
    linears = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    uncovered = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.startswith(prefix) and parameter.ndim >= 2 and name.removesuffix(".weight") not in linears
    ]
    if uncovered:
        shown = ", ".join(uncovered[:4]) + (" ..." if len(uncovered) > 4 else "")
        raise ModelError(
            f"train.parameters: got lora, but {len(uncovered)} matrices in the blocks of this "
            f"{structure.model_type} model are no linear maps and can carry no adapter: {shown}",
            hint="Use train.parameters: all, or window.",
        )
    return linears


def _attach(model: nn.Module, settings: LoraSettings, paths: list[str]) -> dict[str, Any]:
    """Put an adapter around every named module and return the new layers by path."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise PrerequisiteError(
            "train.parameters: got lora, which needs the optional package `peft`",
            hint="pip install 'falcon-unlearn[lora]'",
        ) from error
    config: Any = LoraConfig
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(
            config(r=settings.rank, lora_alpha=settings.alpha, target_modules=paths, lora_dropout=0.0),
            model,
            _ADAPTER,
        )
    layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    missed = [path for path, layer in layers.items() if not hasattr(layer, "lora_A")]
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    if missed or len(adapted) != len(paths):
        raise ModelError(
            f"peft adapted {len(adapted)} modules where {len(paths)} were asked for"
            + (f"; without adapter: {missed[0]}" if missed else ""),
            hint="Use train.parameters: all, or another version of peft.",
        )
    return layers


@torch.no_grad()
def _start(adapters: LoraAdapters, seed: int) -> None:
    """Draw A uniformly within 1 / sqrt(inputs) and set B to zero, all in float32.

    Drawn here and on the processor: peft draws from the global state and, for a bfloat16 model, rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapters.parameters.items():
        value = torch.zeros(parameter.shape)
        if name.endswith(".lora_A.weight"):
            bound = float(parameter.shape[1]) ** -0.5
            value.uniform_(-bound, bound, generator=generator)
        parameter.data = value.to(parameter.device)
        parameter.requires_grad_(True)
