"""Read amounts of memory as people write them."""

from __future__ import annotations

import re

from falcon_unlearn.errors import UsageError

MEMORY_PATTERN = r"^[0-9]+(\.[0-9]+)?\s*(KB|MB|GB|TB|KiB|MiB|GiB|TiB)$"
_UNITS = {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)} | {
    f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)
}


def parse_memory(text: str) -> int:
    """Return the bytes of `6GiB`, `500 MB` and the like.

    Raises:
        UsageError: The text is no number with a unit.
    """
    if re.fullmatch(MEMORY_PATTERN, text) is None:
        raise UsageError(
            f"memory limit: got {text[:40]!r}, a number with a unit is needed",
            hint="Write 6GiB, 500MB or the like.",
        )
    number, unit = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]+)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])
