"""Float32 masters of the few trained tensors, kept beside the window's compute copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from falcon_unlearn.distributed.team import Team
from falcon_unlearn.results import TensorChange


class Masters:
    """Own float32 copies of named parameters and write them into the model after every update."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        """Copy the parameters; the model is not changed yet."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {name: parameters[name] for name in names}
        # Not copies: parameters get other tensors, they are never written to.
        self.original = {name: p.detach() for name, p in self.parameters.items()}
        self.values = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Let the named parameters require gradients while the context is open."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)

    @torch.no_grad()
    def push(self) -> None:
        """Round the masters to the compute dtype of the model's parameters; in float32 both share memory."""
        for name, parameter in self.parameters.items():
            if parameter.dtype == torch.float32:
                parameter.data = self.values[name]
            elif parameter.data_ptr() == self.original[name].data_ptr():
                parameter.data = self.values[name].to(parameter.dtype)
            else:
                parameter.data.copy_(self.values[name])

    def gradients(self, loss: Tensor, team: Team) -> dict[str, Tensor]:
        """Return the float32 gradients of the sum of all ranks' losses, by name."""
        names = list(self.parameters)
        gradients = torch.autograd.grad(loss, [self.parameters[name] for name in names])
        return team.sum_tensors({n: g.float() for n, g in zip(names, gradients, strict=True)})

    def sum_scalars(self, scalars: Tensor, team: Team) -> Tensor:
        """Return scalars of the gradients, summed over ranks that hold parts of them; here all hold all."""
        del team
        return scalars

    def own_values(self, full: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what this rank holds of whole tensors; here everything."""
        return full

    def full_values(self, values: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return whole tensors from what the ranks hold."""
        return self.values if values is None else values

    is_sharded = False

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of the masters."""
        return {name: value.clone() for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Take the masters back to a snapshot, in place."""
        for name, value in snapshot.items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def revert(self) -> None:
        """Give the model its original tensors back."""
        for name, parameter in self.parameters.items():
            parameter.data = self.original[name]

    @torch.no_grad()
    def commit(self) -> dict[str, Tensor]:
        """Write the masters into the model in its source dtype and return exactly what was written."""
        for name, parameter in self.parameters.items():
            parameter.data = self.values[name].to(self.original[name].dtype)
        return {name: parameter.data for name, parameter in self.parameters.items()}

    def mean_root_square(self) -> float:
        """Return the root mean square of all trained weights."""
        total = sum(float(value.double().square().sum()) for value in self.values.values())
        count = sum(value.numel() for value in self.values.values())
        return float((total / count) ** 0.5)

    def changes(self) -> list[TensorChange]:
        """Describe how each tensor differs from the original, in the source dtype."""
        return [self._change(name) for name in self.parameters]

    def _change(self, name: str) -> TensorChange:
        before = self.original[name].double().cpu()
        difference = self.values[name].to(self.original[name].dtype).double().cpu() - before
        norm = float(before.norm())
        return TensorChange(
            name=name,
            shape=list(before.shape),
            norm_before=norm,
            norm_change=float(difference.norm()),
            relative_change=float(difference.norm()) / max(norm, 1e-30),
            largest_change=float(difference.abs().max()),
        )
