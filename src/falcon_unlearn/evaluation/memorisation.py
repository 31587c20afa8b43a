"""How much of an answer a model reproduces when it is read out token by token."""

from __future__ import annotations

from collections.abc import Sequence


def exact_memorisation(argmax_matches: Sequence[bool]) -> float:
    """Return the share of tokens that are the model's first choice, given all true tokens before them."""
    return sum(argmax_matches) / len(argmax_matches)


def extraction_strength(argmax_matches: Sequence[bool]) -> float:
    """Return 1 - k/n, with k the shortest prefix after which all remaining first choices are right.

    0 means that the last token is wrong, 1 that the whole answer follows from the prompt. (The floor of 1/n
    in the widely used implementation is an off-by-one and not repeated here.)
    """
    correct_tail = 0
    for match in reversed(argmax_matches):
        if not match:
            break
        correct_tail += 1
    return correct_tail / len(argmax_matches)
