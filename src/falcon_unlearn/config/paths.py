"""Local paths in recipes: where they point, and what of them may be published."""

from __future__ import annotations

import os
import re
from pathlib import Path

FILE_SUFFIXES = frozenset(
    {".csv", ".gguf", ".json", ".jsonl", ".md", ".parquet", ".tsv", ".txt", ".yaml", ".yml"}
)
"""Endings that mark a value as a file name rather than a hub id."""
TOKEN_PATTERN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
"""Access tokens of the model hub."""
NAME_LENGTH = 64


def exists(value: str | Path) -> bool:
    """Tell whether `value` names something on this machine; impossible names do not exist."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):
        return False


def is_local(value: str) -> bool:
    """Tell a local path from a hub id by its spelling or by its existence."""
    spelled = value.startswith(("/", "~", "./", "../", ".\\", "..\\")) or value in {".", ".."}
    drive = re.match(r"^[A-Za-z]:[\\/]", value) is not None
    return spelled or drive or Path(value).suffix.lower() in FILE_SUFFIXES or exists(value)


def public_name(path: str | Path) -> str:
    """Return what may be written into a record: the last part of a local path, a hub id as it is."""
    value = str(path)
    if not is_local(value):
        return TOKEN_PATTERN.sub("[token]", value)
    parts = [part for part in re.split(r"[\\/]+", value) if part not in {"", ".", "..", "~"}]
    return TOKEN_PATTERN.sub("[token]", parts[-1]) if parts else "."


def public_text(text: str) -> str:
    """Remove the home folder and hub tokens from `text`."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    return TOKEN_PATTERN.sub("[token]", text)


def domain_name(source: str, fallback: str) -> str:
    """Derive the name of a corpus from its file or hub id, by the naming rule of `CorpusSettings`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.replace("\\", "/")).stem)
    return name.lstrip("-_")[:NAME_LENGTH].rstrip("-") or fallback


def beside(folder: Path, value: str, *, always: bool) -> str:
    """Resolve `value`, read from a recipe in `folder`, against that folder.

    A hub id looks like a relative path, so unless `always` is set a value is joined only when the joined
    path exists or the spelling leaves no doubt. The result stays relative where `folder` is relative.
    """
    if value.startswith("~"):
        return os.path.expanduser(value)
    if os.path.isabs(value) or value in {"", "self"}:
        return value
    joined = os.path.normpath(folder / value)
    spelled = value.startswith(("./", "../", ".\\", "..\\")) or value in {".", ".."}
    if always or spelled or Path(value).suffix.lower() in FILE_SUFFIXES or exists(joined):
        return joined
    return value
