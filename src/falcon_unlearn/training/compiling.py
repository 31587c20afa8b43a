"""Decide whether the window of a run is compiled, and say why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.events import EventSink, Notice
from falcon_unlearn.models.compiling import compiled_blocks, failed_compilation, missing_compiler
from falcon_unlearn.models.engine import BlockEngine


@contextmanager
def compiled_window(
    engine: BlockEngine, window: tuple[int, int], mode: str, sink: EventSink, *, is_sharded: bool
) -> Iterator[None]:
    """Compile the blocks of the window inside the context where `runtime.compile` asks for it.

    Args:
        engine: The engine, with the blocks that train in place.
        window: First and last block.
        mode: `runtime.compile`: off, on, or auto (accelerators only).
        sink: Is told why nothing is compiled where `auto` would.
        is_sharded: Whether the blocks are split over ranks.

    Raises:
        PrerequisiteError: `on`, and the machine has no working compiler or the blocks are split.
    """
    if mode == "off" or (mode == "auto" and engine.device.type != "cuda"):
        yield
        return
    split = "blocks split over ranks are not compiled"
    obstacle = split if is_sharded else _obstacle(engine.device)
    if obstacle is None:
        with compiled_blocks([engine.block(layer) for layer in range(window[0], window[1] + 1)]):
            yield
        return
    if mode == "on":
        raise PrerequisiteError(f"runtime.compile=on: {obstacle}", hint="Remedy that, or set it to off.")
    sink(Notice(message=f"the window is not compiled: {obstacle}"))
    yield


def _obstacle(device: torch.device) -> str | None:
    return missing_compiler(device) or failed_compilation(device)
