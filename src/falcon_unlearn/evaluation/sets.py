"""Evaluation sets: JSONL files checked line by line. Needs no torch, so that `validate` can use it."""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_unlearn.config.evaluation import EvaluationSetSettings, EvaluationSettings
from falcon_unlearn.data.formats import Row, decode_text, parse_json_rows
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.patterns import answer_pattern, safe_pattern

_MINIMUM_OPTIONS, _MAXIMUM_OPTIONS = 2, 8
_MAXIMUM_PATTERNS = 20


@dataclass(frozen=True, kw_only=True)
class Item:
    """Identify one item; items of one cluster ask for the same fact and are not independent."""

    id: str
    cluster: str = ""
    """Empty: the item stands for itself."""
    wording: str = ""


@dataclass(frozen=True, kw_only=True)
class ChoiceItem(Item):
    """Ask one question with given options."""

    question: str
    """Stem that the option's text continues."""
    letter_question: str
    """Question shown above lettered options."""
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""


@dataclass(frozen=True, kw_only=True)
class GenerationItem(Item):
    """Ask for a free answer."""

    prompt: str
    answer: str
    accept: tuple[re.Pattern[str], ...]
    reject: tuple[re.Pattern[str], ...]


@dataclass(frozen=True, kw_only=True)
class TextItem(Item):
    """Hold one text, for perplexity and divergence."""

    text: str


AnyItem = ChoiceItem | GenerationItem | TextItem


@dataclass(frozen=True)
class EvaluationSet:
    """Hold one checked set."""

    settings: EvaluationSetSettings
    items: tuple[AnyItem, ...]
    places: tuple[str, ...]
    """Where each item stands, for messages: `facts.jsonl, line 3`."""


ReadRows = Callable[[EvaluationSetSettings], Iterable[Row]]
"""Gives the rows of one set."""


def load_sets(
    settings: EvaluationSettings, *, seed: int, read: ReadRows | None = None
) -> list[EvaluationSet]:
    """Load all sets of `settings`; `read` gives the rows of a set, by default those of its file.

    Raises:
        DataError: two sets of one name, or what `load_set` raises.
    """
    names = [entry.name for entry in settings.sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"evaluation.sets: the names {repeated} occur twice.", hint="give every set its own name"
        )
    return [load_set(entry, seed=seed, read=read) for entry in settings.sets]


def load_set(settings: EvaluationSetSettings, *, seed: int, read: ReadRows | None = None) -> EvaluationSet:
    """Load and check one set; with a limit, keep a sample that depends only on `seed`.

    Raises:
        DataError: the file is missing, not JSONL, empty, or a line is not a valid item; says which line.
    """
    parse = _PARSERS[settings.kind]
    items: list[AnyItem] = []
    places: dict[str, str] = {}
    for number, row in enumerate((read or file_rows)(settings), start=1):
        if not isinstance(row.value, dict):
            raise DataError(f"{row.place}: expected an object, got {type(row.value).__name__}")
        _check_keys(row.value, settings.kind, row.place)
        item = parse(row.value, _identity(row.value, number, row.place), row.place)
        if item.id in places:
            raise DataError(f"{row.place}: the id {item.id!r} was used before, in {places[item.id]}")
        places[item.id] = row.place
        items.append(item)
    if settings.limit is not None and settings.limit < len(items):
        chosen = sorted(random.Random(seed).sample(range(len(items)), settings.limit))
        items = [items[index] for index in chosen]
    return EvaluationSet(settings, tuple(items), tuple(places[item.id] for item in items))


def file_rows(settings: EvaluationSetSettings) -> list[Row]:
    """Return the rows of a set's JSONL file.

    Raises:
        DataError: the file is missing, empty or not JSON.
    """
    path = Path(settings.path)
    if not path.is_file():
        raise DataError(
            f"evaluation file {path} does not exist", hint="check evaluation.sets[].path in the recipe"
        )
    return parse_json_rows(decode_text(path.read_bytes(), path.name), path.name)


def choice_item(row: dict[str, Any], number: int, where: str) -> ChoiceItem:
    """Check one row of a choice set, the `number`-th, found at `where`.

    Raises:
        DataError: The row is not a valid item.
    """
    _check_keys(row, "choice", where)
    return _choice(row, _identity(row, number, where), where)


