"""Forward passes that keep keys and values, whatever the installed transformers calls them."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from torch import Tensor


def cached_forward(model: Any, cache: Any, *, keep: bool = True, **inputs: Any) -> tuple[Tensor, Any]:
    """Run a model on what comes after `cache`, None at the start; return its logits and the grown cache.

    Args:
        model: Hugging Face causal language model.
        cache: From an earlier call; it is changed in place.
        keep: Whether the cache is needed later; without it None is returned in its place.
        inputs: Tokens, mask, positions and so on.
    """
    name = _cache_name(model.__class__)
    output = model(**inputs, **({} if cache is None else {name: cache}), use_cache=keep)
    return output.logits, getattr(output, name) if keep else None


@lru_cache
def _cache_name(model_class: Any) -> str:
    """Return `cache`, as transformers calls it since 5.24, or `past_key_values`, as before."""
    parameters = inspect.signature(model_class.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"
