"""Hold a model of which only some blocks are in memory at a time; the rest stays in its safetensors files.

All parameters live on the meta device; those of a block get values from the checkpoint while they are needed.
What no checkpoint holds (rotary frequencies, embedding scales) is computed at construction on a real device.

Legend: B batch, L tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.paths import public_name
from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.models.access import (
    LoadedModel,
    build_without_weights,
    load_tokenizer,
    resolve_folder,
    wrap_model,
)
from falcon_unlearn.models.architectures import ModelStructure
from falcon_unlearn.models.engine import BlockEngine, parameters_in_dtype
from falcon_unlearn.models.frugal import frozen_linears, recomputed_blocks, widened_products
from falcon_unlearn.models.safety.folder import check_folder
from falcon_unlearn.models.safety.sizes import check_tensors, check_vocabulary
from falcon_unlearn.models.shards import CheckpointTensors


def load_streamed(settings: ModelSettings, device: torch.device) -> LoadedModel:
    """Build a model whose weights stay on disk, and load its tokenizer.

    Raises:
        UsageError, ModelError, PrerequisiteError: As `load_model`; also for what cannot be streamed: GGUF
            files, quantised weights, and checkpoints that store weights under other names than the model.
    """
    folder = resolve_folder(settings)
    if folder is None:
        raise UsageError(
            "model: a GGUF file cannot be read block by block",
            hint="Give the folder with the safetensors files, or more memory.",
        )
    inventory = check_folder(folder, allow_code=settings.trust_remote_code)
    model = build_without_weights(settings, real_buffers=True)
    model.eval().requires_grad_(False)
    check_tensors(model, inventory, folder.name)
    tensors = CheckpointTensors(folder)
    _check_readable(model, tensors, settings.name)
    _fill_buffers(model, tensors, device)
    tokenizer = load_tokenizer(settings)
    check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
    loaded = wrap_model(model, tokenizer, settings.name, folder, tensors=tensors)
    return replace(loaded, marks=inventory.marks)


def _check_readable(model: Any, tensors: CheckpointTensors, name: str) -> None:
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"model: the weights of {public_name(name)!r} are quantised and cannot be read block by block",
            hint="Give the unquantised checkpoint.",
        )
    stored = stored_names(model, tensors)
    missing = sorted(name for name, _ in model.named_parameters() if name not in stored)
    if missing:
        raise ModelError(
            f"model: the checkpoint of {public_name(name)!r} has no tensor named {missing[0]!r} "
            f"({len(missing)} are missing), so it cannot be read block by block",
            hint="Save it once with transformers (save_pretrained) and give the new folder.",
        )


def stored_names(model: Any, tensors: CheckpointTensors) -> dict[str, str]:
    """Return the name in the checkpoint of every tensor of the model that is found there unconverted.

    Old names follow the renaming rules of transformers; tied weights share the one that is stored. Tensors
    that would have to be split or fused on the way are left out.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    state = model.state_dict()
    found: dict[str, str] = {}
    for stored in tensors.locations:
        name, converted = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        if converted is None:
            found[name] = stored
    parameters = dict(model.named_parameters(remove_duplicate=False))
    twins = {id(parameters[name]): stored for name, stored in found.items() if name in parameters}
    return {name: twins[id(p)] for name, p in parameters.items() if id(p) in twins} | {
        name: stored for name, stored in found.items() if name in state and name not in parameters
    }


def _fill_buffers(model: nn.Module, tensors: CheckpointTensors, device: torch.device) -> None:
    """Move buffers to the device; those that the checkpoint holds take its values."""
    stored = stored_names(model, tensors)
    for name, buffer in list(model.named_buffers()):
        owner, leaf = _owner(model, name)
        value = buffer
        if name in stored:
            ((_, value),) = tensors.read([stored[name]])
        owner._buffers[leaf] = value.to(device=device, dtype=buffer.dtype)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


