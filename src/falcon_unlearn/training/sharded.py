"""Train a window whose blocks are split over the ranks: FSDP2 on copies of them, masters of the own shards.

The model's own blocks stay as they are until the result is committed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from falcon_unlearn.distributed.team import Team
from falcon_unlearn.errors import UsageError
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.training.masters import Masters

LARGEST_SHARE = 0.6
"""Share of a card's free memory that an unsharded window may take under `runtime.shard: auto`."""


class ShardedMasters(Masters):
    """Own this rank's float32 shards of the trained tensors."""

    is_sharded = True

    def __init__(self, whole: Masters, parameters: dict[str, nn.Parameter], mesh: DeviceMesh) -> None:
        """Take over from masters of whole tensors, whose float32 copies are given up until `commit`."""
        self.parameters, self.original = parameters, whole.original
        self.values = {name: local_part(p).detach().float().clone() for name, p in parameters.items()}
        self._whole, self._mesh = whole, mesh
        whole.values = {}

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Do nothing: the sharded copies require gradients from their making on."""
        yield

    @torch.no_grad()
    def push(self) -> None:
        """Round the shards to the compute dtype of the copies."""
        for name, parameter in self.parameters.items():
            local_part(parameter).copy_(self.values[name])

    def gradients(self, loss: Tensor, team: Team) -> dict[str, Tensor]:
        """Return this rank's shards of the gradients of the sum of all ranks' losses, by name."""
        del team
        loss.backward()  # type: ignore[no-untyped-call]  # FSDP sums and scatters in the backward pass
        gradients = {}
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            gradients[name] = (
                torch.zeros_like(self.values[name]) if gradient is None else local_part(gradient).float()
            )
            parameter.grad = None
        return gradients

    def sum_scalars(self, scalars: Tensor, team: Team) -> Tensor:
        """Return scalars of the gradients, summed over the shards of all ranks."""
        return team.sum_tensor(scalars)

    def full_values(self, values: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Gather whole tensors from the shards of all ranks; every rank must call this."""
        return {name: self._gather(name, part) for name, part in (values or self.values).items()}

    def own_values(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's shards of whole tensors."""
        return {name: self._cut(name, tensor) for name, tensor in full.items()}

    @torch.no_grad()
    def commit(self) -> dict[str, Tensor]:
        """Gather the masters, write them into the model in its source dtype and return what was written."""
        self.values = self.full_values()
        self._whole.values = self.values
        return self._whole.commit()

    @torch.no_grad()
    def revert(self) -> None:
        """Give the model its original tensors back."""
        self._whole.revert()

    def _gather(self, name: str, part: Tensor) -> Tensor:
        parameter: Any = self.parameters[name]
        whole = DTensor.from_local(
            part, self._mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return whole.full_tensor()

    def _cut(self, name: str, full: Tensor) -> Tensor:
        parameter: Any = self.parameters[name]
        start = sum(self._rows_before(parameter.shape[0]))
        return full[start : start + len(self.values[name])].clone()

    def _rows_before(self, num_rows: int) -> list[int]:
        """Return how many rows each lower rank holds; torch cuts like `torch.chunk`."""
        size = self._mesh.size()
        chunk = -(-num_rows // size)
        rank = self._mesh.get_local_rank()
        return [max(0, min(chunk, num_rows - chunk * lower)) for lower in range(rank)]


def local_part(tensor: Any) -> Tensor:
    """Return the local shard of a distributed tensor."""
    part: Tensor = tensor.to_local()
    return part


@contextmanager
def window_masters(
    engine: BlockEngine, masters: Masters, window: tuple[int, int], team: Team, mode: str
) -> Iterator[Masters]:
    """Give the masters to train with: those given, or sharded ones with sharded copies of the blocks.

    Args:
        engine: Engine whose window is not open yet; its blocks are in the compute dtype.
        masters: Masters of whole tensors.
        window: First and last block.
        team: The ranks.
        mode: `runtime.shard`: auto, never or window.
    """
    if team.size == 1 or not team.share(wants_shards(engine, masters, window, mode)):
        yield masters
        return
    mesh = init_device_mesh(engine.device.type, (team.size,))
    copies = {
        layer: shard_block(engine.block(layer), masters, mesh) for layer in range(window[0], window[1] + 1)
    }
    with engine.substituted({layer: block for layer, (block, _) in copies.items()}):
        parameters = {name: p for _, found in copies.values() for name, p in found.items()}
        yield ShardedMasters(masters, {name: parameters[name] for name in masters.parameters}, mesh)


def wants_shards(engine: BlockEngine, masters: Masters, window: tuple[int, int], mode: str) -> bool:
    """Decide whether the window is split: `auto` does so where it would fill a card.

    Raises:
        UsageError: A window that is read from disk is to be split.
    """
    if engine.is_streamed:
        if mode == "window":
            raise UsageError(
                "runtime.shard=window: the blocks of a model read block by block are not split over ranks",
                hint="Set runtime.shard to auto, or give each process the memory for the model.",
            )
        return False
    if mode != "auto" or engine.device.type != "cuda":
        return mode == "window"
    blocks = range(window[0], window[1] + 1)
    weights = sum(p.numel() * p.element_size() for layer in blocks for p in engine.block(layer).parameters())
    # Masters, two moments and two gradients in float32.
    trained = sum(20 * value.numel() for value in masters.values.values())
    free, _ = torch.cuda.mem_get_info(engine.device)
    return weights + trained > LARGEST_SHARE * free


def shard_block(
    block: nn.Module, masters: Masters, mesh: DeviceMesh
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Copy a block, split the copy over the ranks, and return it with its trained parameters by full name."""
    inner = {id(parameter): name for name, parameter in block.named_parameters()}
    trained = {name: inner[id(p)] for name, p in masters.parameters.items() if id(p) in inner}
    own = copy.deepcopy(block)
    for name in trained.values():
        own.get_parameter(name).requires_grad_(True)
    # Each block is a root of its own, which torch would otherwise keep whole between forward and backward.
    sharded = fully_shard(own, mesh=mesh, reshard_after_forward=True)
    # Losses come weighted, so gradients are summed; plain sums are also what gloo knows.
    sharded.set_force_sum_reduction_for_comms(True)
    sharded.set_gradient_divide_factor(1.0)
    module = cast(nn.Module, sharded)
    return module, {full: module.get_parameter(name) for full, name in trained.items()}
