"""Read TOFU from a folder or the hub, and refuse files that only carry its names.

Every file is JSON Lines whatever its ending. A variant for continual learning circulates under the same file
names with up to ten times the forget rows and a `task_id`; its numbers compare with nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from falcon_unlearn.bench.tofu.settings import (
    FORGET_AUTHORS,
    ROWS_PER_AUTHOR,
    ForgetSplit,
    TofuSetting,
)
from falcon_unlearn.config.paths import public_name
from falcon_unlearn.data.formats import Row, decode_text, parse_json_rows
from falcon_unlearn.errors import DataError, PrerequisiteError, UsageError
from falcon_unlearn.examples import Example

HUB_ID = "locuslab/TOFU"


@dataclass(frozen=True)
class TofuRow:
    """Hold one question with its right and, in the perturbed files, its wrong answers."""

    question: str
    answer: str
    paraphrased_answer: str | None = None
    """The right answer in other words; real authors and world facts have none."""
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers: five, for real authors and world facts three."""
    paraphrased_question: str | None = None


@dataclass(frozen=True)
class TofuData:
    """Hold the files that training and evaluation of one forget split need."""

    split: ForgetSplit
    full: tuple[TofuRow, ...]
    """All 4,000 rows, 20 of each author."""
    forget: tuple[TofuRow, ...]
    """Perturbed rows of the forget split."""
    retain: tuple[TofuRow, ...]
    """Perturbed rows of the first 20 authors."""
    real_authors: tuple[TofuRow, ...]
    world_facts: tuple[TofuRow, ...]
    holdout: tuple[TofuRow, ...] | None
    """The official holdout of the split; None where the source lacks it."""
    files: dict[str, str]
    """File name to hash and number of rows."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    num_rows: int
    first_question: str
    """Start of the SHA-256 of the first row's question."""
    content: str
    """Start of the SHA-256 over questions and answers, whatever the file format."""
    num_perturbed: int = 0
    has_paraphrase: bool = False


_FILES: dict[str, _File] = {
    "full": _File(4000, "700b8fda09ee", "0934a990df04"),
    "forget01_perturbed": _File(40, "c49456b0f247", "d69cdbabe7a2", 5, has_paraphrase=True),
    "forget05_perturbed": _File(200, "ab361a976d57", "566f215fad0b", 5, has_paraphrase=True),
    "forget10_perturbed": _File(400, "f337e852a958", "2d58bdb568b9", 5, has_paraphrase=True),
    "retain_perturbed": _File(400, "700b8fda09ee", "1ea4e1c03357", 5, has_paraphrase=True),
    "real_authors_perturbed": _File(100, "eeb35993b58c", "5aff867cd530", 3),
    "world_facts_perturbed": _File(117, "054d162ec63c", "d4c18c86ba54", 3),
}
_HOLDOUT_ROWS = {"holdout01": 40, "holdout05": 200, "holdout10": 400}


