"""Feed the language-model head contiguous states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def contiguous_head_input(model: Any) -> Iterator[None]:
    """Copy what enters the head into contiguous memory while the context is open.

    A slice of the last position, B x 1 x D, has gaps between its rows. For bfloat16 on processors the matrix
    product then runs row by row and repacks the head's weight each time: measured 5.7 s against 14 ms for 60
    rows and a vocabulary of 49,152.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()