def _check_keys(row: dict[str, Any], kind: str, where: str) -> None:
    allowed = _KEYS[kind]
    for key in row.keys() - allowed:
        # Other columns may carry notes; a near miss is a typing error that would be ignored silently.
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.75)
        if near:
            raise DataError(f"{where}: unknown field {key!r}; did you mean {near[0]!r}?")


def _identity(row: dict[str, Any], number: int, where: str) -> dict[str, str]:
    for name in ("id", "cluster", "wording"):
        if not isinstance(row.get(name, ""), str | int):
            raise DataError(f"{where}: {name} must be text or a whole number, got {row[name]!r}.")
    return {
        "id": str(row.get("id", f"item-{number}")),
        "cluster": str(row.get("cluster", "")),
        "wording": str(row.get("wording", "")),
    }


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if name not in row else repr(value)
        raise DataError(f"{where}: {name} must be non-empty text, got {got}.")
    return value


def _choice(row: dict[str, Any], identity: dict[str, str], where: str) -> ChoiceItem:
    # A stem that ends in a space would split the option's first token; the space belongs to the option.
    question = _text(row, "question", where).rstrip()
    letter_question = _text(row, "letter_question", where).rstrip() if "letter_question" in row else question
    options = row.get("options")
    if (
        not isinstance(options, list)
        or not all(isinstance(option, str) and option.strip() for option in options)
        or not _MINIMUM_OPTIONS <= len(options) <= _MAXIMUM_OPTIONS
    ):
        raise DataError(
            f"{where}: options must be a list of {_MINIMUM_OPTIONS} to {_MAXIMUM_OPTIONS} texts, "
            f"got {options!r}"
        )
    cleaned = tuple(option.strip() for option in options)
    if len(set(cleaned)) < len(cleaned):
        raise DataError(f"{where}: two options are identical: {options!r}.")
    return ChoiceItem(
        question=question,
        letter_question=letter_question,
        options=cleaned,
        answer=_answer_index(row.get("answer"), cleaned, where),
        **identity,
    )


def _answer_index(answer: Any, options: tuple[str, ...], where: str) -> int:
    if isinstance(answer, str):
        if answer.strip() not in options:
            raise DataError(f"{where}: the answer {answer!r} is not among the options {list(options)!r}")
        return options.index(answer.strip())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise DataError(
            f"{where}: answer must be the index of an option, 0 to {len(options) - 1}, or its text, "
            f"got {answer!r}"
        )
    return answer


def _generation(row: dict[str, Any], identity: dict[str, str], where: str) -> GenerationItem:
    answer = _text(row, "answer", where).strip()
    accept = row_patterns(row, "accept", where) or (answer_pattern(answer),)
    return GenerationItem(
        prompt=_text(row, "prompt", where).rstrip(" "),
        answer=answer,
        accept=accept,
        reject=row_patterns(row, "reject", where),
        **identity,
    )


def row_patterns(row: dict[str, Any], name: str, where: str) -> tuple[re.Pattern[str], ...]:
    """Return the patterns in column `name` of a row found at `where`; none if the column is missing.

    Raises:
        DataError: The column holds something else, or a pattern that could take very long.
    """
    value = row.get(name, [])
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise DataError(f"{where}: {name} must be a regular expression or a list of them, got {value!r}.")
    if len(sources) > _MAXIMUM_PATTERNS:
        raise DataError(
            f"{where}: {name} holds {len(sources)} patterns, at most {_MAXIMUM_PATTERNS} are allowed."
        )
    return tuple(safe_pattern(source, f"{where}, {name}") for source in sources)


def _plain(row: dict[str, Any], identity: dict[str, str], where: str) -> TextItem:
    return TextItem(text=_text(row, "text", where), **identity)


_COMMON_KEYS = frozenset({"id", "cluster", "wording"})
_KEYS = {
    "choice": _COMMON_KEYS | {"question", "letter_question", "options", "answer"},
    "generation": _COMMON_KEYS | {"prompt", "answer", "accept", "reject"},
    "perplexity": _COMMON_KEYS | {"text"},
    "divergence": _COMMON_KEYS | {"text"},
}
_Parser = Callable[[dict[str, Any], dict[str, str], str], AnyItem]
_PARSERS: dict[str, _Parser] = {
    "choice": _choice,
    "generation": _generation,
    "perplexity": _plain,
    "divergence": _plain,
}
