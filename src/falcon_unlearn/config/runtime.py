"""How to run: nothing here changes what is computed beyond rounding."""

from __future__ import annotations

from pydantic import Field

from falcon_unlearn.config.base import Settings


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
