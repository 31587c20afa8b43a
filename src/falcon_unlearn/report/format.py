"""Turn numbers and untrusted text into words for people."""

from __future__ import annotations

import math
import re
import unicodedata

MISSING = "n/a"
_TERMINAL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_KEPT_CHARACTERS = frozenset("\n\t\u200c\u200d")
_REMOVED_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})


def clean(text: str) -> str:
    """Remove terminal sequences, control, direction-changing and surrogate characters.

    Line breaks and tabs stay, and so do the two joiners that some scripts and emoji need.
    """
    without_sequences = _TERMINAL_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return "".join(
        character
        for character in without_sequences
        if character in _KEPT_CHARACTERS or unicodedata.category(character) not in _REMOVED_CATEGORIES
    )


def shorten(text: str, limit: int) -> str:
    """Cut `text` to `limit` characters, the last one an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits: 0.0123, 36.3, 12,400, 3.1e-7."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_trim(mantissa)}e{int(exponent)}"
    decimals = max(0, digits - 1 - magnitude)
    return _trim(f"{value:,.{decimals}f}") if decimals else f"{round(value):,}"


def share(value: float | None) -> str:
    """Write a share as a percentage with at most one decimal."""
    if value is None or not math.isfinite(value):
        return MISSING
    percent = 100 * value
    if 0 < abs(percent) < 0.1:
        return f"{quantity(percent, 1)}%"
    return f"{_trim(f'{percent:.1f}')}%"


def points(difference: float) -> str:
    """Write the difference of two shares in percentage points, with its sign."""
    if not math.isfinite(difference):
        return MISSING
    rounded = f"{100 * difference:+.1f}"
    return "\u00b10" if rounded in {"+0.0", "-0.0"} else _trim(rounded).replace("-", "\u2212")


def signed(value: float, digits: int = 3) -> str:
    """Write a number with its sign, using a real minus."""
    if not math.isfinite(value):
        return MISSING
    text = quantity(value, digits)
    return text.replace("-", "\u2212", 1) if value < 0 else f"+{text}"


def in_unit(value: float | None, unit: str) -> str:
    """Write the value of a metric in its unit: shares as percentages, the rest as numbers."""
    return share(value) if unit == "share" else quantity(value, 4)


def duration(seconds: float | None) -> str:
    """Write a duration: 0.42 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{quantity(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def operations(value: float | None) -> str:
    """Write a number of floating-point operations with a decimal prefix."""
    if value is None or not math.isfinite(value):
        return MISSING
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{quantity(value / limit)} {prefix}FLOP"
    return f"{quantity(value)} FLOP"


def plural(number: int, singular: str, several: str | None = None) -> str:
    """Count something: `1 step`, `60 steps`."""
    return f"{number:,} {singular if number == 1 else several or singular + 's'}"


def listing(parts: list[str]) -> str:
    """Join words as in a sentence: `a, b and c`."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
