"""Grade how much a difference between two environments can change a result."""

from __future__ import annotations

import re
from typing import Literal

from falcon_unlearn.results import EnvironmentDifference, EnvironmentResult

Grade = Literal["low", "medium", "high", "critical"]

GRADES: tuple[Grade, ...] = ("low", "medium", "high", "critical")
"""In ascending order. Low: bits should agree. Medium: last digits may differ. High: shown digits may differ.
Critical: another kind of device, or a package without which nothing runs."""
_COMPUTING = frozenset({"torch", "transformers"})
_NUMERIC = frozenset({"falcon-unlearn", "tokenizers", "numpy", "safetensors", "gguf"})


def grade_environment(recorded: EnvironmentResult, now: EnvironmentResult) -> list[EnvironmentDifference]:
    """Return every difference that matters, the gravest first.

    Memory, number of cores and time are not compared: they do not enter a result.
    """
    found: list[EnvironmentDifference] = []

    def note(name: str, before: object, after: object, grade: Grade) -> None:
        if before != after:
            found.append(EnvironmentDifference(name=name, recorded=str(before), now=str(after), grade=grade))

    same_kind = recorded.device.split(":")[0] == now.device.split(":")[0]
    note("device", recorded.device, now.device, "low" if same_kind else "critical")
    note("threads", recorded.threads, now.threads, "medium")
    note("processor", recorded.processor, now.processor, "medium")
    note("python", recorded.python, now.python, "low")
    note("platform", recorded.platform, now.platform, "low")
    for name in sorted(recorded.packages.keys() | now.packages.keys()):
        before, after = recorded.packages.get(name, "absent"), now.packages.get(name, "absent")
        note(f"package {name}", before, after, _grade_package(name, before, after))
    return sorted(found, key=lambda difference: -GRADES.index(difference.grade))


def worst(differences: list[EnvironmentDifference]) -> Grade | None:
    """Return the gravest grade, None without a difference."""
    return max((difference.grade for difference in differences), key=GRADES.index, default=None)


def _grade_package(name: str, before: str, after: str) -> Grade:
    if name not in _COMPUTING | _NUMERIC:
        return "low"
    if after == "absent":
        return "critical" if name in _COMPUTING else "medium"
    same_release = _release(before) == _release(after)
    if name in _COMPUTING:
        return "medium" if same_release else "high"
    return "low" if same_release else "medium"


def _release(version: str) -> tuple[str, ...]:
    """Return major and minor number: patches are not meant to change numbers."""
    return tuple(re.findall(r"\d+", version.split("+")[0])[:2])
