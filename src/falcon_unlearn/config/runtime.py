"""How to run: nothing here changes what is computed beyond rounding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.config.base import Settings
from falcon_unlearn.config.memory import MEMORY_PATTERN, parse_memory


class RuntimeSettings(Settings):
    """Set device and resources."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, mps, cuda or cuda:N."""
    threads: int | None = Field(default=None, ge=1)
    """Processor threads; None leaves the library's choice."""
    cache_batch_tokens: int = Field(default=1024, ge=64)
    """Tokens per forward pass while states are cached."""
    save_seconds: float = Field(default=60.0, ge=0)
    """Seconds between two saved states of the training, to go on from after a kill; 0 saves every step. Where
    saving is slow, it is done more rarely."""
    rank_timeout: float = Field(default=600.0, gt=0)
    """Seconds after which a silent process of a distributed job counts as lost."""
    shard: Literal["auto", "never", "window"] = "auto"
    """Distributed: split the blocks of the window over the ranks, never, or where one card would be full."""
    compile: Literal["off", "auto", "on"] = "off"
    """Compile the window's blocks for training (torch.compile): never, on accelerators, or always. The first
    steps take longer."""
    memory_limit: str | None = Field(default=None, pattern=MEMORY_PATTERN)
    """Largest memory of the process, such as 6GiB; None: what is free. A model that does not fit is read
    block by block."""
    streaming: Literal["auto", "always", "never"] = "auto"
    """Read the model block by block: where it does not fit into the memory, always, or never."""
    output_format: Literal["model", "delta"] = "model"
    """Write the whole model, or only the changed tensors; `export` makes a model of the latter."""
    copies: Literal["auto", "reflink", "hardlink", "copy"] = "auto"
    """Untouched weight files: shared with the source by reflink, else hard link, else copied; or one of
    these. A hard-linked file changes when the source is edited in place."""

    @property
    def memory_limit_bytes(self) -> int | None:
        """Return the limit in bytes, None when there is none."""
        return None if self.memory_limit is None else parse_memory(self.memory_limit)