class StreamedEngine(BlockEngine):
    """Run blocks that are read from disk when a context of `resident` opens, and dropped when it closes."""

    is_streamed = True

    def __init__(
        self,
        model: nn.Module,
        structure: ModelStructure,
        tensors: CheckpointTensors,
        device: torch.device,
        *,
        recompute: bool = False,
    ) -> None:
        """Wrap a model on the meta device; `recompute` trades a forward pass for kept activations."""
        super().__init__(model, structure)
        self.tensors = tensors
        self.recompute = recompute
        self._device = device
        self._stored = stored_names(model, tensors)

    @property
    def device(self) -> torch.device:
        """Return the device on which blocks run."""
        return self._device

    @property
    def reading(self) -> tuple[int, float]:
        """Return the bytes of weights read from disk so far, and the seconds that took."""
        return self.tensors.bytes_read, self.tensors.seconds

    def embed(self, token_ids_BL: Tensor) -> Tensor:
        """Return the states that enter block 0, B x L x D; only the rows of these tokens are read."""
        module: Any = self.base.get_input_embeddings()
        name = next(n for n, m in self.model.named_modules() if m is module) + ".weight"
        ((_, table_VD),) = self.tensors.read([self._stored[name]])
        unique, inverse_BL = torch.unique(token_ids_BL.cpu(), return_inverse=True)
        rows = table_VD[unique].to(device=self._device, dtype=module.weight.dtype)
        saved, padding = module.weight, module.padding_idx
        try:
            # A padding row is an ordinary row in a forward pass, and its index may lie beyond these rows.
            module.weight, module.padding_idx = nn.Parameter(rows, requires_grad=False), None
            states_BLD: Tensor = module(inverse_BL.to(self._device))
        finally:
            module.weight, module.padding_idx = saved, padding
        return states_BLD

    @contextmanager
    def resident(self, first: int, last: int, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Hold blocks [first .. last] in memory inside the context, in `dtype` or that of the model."""
        modules = {self.structure.block_prefix(i): self.block(i) for i in range(first, last + 1)}
        with self._materialised(modules, dtype):
            yield

    @contextmanager
    def computing(
        self, first: int, last: int, dtype: torch.dtype, trained: Collection[str] = ()
    ) -> Iterator[None]:
        """Run the resident blocks [first .. last] in `dtype`; frozen matrices are converted use by use."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        chosen = [named[name] for name in trained]
        blocks = [self.block(layer) for layer in range(first, last + 1)]
        linears = [linear for block in blocks for linear in frozen_linears(block, chosen)]
        narrow = [linear for linear in linears if linear.weight.dtype != dtype]
        skipped = {id(p) for linear in narrow for p in linear.parameters()}
        others = [p for block in blocks for p in block.parameters() if id(p) not in skipped]
        with ExitStack() as stack:
            stack.enter_context(parameters_in_dtype(others, dtype))
            stack.enter_context(widened_products(narrow))
            if self.recompute:
                stack.enter_context(recomputed_blocks(blocks))
            yield

    @contextmanager
    def head(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Hold final norm and head in memory, and let the decoder have no blocks, inside the context."""
        norm_path = ".".join(p for p in (self.structure.base_path, self.structure.norm_name) if p)
        output = self.model.get_output_embeddings()  # type: ignore[operator]
        head_path = next(name for name, module in self.model.named_modules() if module is output)
        modules = {f"{path}.": self.model.get_submodule(path) for path in (norm_path, head_path)}
        with self._materialised(modules, dtype), self._without_blocks():
            yield

    def head_logits(self, states_BLD: Tensor) -> Tensor:
        """Return logits, B x L x V, of states that leave the last block; call inside `head`."""
        output = self.model(inputs_embeds=states_BLD, use_cache=False)
        logits: Tensor = output.logits
        return logits

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Use `tensors` in place of the checkpoint's while the context is open."""
        with self.tensors.replaced({self._stored[name]: tensor for name, tensor in tensors.items()}):
            yield

    @contextmanager
    def reading_from(self, tensors: CheckpointTensors) -> Iterator[None]:
        """Read another checkpoint of the same names and shapes while the context is open."""
        saved, names = self.tensors, self._stored
        try:
            self.tensors, self._stored = tensors, stored_names(self.model, tensors)
            yield
        finally:
            self.tensors, self._stored = saved, names

    def keep(self, changed: Mapping[str, Tensor]) -> None:
        """Use `changed` in place of the checkpoint's tensors from now on."""
        self.tensors.replace({self._stored[name]: tensor for name, tensor in changed.items()})

    @contextmanager
    def _without_blocks(self) -> Iterator[None]:
        config = self.base.config
        blocks, count = getattr(self.base, self.structure.blocks_name), config.num_hidden_layers
        try:
            setattr(self.base, self.structure.blocks_name, nn.ModuleList())
            config.num_hidden_layers = 0
            yield
        finally:
            config.num_hidden_layers = count
            setattr(self.base, self.structure.blocks_name, blocks)

    @contextmanager
    def _materialised(self, modules: Mapping[str, nn.Module], dtype: torch.dtype | None) -> Iterator[None]:
        """Give the parameters of `modules`, keyed by name prefix, their values while the context is open."""
        slots: dict[str, list[tuple[nn.Module, str, nn.Parameter]]] = {}
        for prefix, module in modules.items():
            for name, parameter in module.named_parameters(remove_duplicate=False):
                owner, leaf = _owner(module, name)
                slots.setdefault(self._stored[prefix + name], []).append((owner, leaf, parameter))
        try:
            for stored, tensor in self.tensors.read(list(slots)):
                for owner, leaf, parameter in slots[stored]:
                    value = tensor.to(device=self._device, dtype=parameter.dtype)
                    setattr(owner, leaf, nn.Parameter(value if dtype is None else value.to(dtype), False))
            yield
        finally:
            for owner, leaf, parameter in (slot for group in slots.values() for slot in group):
                setattr(owner, leaf, parameter)


def build_engine(
    loaded: LoadedModel, device: torch.device | None = None, *, recompute: bool = False
) -> BlockEngine:
    """Return the engine for a model in memory, or for one that stays on disk."""
    if loaded.tensors is None:
        return BlockEngine(loaded.model, loaded.structure)
    return StreamedEngine(
        loaded.model, loaded.structure, loaded.tensors, device or torch.device("cpu"), recompute=recompute
    )
