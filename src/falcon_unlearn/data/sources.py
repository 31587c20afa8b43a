"""Read one corpus from a local file or from a hub data set."""

from __future__ import annotations

import codecs
import hashlib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.data.columns import close_matches, rows_to_examples
from falcon_unlearn.data.formats import Row, decode_text, parse_json_rows, split_text
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.examples import Example

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".raw")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = JSON_SUFFIXES + TEXT_SUFFIXES + PARQUET_SUFFIXES

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PARQUET_MARK = b"PAR1"


@dataclass(frozen=True, slots=True)
class LoadedCorpus:
    """Hold the examples of one corpus in file order."""

    examples: tuple[Example, ...]
    sha256: str
    """Hash of kind and content of every example, in order; independent of file format and line ends."""
    source: str
    """File name or data set id, never a path of this machine."""


def load_examples(settings: CorpusSettings) -> LoadedCorpus:
    """Read the corpus that `settings.path` names; an existing file wins over a hub data set of the same name.

    Raises:
        DataError: if the file is missing, unreadable or malformed, or lacks the columns asked for.
        PrerequisiteError: if the optional `datasets` package or the network is needed and absent.
    """
    path = Path(settings.path).expanduser()
    if path.is_dir():
        raise DataError(f"{settings.name}: {path.name} is a folder", hint=_folder_hint(path))
    if path.exists():
        _refuse_hub_options(settings)
        return make_corpus(_read_file(path, settings), path.name)
    if _looks_like_file(settings.path, path):
        raise DataError(f"{settings.name}: there is no file {settings.path}", hint=_missing_hint(path))
    return make_corpus(_read_hub(settings), _hub_name(settings))


def make_corpus(examples: Iterable[Example], source: str) -> LoadedCorpus:
    """Hash the examples and name their source."""
    kept = tuple(examples)
    digest = hashlib.sha256()
    for example in kept:
        digest.update(example.canonical.encode() + b"\n")
    return LoadedCorpus(kept, digest.hexdigest(), source)


def _read_file(path: Path, settings: CorpusSettings) -> list[Example]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{settings.name}: cannot read {path.name}: {error.strerror}") from error
    suffix = path.suffix.lower()
    if content.startswith(_PARQUET_MARK) or suffix in PARQUET_SUFFIXES:
        return _to_examples(_parquet_rows(content, path.name), path.name, settings)
    if suffix not in SUFFIXES and content.removeprefix(codecs.BOM_UTF8).lstrip()[:1] not in (b"{", b"["):
        raise DataError(
            f"{settings.name}: {path.name} is neither JSON nor parquet nor plain text",
            hint=f"allowed: {', '.join(SUFFIXES)}; rename a plain text to .txt",
        )
    text = decode_text(content, path.name)
    if suffix not in TEXT_SUFFIXES:
        return _to_examples(parse_json_rows(text, path.name), path.name, settings)
    if settings.format not in ("auto", "text") or settings.columns:
        raise DataError(
            f"{settings.name}: {path.name} is plain text and has no columns",
            hint="leave `format` and `columns` out, or name a .jsonl file",
        )
    return [Example.of_text(part) for part in split_text(text, settings.text_split)]


def _to_examples(rows: Iterable[Row], name: str, settings: CorpusSettings) -> list[Example]:
    return rows_to_examples(rows, name=name, layout=settings.format, columns=settings.columns)


def _parquet_rows(content: bytes, name: str) -> list[Row]:
    arrow = _optional("pyarrow", f"reading {name}")
    parquet = _optional("pyarrow.parquet", f"reading {name}")
    try:
        values = parquet.read_table(arrow.BufferReader(content)).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a readable parquet file: {_first_line(error)}") from error
    return [Row(f"{name}, row {number}", value) for number, value in enumerate(values, 1)]


def _read_hub(settings: CorpusSettings) -> list[Example]:
    datasets = _optional("datasets", f"loading the hub data set {settings.path}")
    name = _hub_name(settings)
    try:
        loaded = datasets.load_dataset(
            settings.path, name=settings.subset, split=settings.split, revision=settings.revision
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{settings.name}: {settings.path} is neither a file nor a hub data set: {_first_line(error)}",
            hint="check the spelling, `revision`, and whether the data set needs a login",
        ) from error
    except OSError as error:
        raise PrerequisiteError(
            f"{settings.name}: cannot reach the hub for {name}: {_first_line(error)}",
            hint=f"go online once, or download the data and name a local file ({', '.join(SUFFIXES)})",
        ) from error
    except (ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{settings.name}: cannot load {name}: {_first_line(error)}",
            hint="check `subset` and `split` (for instance `split: train[:400]`)",
        ) from error
    rows = [Row(f"{name}, row {number}", value) for number, value in enumerate(loaded, 1)]
    return _to_examples(rows, name, settings)


def _hub_name(settings: CorpusSettings) -> str:
    subset = f":{settings.subset}" if settings.subset else ""
    revision = f"@{settings.revision}" if settings.revision else ""
    return f"{settings.path}{subset}[{settings.split}]{revision}"


def _optional(module: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PrerequisiteError(
            f"{purpose} needs the optional package `datasets`", hint="pip install 'falcon-unlearn[data]'"
        ) from error


def _refuse_hub_options(settings: CorpusSettings) -> None:
    """Refuse settings that a file would silently ignore."""
    given = [key for key in ("subset", "revision") if getattr(settings, key) is not None]
    if settings.split != "train":
        given.append("split")
    if given:
        raise DataError(
            f"{settings.name}: `{given[0]}` applies to hub data sets only, not to {Path(settings.path).name}",
            hint="leave it out; `limit` uses only part of a file",
        )


def _looks_like_file(typed: str, path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES or not _HUB_ID.fullmatch(typed):
        return True
    return "/" in typed and path.parent.is_dir()


def _missing_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent.name or path.parent} does not exist either"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    near = close_matches(path.name, names)
    if near:
        return f"did you mean {near[0]}?"
    usable = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    return f"this folder has: {', '.join(usable[:8])}" if usable else "that folder has no data files"


def _folder_hint(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
    return f"name one file of it: {', '.join(names[:8])}" if names else "it holds no data files; name a file"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
