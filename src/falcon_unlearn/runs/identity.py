"""Say what a run is: processes that agree on this compute the same, and may finish each other's work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from falcon_unlearn._version import __version__

NUMERIC_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")
"""Packages whose version can change the numbers of a run that goes on."""
_SHOWN = 8


@cache
def code_hash() -> str:
    """Hash the source files of this package, sha256."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def code_identity() -> dict[str, str]:
    """Return the versions of this package, its sources and the packages that compute."""
    versions = {"falcon-unlearn": __version__, "sources": code_hash()}
    for name in NUMERIC_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe field by field how two identities differ; empty when they are equal."""
    first, second = dict(_flat(then)), dict(_flat(now))
    names = [*second, *(name for name in first if name not in second)]
    return [
        f"{name}: {_shown(first, name)} then, {_shown(second, name)} now"
        for name in names
        if first.get(name, _ABSENT) != second.get(name, _ABSENT)
    ]


def summarise(lines: list[str]) -> str:
    """Join the first few differences and count the rest."""
    rest = len(lines) - _SHOWN
    return "\n".join(lines[:_SHOWN] + ([f"and {rest} more"] if rest > 0 else []))


_ABSENT = object()


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists by dotted path."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, (list, tuple)) and tree:
        for index, value in enumerate(tree):
            yield from _flat(value, f"{prefix}[{index}]")
    else:
        yield prefix, list(tree) if isinstance(tree, tuple) else tree


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    text = repr(leaves[name]) if name in leaves else "absent"
    return text if len(text) <= 40 else f"{text[:37]}..."
