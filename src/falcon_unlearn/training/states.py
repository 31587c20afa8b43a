"""Save the state of a training loop between steps and take it up again, bit by bit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import Optimizer

from falcon_unlearn.errors import DataError
from falcon_unlearn.runs.snapshots import Snapshots

TENSORS = "tensors.safetensors"
RECORD = "state.json"
LARGEST_SHARE = 0.05
"""Saving may take this share of the time: where it is slow, it is done more rarely."""


@dataclass
class LoopState:
    """Hold everything of a loop that is neither a parameter nor the optimizer's."""

    step: int = 0
    """Steps done."""
    history: list[dict[str, float]] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    """Wall time of earlier processes."""
    guards: dict[str, list[float]] = field(default_factory=dict)
    """What guards have seen, by name."""
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Further copies of the trained values, by purpose."""


class TrainingStates:
    """Save and restore `LoopState`, trained values and optimizer; does nothing without snapshots."""

    def __init__(
        self,
        snapshots: Snapshots | None = None,
        every_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep states in `snapshots`, about every `every_seconds`; 0 means after every step."""
        self._snapshots, self._interval, self._clock = snapshots, every_seconds, clock
        self._last = clock()
        self._saved_step = -1

    def restore(self, values: Mapping[str, Tensor], optimizer: Optimizer) -> LoopState:
        """Fill values and optimizer from the newest sound state, and return the rest; a fresh one without.

        Raises:
            DataError: The tensors of that state are in no safetensors file, whatever their manifest says.
        """
        newest = self._snapshots.newest() if self._snapshots is not None else None
        if newest is None:
            return LoopState()
        tensors = _read_tensors(newest.path / TENSORS)
        record = json.loads((newest.path / RECORD).read_text(encoding="utf-8"))
        groups = _grouped(tensors)
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(groups["value"][name])
        _load_optimizer(optimizer, groups.get("optimizer", {}), record["optimizer"])
        self._saved_step = newest.number
        extra = {name.removeprefix("extra/"): g for name, g in groups.items() if name.startswith("extra/")}
        return LoopState(
            newest.number,
            record["history"],
            record["num_tokens"],
            record["seconds"],
            record["guards"],
            extra,
        )

    @property
    def due(self) -> bool:
        """Tell whether the next state should be saved now."""
        return self._snapshots is not None and self._clock() - self._last >= self._interval

    def save(self, state: LoopState, values: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Keep a state durably, unless it is kept already.

        Raises:
            PrerequisiteError: The disk refused; the states saved before stay.
        """
        if self._snapshots is None or self._saved_step == state.step:
            return
        started = self._clock()
        tensors, numbers = _optimizer_state(optimizer)
        tensors |= {f"value|{name}": value for name, value in values.items()}
        for purpose, group in state.tensors.items():
            tensors |= {f"extra/{purpose}|{name}": value for name, value in group.items()}
        record = {
            "history": state.history,
            "num_tokens": state.num_tokens,
            "seconds": state.seconds,
            "guards": state.guards,
            "optimizer": numbers,
        }

        def fill(folder: Path) -> None:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)
            (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")

        self._snapshots.save(state.step, fill)
        self._saved_step = state.step
        self._last = self._clock()
        if self._interval > 0:
            self._interval = max(self._interval, (self._last - started) / LARGEST_SHARE)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataError(
            f"{path.parent.name}/{path.name}: no safetensors file, so the state is not read ({error})",
            hint="Start again with --resume never.",
        ) from error
    return tensors


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("|")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Split the state into tensors, by `optimizer|INDEX.KEY`, and numbers, by index and key."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer|{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    return tensors, numbers


def _load_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Mapping[str, Any]]
) -> None:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in numbers.items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
