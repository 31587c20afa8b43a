"""How much of an answer a model reproduces when it is read out token by token."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_unlearn.errors import DataError


def exact_memorisation(argmax_matches: Sequence[bool], *, drop_last: bool = False) -> float:
    """Return the share of tokens that are the model's first choice, given all true tokens before them.

    Args:
        argmax_matches: one flag per scored token of the answer.
        drop_last: leave out the last scored token, as open-unlearning does. It is meant to be the end token;
            on texts without one (MUSE) it is a real token.

    Raises:
        DataError: no tokens are left.
    """
    matches = _scored(argmax_matches, drop_last)
    return sum(matches) / len(matches)


def extraction_strength(
    argmax_matches: Sequence[bool], *, drop_last: bool = False, floor_of_one_token: bool = False
) -> float:
    """Return 1 - k/n, with k the shortest prefix after which all remaining first choices are right.

    0 means that the last token is wrong, 1 that the whole answer follows from the prompt (Carlini et al.
    2021, as open-unlearning measures it on TOFU and MUSE).

    Args:
        argmax_matches: one flag per scored token of the answer.
        drop_last: leave out the last scored token, as open-unlearning does.
        floor_of_one_token: return 1/n instead of 0. The search in open-unlearning stops one token early, so
            an answer with a wrong last token scores like one whose last token alone is right. Only for
            comparison with its numbers.

    Raises:
        DataError: no tokens are left.
    """
    matches = _scored(argmax_matches, drop_last)
    correct_tail = 0
    for match in reversed(matches):
        if not match:
            break
        correct_tail += 1
    if floor_of_one_token:
        correct_tail = max(correct_tail, 1)
    return correct_tail / len(matches)


def _scored(argmax_matches: Sequence[bool], drop_last: bool) -> Sequence[bool]:
    matches = argmax_matches[:-1] if drop_last else argmax_matches
    if len(matches) == 0:
        raise DataError(
            f"memorisation needs at least one scored token, got {len(argmax_matches)}"
            + (" before the last one was dropped." if drop_last else "."),
            hint="The answer is empty, or its tokens merged with those of the prompt.",
        )
    return matches
