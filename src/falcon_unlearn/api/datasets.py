"""Read data sets that are in memory: lists, dictionaries of them, or anything that iterates over rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from falcon_unlearn.config.data import CorpusSettings, DataSettings
from falcon_unlearn.config.evaluation import EvaluationSetSettings
from falcon_unlearn.data.columns import ROLES_OF_FORMAT, rows_to_examples
from falcon_unlearn.data.corpora import SELF
from falcon_unlearn.data.formats import Row
from falcon_unlearn.data.sources import LoadedCorpus, load_examples, make_corpus
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.sets import file_rows

_COLUMN_NAMES = frozenset(role for roles in ROLES_OF_FORMAT.values() for role in roles)


@dataclass
class MemoryData:
    """Collect the sets handed to a trainer: as the recipe names them, and their rows where in memory."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Rows by the path that stands for them in the recipe."""
    corpora: dict[str, LoadedCorpus] = field(default_factory=dict)
    """Loaded sets by path."""

    def add_corpora(self, dataset: Any, role: str) -> list[dict[str, str]]:
        """Take one data set, or several by name, and return name and path of each.

        Args:
            dataset: A list of texts or of rows, a `datasets.Dataset` or another iterable of mappings, a path
                or hub id, `self`, or a mapping from names to any of these.
            role: `forget` or `retain`.

        Raises:
            DataError: It is none of these, or empty.
        """
        argument = f"{role}_dataset"
        if not isinstance(dataset, Mapping):
            return [self._add(role, dataset, argument, role)]
        if dataset and set(map(str, dataset)) <= _COLUMN_NAMES:
            raise DataError(
                f"{argument}: a mapping gives names to data sets, but the keys {sorted(dataset)} are columns",
                hint="Give a list of rows, such as [{'text': ...}], or name the domains otherwise.",
            )
        if not dataset:
            raise DataError(f"{argument} is empty", hint="Give at least one data set.")
        return [self._add(str(n), value, f"{argument}[{n!r}]", role) for n, value in dataset.items()]

    def _add(self, name: str, dataset: Any, argument: str, role: str) -> dict[str, str]:
        if isinstance(dataset, str | os.PathLike):
            return {"name": name, "path": os.fspath(dataset)}
        path = f"memory:{role}/{name}"
        self.rows[path] = rows_in_memory(dataset, argument)
        return {"name": name, "path": path}

    def add_evaluation_sets(self, sets: Any) -> list[dict[str, Any]]:
        """Take evaluation sets and return them as the recipe names them.

        Args:
            sets: `EvaluationSetSettings` or mappings with name, role, kind and either `path` or `items`; or a
                mapping from names to such mappings.

        Raises:
            DataError: A set is something else, or its items are not rows.
        """
        if isinstance(sets, Mapping):
            sets = [{"name": name, **_described(f"eval_sets[{name!r}]", s)} for name, s in sets.items()]
        result = []
        for index, entry in enumerate(sets or ()):
            described = _described(f"eval_sets[{index}]", entry)
            items = described.pop("items", None)
            if items is not None:
                described["path"] = f"memory:evaluation/{described.get('name', index)}"
                self.rows[described["path"]] = rows_in_memory(items, f"eval_sets[{index}]['items']")
            result.append(described)
        return result

    def load_all(self, settings: DataSettings) -> None:
        """Load every set now, so that wrong columns and missing files show before a model is loaded.

        Raises:
            DataError, PrerequisiteError: A set cannot be read.
        """
        for corpus in (*settings.forget, *settings.retain):
            if corpus.path != SELF:
                self.corpora[corpus.path] = self._read(corpus)

    def load(self, corpus: CorpusSettings) -> LoadedCorpus:
        """Return a set loaded before."""
        return self.corpora[corpus.path]

    def _read(self, corpus: CorpusSettings) -> LoadedCorpus:
        rows = self.rows.get(corpus.path)
        if rows is None:
            return load_examples(corpus)
        examples = rows_to_examples(rows, name=corpus.name, layout=corpus.format, columns=corpus.columns)
        return make_corpus(examples, corpus.path)

    def evaluation_rows(self, settings: EvaluationSetSettings) -> Iterable[Row]:
        """Return the rows of an evaluation set, from memory or from its file."""
        return self.rows[settings.path] if settings.path in self.rows else file_rows(settings)


def rows_in_memory(dataset: Any, argument: str) -> list[Row]:
    """Return the rows of an iterable, each with its place for error messages.

    Raises:
        DataError: Not an iterable of rows.
    """
    if hasattr(dataset, "to_dict") and hasattr(dataset, "columns"):
        raise DataError(
            f"{argument}: iterating over a {type(dataset).__name__} gives column names, not rows",
            hint="Use frame.to_dict('records') or datasets.Dataset.from_pandas(frame).",
        )
    if not isinstance(dataset, Iterable) or isinstance(dataset, bytes):
        raise DataError(
            f"{argument}: got {type(dataset).__name__}",
            hint="Give a list of texts or rows, a datasets.Dataset, a path, or a mapping of names to these.",
        )
    rows = [Row(f"{argument}[{index}]", value) for index, value in enumerate(dataset)]
    if not rows:
        raise DataError(f"{argument} is empty", hint="Give at least one example.")
    return rows


def _described(argument: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, EvaluationSetSettings):
        return entry.model_dump(mode="json")
    if isinstance(entry, Mapping):
        return dict(entry)
    raise DataError(
        f"{argument}: got {type(entry).__name__}, a mapping with name, role, kind and path or items is needed"
    )
