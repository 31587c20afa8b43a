"""Run a slice of blocks through the model's own forward: the only forward path of caching and training.

Legend: B batch, L tokens, D hidden, blocks are counted from 0.

While a window is open the decoder believes that it has only the blocks [first .. last] and no final norm, so
masks, rotary embeddings and sliding windows come from the library and no family needs code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.models.architectures import ModelStructure, find_structure

BlockObserver = Callable[[int, Tensor], None]
"""Receives a block index and that block's output, B x L x D."""


class BlockEngine:
    """Execute blocks [first .. last] of a causal language model on given hidden states.

    Blocks outside the window never run. The edit of the decoder undoes itself, also when a forward raises.
    """

    def __init__(self, model: nn.Module, structure: ModelStructure | None = None) -> None:
        self.model = model
        self.structure = structure or find_structure(model)
        base = model.get_submodule(self.structure.base_path)
        self.base: Any = base
        self._blocks: list[nn.Module] = list(getattr(base, self.structure.blocks_name))
        self._open: tuple[int, int] | None = None

    @property
    def device(self) -> torch.device:
        """Return the device of the embeddings."""
        return next(self.model.parameters()).device

    @property
    def blocks(self) -> list[nn.Module]:
        """Return all blocks."""
        return list(self._blocks)

    is_streamed = False
    """True where blocks are in memory only inside `resident`."""

    @property
    def reading(self) -> tuple[int, float]:
        """Return the bytes of weights read from disk so far, and the seconds that took."""
        return 0, 0.0

    @contextmanager
    def resident(self, first: int, last: int, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Hold blocks [first .. last] in memory, as they always are here, in `dtype` or that of the model."""
        if dtype is None:
            yield
            return
        with blocks_in_dtype(self, first, last, dtype):
            yield

    @contextmanager
    def computing(
        self, first: int, last: int, dtype: torch.dtype, trained: Collection[str] = ()
    ) -> Iterator[None]:
        """Run blocks [first .. last] in `dtype` while the context is open; `trained` names what changes."""
        del trained
        with blocks_in_dtype(self, first, last, dtype):
            yield

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Use `tensors` in place of the model's own while the context is open; see `tensors_replaced`."""
        with tensors_replaced(self.model, dict(tensors)):
            yield

    def keep(self, changed: Mapping[str, Tensor]) -> None:
        """Take note of new tensors; here the model's parameters hold them already."""
        del changed

    def block(self, layer: int) -> nn.Module:
        """Return block `layer`."""
        return self._blocks[layer]

    @contextmanager
    def substituted(self, blocks: Mapping[int, nn.Module]) -> Iterator[None]:
        """Run other modules in place of some blocks while the context is open; open the window inside it."""
        saved = {layer: self._blocks[layer] for layer in blocks}
        try:
            for layer, block in blocks.items():
                self._blocks[layer] = block
            yield
        finally:
            for layer, block in saved.items():
                self._blocks[layer] = block

    def embed(self, token_ids_BL: Tensor) -> Tensor:
        """Return the states that enter block 0, B x L x D, embedding scale included."""
        embedding: Callable[[Tensor], Tensor] = self.base.get_input_embeddings()
        return embedding(token_ids_BL)

    @contextmanager
    def window(self, first: int, last: int) -> Iterator[None]:
        """Reduce the decoder to blocks [first .. last] while the context is open.

        Raises:
            UsageError: The window does not lie inside the model.
        """
        if not 0 <= first <= last < self.structure.num_blocks:
            raise UsageError(
                f"window of blocks {first} to {last} does not fit the model's blocks "
                f"0 to {self.structure.num_blocks - 1}"
            )
        if self._open is not None:
            raise ModelError(f"a window over blocks {self._open} is open already; windows do not nest")
        config = self.base.config
        blocks_name, norm_name = self.structure.blocks_name, self.structure.norm_name
        saved_blocks, saved_norm = getattr(self.base, blocks_name), getattr(self.base, norm_name)
        saved_count, saved_types = config.num_hidden_layers, getattr(config, "layer_types", None)
        self._open = (first, last)
        try:
            setattr(self.base, blocks_name, nn.ModuleList(self._blocks[first : last + 1]))
            setattr(self.base, norm_name, nn.Identity())
            if saved_types is not None:
                config.layer_types = list(saved_types[first : last + 1])
            config.num_hidden_layers = last - first + 1
            yield
        finally:
            config.num_hidden_layers = saved_count
            if saved_types is not None:
                config.layer_types = saved_types
            setattr(self.base, blocks_name, saved_blocks)
            setattr(self.base, norm_name, saved_norm)
            self._open = None

    def forward(self, states_BLD: Tensor, position_ids_BL: Tensor | None = None) -> Tensor:
        """Run the open window on the states that enter its first block.

        Padding must be on the right. Attention is causal, so real tokens never see it and no mask is needed;
        a mask would only make rows of padding, outside every sliding window, attend to nothing (NaN).

        Args:
            states_BLD: Hidden states, B x L x D.
            position_ids_BL: Positions of rows that hold several sequences, each of which starts at 0.

        Returns:
            The output of the window's last block, B x L x D; meaningless on padding.
        """
        if self._open is None:
            raise ModelError("no window is open: call inside `with engine.window(first, last)`")
        packed = {} if position_ids_BL is None else {"position_ids": position_ids_BL}
        output = self.base(inputs_embeds=states_BLD, use_cache=False, **packed)
        result: Tensor = output.last_hidden_state
        return result

    def run(self, states_BLD: Tensor, first: int, last: int) -> Tensor:
        """Open a window, run it once and close it; see `window` and `forward`."""
        with self.window(first, last):
            return self.forward(states_BLD)

    @contextmanager
    def observe(self, observer: BlockObserver) -> Iterator[None]:
        """Call `observer` with every executed block's index and output while the context is open."""
        handles = []

        def attach(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                observer(layer, output[0] if isinstance(output, tuple) else output)

            return hook

        try:
            for layer, block in enumerate(self._blocks):
                handles.append(block.register_forward_hook(attach(layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def blocks_in_dtype(engine: BlockEngine, first: int, last: int, dtype: torch.dtype) -> Iterator[None]:
    """Hold the parameters of blocks [first .. last] in `dtype`, and restore the very same tensors afterwards.

    Parameters already in `dtype` are not copied.
    """
    parameters = [p for layer in range(first, last + 1) for p in engine.block(layer).parameters()]
    with parameters_in_dtype(parameters, dtype):
        yield


@contextmanager
def parameters_in_dtype(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Hold floating-point parameters in `dtype`, and restore the very same tensors afterwards.

    Parameters already in `dtype` are not copied.
    """
    saved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for parameter in parameters:
            if parameter.is_floating_point() and parameter.dtype != dtype:
                saved.append((parameter, parameter.data))
                parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


@contextmanager
def tensors_replaced(model: nn.Module, replacements: dict[str, Tensor]) -> Iterator[None]:
    """Swap named parameters for other tensors of the same shape while the context is open.

    Raises:
        ModelError: A name or a shape does not fit the model.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in replacements.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise ModelError(f"tensor {name!r} of shape {list(tensor.shape)} does not fit the model")
    saved = {name: parameters[name].data for name in replacements}
    try:
        for name, tensor in replacements.items():
            parameter = parameters[name]
            parameter.data = tensor.to(device=parameter.device, dtype=parameter.dtype)
        yield
    finally:
        for name, data in saved.items():
            parameters[name].data = data
