"""Save and take up a loop of several ranks: the leader keeps whole tensors, whatever each rank holds of them.

So a killed job may go on with another number of ranks, or with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from falcon_unlearn.distributed.team import Team
from falcon_unlearn.stopping import current_stop
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.states import LoopState, TrainingStates

OptimizerState = dict[int, dict[str, Any]]


class TeamStates(TrainingStates):
    """Let the leader save and restore for all ranks. All ranks must call all methods together."""

    def __init__(self, leader_states: TrainingStates, masters: Masters, team: Team, steps: int) -> None:
        """Wrap the states of this rank, which keep nothing but on the leader; `steps` is the last to save."""
        self._steps = steps
        self._inner, self._masters, self._team = leader_states, masters, team
        self._agreed = False

    def restore(self, values: Mapping[str, Tensor], optimizer: Optimizer) -> LoopState:
        """Fill every rank's values and optimizer from what the leader finds."""
        whole = self._team.from_leader(lambda: self._read(optimizer))
        if whole is None:
            return LoopState()
        state, full, entries = whole
        own = self._masters.own_values(full)
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(own[name])
        cut = {index: self._cut(index, entry) for index, entry in entries.items()}
        optimizer.load_state_dict({"state": cut, "param_groups": optimizer.state_dict()["param_groups"]})
        tensors = {purpose: self._masters.own_values(group) for purpose, group in state.tensors.items()}
        return replace(state, tensors=tensors)

    def _read(self, optimizer: Optimizer) -> tuple[LoopState, dict[str, Tensor], OptimizerState] | None:
        full = {name: torch.zeros(original.shape) for name, original in self._masters.original.items()}
        stand_in = stand_in_optimizer(optimizer, full)
        state = self._inner.restore(full, stand_in)
        return (state, full, stand_in.state_dict()["state"]) if state.step else None

    def _cut(self, index: int, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the own part of an optimizer's entry: of what has the shape of its tensor."""
        name = list(self._masters.values)[index]
        shape = self._masters.original[name].shape
        return {
            key: self._masters.own_values({name: value})[name] if _has_shape(value, shape) else value
            for key, value in entry.items()
        }

    @property
    def due(self) -> bool:
        """Tell whether the next state should be saved now: where all take part, all must agree."""
        if not self._masters.is_sharded:
            return self._inner.due
        wanted = self._inner.due or current_stop().number is not None
        self._agreed = self._team.sum_values([float(wanted)])[0] > 0
        return self._agreed

    def save(self, state: LoopState, values: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Keep the state on the leader; with shards, only where `due` said so on all ranks."""
        if not self._masters.is_sharded:
            self._inner.save(state, values, optimizer)
            return
        if not self._agreed and state.step < self._steps:
            return
        full = self._masters.full_values(dict(values))
        entries = {
            index: self._gather(index, entry, values)
            for index, entry in sorted(optimizer.state_dict()["state"].items())
        }
        tensors = {purpose: self._masters.full_values(group) for purpose, group in state.tensors.items()}
        if self._team.leads:
            stand_in = stand_in_optimizer(optimizer, full)
            groups = stand_in.state_dict()["param_groups"]
            stand_in.load_state_dict({"state": entries, "param_groups": groups})
            self._inner.save(replace(state, tensors=tensors), full, stand_in)

    def _gather(self, index: int, entry: dict[str, Any], values: Mapping[str, Tensor]) -> dict[str, Any]:
        name = list(values)[index]
        return {
            key: self._masters.full_values({name: value})[name]
            if _has_shape(value, values[name].shape)
            else value
            for key, value in entry.items()
        }


def stand_in_optimizer(optimizer: Optimizer, values: Mapping[str, Tensor]) -> Optimizer:
    """Return an optimizer of the same kind over other tensors, to read or write a state of whole tensors."""
    kind: Any = type(optimizer)
    made: Optimizer = kind(list(values.values()), lr=optimizer.param_groups[0]["lr"])
    return made


def _has_shape(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape
