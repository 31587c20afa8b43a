"""Which model to change, and how to load it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.config.base import Settings


class ModelSettings(Settings):
    """Name the model."""

    name: str = Field(min_length=1)
    """Hub id, local folder or GGUF file; a local path wins where it exists."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Load dtype; `auto` keeps the dtype of the checkpoint (bfloat16 for GGUF files)."""
    trust_remote_code: bool = False
    """Allow Python code from the model repository to run. Off unless you have read that code."""
