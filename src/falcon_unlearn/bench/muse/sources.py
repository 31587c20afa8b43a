"""Find the raw rows of MUSE pieces, in a folder or on the hub. Nothing here knows what the rows mean."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_unlearn.data.formats import Row, decode_text, parse_json_rows
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.runs import sha256_file


@dataclass(frozen=True)
class Piece:
    """Hold the raw rows of one file or split."""

    file: str
    rows: tuple[Row, ...]
    sha256: str
    """Of the file; for a hub split of its rows."""


class FolderReader:
    """Read `subset/split.json` or `subset/split.txt` below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, names: Sequence[str]) -> Piece | None:
        """Return the first of `names` that exists, or None.

        A text file is one text: what separates its books or articles also occurs inside them.
        """
        for name in names:
            for suffix in (".json", ".jsonl", ".txt"):
                path = self.folder / f"{name}{suffix}"
                if path.is_file():
                    return Piece(f"{name}{suffix}", self._rows(path, f"{name}{suffix}"), sha256_file(path))
        return None

    def absence(self, name: str) -> str:
        """Say why a piece is not there."""
        return f"no file {name}.json or {name}.txt"

    def _rows(self, path: Path, name: str) -> tuple[Row, ...]:
        try:
            text = decode_text(path.read_bytes(), name)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error
        if path.suffix == ".txt":
            return (Row(name, text.strip()),)
        return tuple(parse_json_rows(text, name))


class HubReader:
    """Read splits of a hub data set; each subset is fetched once, with all its splits."""

    def __init__(self, hub_id: str) -> None:
        self.hub_id = hub_id
        self._subsets: dict[str, Any] = {}

    def read(self, names: Sequence[str]) -> Piece | None:
        """Return the first of `names` that exists, or None.

        Raises:
            PrerequisiteError: The hub or the package `datasets` is needed and absent.
            DataError: There is no such data set.
        """
        for name in names:
            subset, split = name.split("/")
            splits = self._subset(subset)
            if split in splits:
                file = f"{self.hub_id}:{name}"
                values = [_plain(value) for value in splits[split]]
                rows = tuple(Row(f"{file}, row {number}", value) for number, value in enumerate(values, 1))
                return Piece(file, rows, _hash(values))
        return None

    def absence(self, name: str) -> str:
        """Say why a piece is not there."""
        return f"{self.hub_id} has no split {name}"

    def _subset(self, subset: str) -> Any:
        if subset not in self._subsets:
            self._subsets[subset] = self._fetch(subset)
        return self._subsets[subset]

    def _fetch(self, subset: str) -> Any:
        try:
            datasets: Any = importlib.import_module("datasets")
        except ImportError as error:
            raise PrerequisiteError(
                f"loading {self.hub_id} from the hub needs the optional package `datasets`",
                hint="pip install 'falcon-unlearn[data]', or give a local folder",
            ) from error
        try:
            return datasets.load_dataset(self.hub_id, name=subset)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.hub_id} is neither a folder nor a hub data set", hint="check the spelling"
            ) from error
        except OSError as error:
            raise PrerequisiteError(
                f"the hub cannot be reached for {self.hub_id} ({type(error).__name__})",
                hint="go online once, or give a local folder",
            ) from error
        except ValueError as error:
            if "BuilderConfig" in str(error):
                return {}  # how `datasets` says that there is no such subset: Books has no scal and sust
            raise PrerequisiteError(
                f"cannot load {self.hub_id}:{subset}: {str(error).splitlines()[0][:200]}",
                hint="offline, only subsets that were fetched before can be read; or give a local folder",
            ) from error
        except (KeyError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"cannot load {self.hub_id}:{subset}: {type(error).__name__}") from error


def _plain(value: Any) -> object:
    """Unwrap the single column in which the hub stores plain texts."""
    if isinstance(value, dict) and set(value) == {"text"}:
        return value["text"]
    return value


def _hash(values: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
