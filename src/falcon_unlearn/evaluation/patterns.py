"""Regular expressions from data files: compiled only when their matching time is bounded.

Python's matcher backtracks, so a pattern such as `(a+)+$` takes time exponential in the text. Patterns may
therefore not repeat groups, and have few repetitions; judged texts are cut (`MAXIMUM_TEXT`), which bounds the
rest.
"""

from __future__ import annotations

import re

from falcon_unlearn.errors import DataError

MAXIMUM_PATTERN = 200
MAXIMUM_TEXT = 300
_MAXIMUM_REPETITIONS = 2
_MAXIMUM_OPTIONALS = 8

_ESCAPE = re.compile(r"\\.", re.DOTALL)
_CHARACTER_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_GROUP_KIND = re.compile(r"\(\?")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPETITION = re.compile(r"[*+{]")


def answer_pattern(answer: str) -> re.Pattern[str]:
    """Return a pattern that finds `answer` as a whole word, in its exact spelling."""
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")


def safe_pattern(source: str, where: str) -> re.Pattern[str]:
    """Compile `source`, found at `where` (file and line).

    Raises:
        DataError: the pattern is too long, does not compile, or could take very long to match.
    """
    if not source or len(source) > MAXIMUM_PATTERN:
        raise DataError(
            f"{where}: a pattern needs 1 to {MAXIMUM_PATTERN} characters, this one has {len(source)}",
            hint="split it into several patterns: accept and reject take lists",
        )
    skeleton = _GROUP_KIND.sub("(", _CHARACTER_CLASS.sub("c", _ESCAPE.sub("e", source)))
    if _REPEATED_GROUP.search(skeleton):
        raise DataError(
            f"{where}: the pattern {source!r} repeats a group, which can take exponential time",
            hint="repeat single characters or classes only, or write the repetitions out",
        )
    if len(_REPETITION.findall(skeleton)) > _MAXIMUM_REPETITIONS or skeleton.count("?") > _MAXIMUM_OPTIONALS:
        raise DataError(
            f"{where}: the pattern {source!r} has too many repetitions; allowed are {_MAXIMUM_REPETITIONS} "
            f"of *, + or {{}} and {_MAXIMUM_OPTIONALS} of ?",
            hint="split it into several patterns: accept and reject take lists",
        )
    try:
        return re.compile(source)
    except (re.error, OverflowError) as error:
        raise DataError(
            f"{where}: the pattern {source!r} is not a regular expression: {error}",
            hint="escape characters with a meaning, such as . ( ) + ?, by a backslash",
        ) from error