def load_tofu(source: str | Path, split: ForgetSplit) -> TofuData:
    """Read what the evaluation of one forget split needs.

    Args:
        source: a folder with `full.json`, `{split}_perturbed.json` and so on, or a hub id.
        split: forget01, forget05 or forget10.

    Raises:
        UsageError: no such split.
        DataError: a file is missing, malformed, or not the canonical release.
        PrerequisiteError: the hub or the `datasets` package is needed and absent.
    """
    if split not in FORGET_AUTHORS:
        raise UsageError(f"forget split: got {split!r}", hint=f"allowed: {', '.join(FORGET_AUTHORS)}")
    folder = Path(source).expanduser()
    reader = _FolderReader(folder) if folder.is_dir() else _HubReader(_hub_id(str(source)))
    names = (
        "full",
        f"{split}_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    )
    rows = {name: _canonical_rows(reader, name) for name in names}
    holdout_name = f"holdout{split[-2:]}"
    holdout = _holdout_rows(reader, holdout_name)
    read = rows if holdout is None else {**rows, holdout_name: holdout}
    full, forget = rows["full"], rows[f"{split}_perturbed"]
    _check_part_of_full(forget, full, FORGET_AUTHORS[split][0] * ROWS_PER_AUTHOR, f"{split}_perturbed")
    _check_part_of_full(rows["retain_perturbed"], full, 0, "retain_perturbed")
    return TofuData(
        split=split,
        full=full,
        forget=forget,
        retain=rows["retain_perturbed"],
        real_authors=rows["real_authors_perturbed"],
        world_facts=rows["world_facts_perturbed"],
        holdout=holdout,
        files={f"{name}.json": f"{_content_hash(part)} ({len(part)} rows)" for name, part in read.items()},
        notes=_deviations(rows),
    )


def author_rows(full: Sequence[TofuRow], authors: Iterable[int]) -> tuple[TofuRow, ...]:
    """Return the rows of `authors`, author after author."""
    return tuple(
        row for author in authors for row in full[author * ROWS_PER_AUTHOR : (author + 1) * ROWS_PER_AUTHOR]
    )


def forget_rows(data: TofuData, setting: TofuSetting) -> tuple[TofuRow, ...]:
    """Return the questions to forget."""
    return author_rows(data.full, setting.forget_authors)


def retained_rows(data: TofuData, setting: TofuSetting) -> tuple[TofuRow, ...]:
    """Return the questions the retain model is trained on."""
    return author_rows(data.full, setting.retain_authors)


def target_rows(data: TofuData, setting: TofuSetting) -> tuple[TofuRow, ...]:
    """Return the questions the target model is trained on: retain and forget."""
    return retained_rows(data, setting) + forget_rows(data, setting)


def holdout_rows(data: TofuData, setting: TofuSetting) -> tuple[TofuRow, ...]:
    """Return questions that no model was trained on; empty if the source has no official holdout."""
    if setting.holdout_authors:
        return author_rows(data.full, setting.holdout_authors)
    return data.holdout or ()


def question_examples(rows: Iterable[TofuRow]) -> tuple[Example, ...]:
    """Return rows as questions with answers, as training takes them."""
    return tuple(Example.of_question(row.question, row.answer) for row in rows)


class _FolderReader:
    """Read files of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> list[Row] | None:
        """Return the raw rows, or None where the file is absent."""
        path = next(
            (found for suffix in (".json", ".jsonl") if (found := self.folder / f"{name}{suffix}").is_file()),
            None,
        )
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error
        return parse_json_rows(decode_text(content, path.name), path.name)


class _HubReader:
    """Read subsets of a hub data set."""

    def __init__(self, hub_id: str) -> None:
        self.hub_id = hub_id

    def read(self, name: str) -> list[Row] | None:
        """Return the raw rows, or None where the data set has no such subset."""
        try:
            import datasets
        except ImportError as error:
            raise PrerequisiteError(
                f"loading the hub data set {self.hub_id} needs the optional package `datasets`",
                hint="pip install 'falcon-unlearn[data]', or give a folder with the JSON files",
            ) from error
        try:
            loaded = datasets.load_dataset(self.hub_id, name=name, split="train")
        except FileNotFoundError as error:
            raise DataError(
                f"{self.hub_id} is neither a folder nor a hub data set", hint=f"the official id is {HUB_ID}"
            ) from error
        except OSError as error:
            raise PrerequisiteError(
                f"the hub cannot be reached for {self.hub_id}",
                hint="go online once, or give a folder with the JSON files",
            ) from error
        except (ValueError, KeyError, datasets.exceptions.DatasetsError):
            return None  # what `datasets` raises for a subset that does not exist
        return [Row(f"{self.hub_id}:{name}, row {number}", value) for number, value in enumerate(loaded, 1)]


def _hub_id(source: str) -> str:
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise DataError(
            f"TOFU: there is no folder {public_name(source)!r}",
            hint=f"give a folder with full.json, forget05_perturbed.json ..., or the hub id {HUB_ID}",
        )
    return source


def _canonical_rows(reader: _FolderReader | _HubReader, name: str) -> tuple[TofuRow, ...]:
    raw = reader.read(name)
    if raw is None:
        raise DataError(f"TOFU: {name} is missing", hint=f"complete the folder with the files of {HUB_ID}")
    expected = _FILES[name]
    _check_count(raw, name, expected.num_rows)
    rows = tuple(_parse(row, expected) for row in raw)
    if not _hash(rows[0].question).startswith(expected.first_question):
        raise DataError(
            f"TOFU: {name} starts with another question than the canonical file",
            hint="the rows may be shuffled, or this may be another data set; order decides who is an author",
        )
    return rows


def _holdout_rows(reader: _FolderReader | _HubReader, name: str) -> tuple[TofuRow, ...] | None:
    raw = reader.read(name)
    if raw is None:
        return None
    _check_count(raw, name, _HOLDOUT_ROWS[name])
    return tuple(_parse(row, _File(_HOLDOUT_ROWS[name], "", "")) for row in raw)


def _check_count(raw: Sequence[Row], name: str, num_rows: int) -> None:
    is_continual = any(isinstance(row.value, dict) and "task_id" in row.value for row in raw)
    if len(raw) == num_rows and not is_continual:
        return
    what = "the continual-learning variant (it has a task_id)" if is_continual else "another data set"
    raise DataError(
        f"TOFU: {name} has {len(raw)} rows instead of {num_rows}: this is {what}",
        hint=f"use the canonical files of {HUB_ID}; numbers on other files compare with nothing",
    )


def _parse(row: Row, expected: _File) -> TofuRow:
    value = row.value
    if not isinstance(value, dict):
        raise DataError(f"{row.place}: expected an object, got {type(value).__name__}")
    wrong = value.get("perturbed_answer", []) if expected.num_perturbed else []
    wrong = [wrong] if isinstance(wrong, str) else wrong
    if not isinstance(wrong, list) or len(wrong) != expected.num_perturbed:
        raise DataError(f"{row.place}: perturbed_answer needs {expected.num_perturbed} texts")
    return TofuRow(
        question=_text(value, "question", row.place),
        answer=_text(value, "answer", row.place),
        paraphrased_answer=_text(value, "paraphrased_answer", row.place) if expected.has_paraphrase else None,
        perturbed_answers=tuple(
            _text({"perturbed_answer": part}, "perturbed_answer", row.place) for part in wrong
        ),
        paraphrased_question=(
            _text(value, "paraphrased_question", row.place) if expected.has_paraphrase else None
        ),
    )


def _text(value: dict[object, object], field: str, place: str) -> str:
    text = value.get(field)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: {field} must be a text, got {text!r:.40}")
    return text


def _check_part_of_full(part: Sequence[TofuRow], full: Sequence[TofuRow], start: int, name: str) -> None:
    for index, row in enumerate(part):
        if _squeezed(row.question) != _squeezed(full[start + index].question):
            raise DataError(
                f"TOFU: row {index} of {name} is not row {start + index} of full",
                hint="the files must be of one release and in their original order",
            )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _deviations(rows: dict[str, tuple[TofuRow, ...]]) -> tuple[str, ...]:
    return tuple(
        f"{name}: the texts differ in places from the release this package was checked with"
        for name, part in rows.items()
        if not _content_hash(part).startswith(_FILES[name].content)
    )


def _content_hash(rows: Sequence[TofuRow]) -> str:
    lines = (
        json.dumps([row.question, row.answer, row.paraphrased_answer, *row.perturbed_answers]) for row in rows
    )
    return _hash("\n".join(lines))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
