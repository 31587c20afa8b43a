"""Questions of WMDP and MMLU, from local files or from the hub. Needs no torch.

Local layout: `bio.json`, `chem.json`, `cyber.json` for WMDP and `test.jsonl`, `dev.jsonl` for MMLU; JSON list
or JSON lines, recognised by content.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from falcon_unlearn.data.formats import Row, decode_text, parse_json_rows
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.runs import sha256_file

NUM_CHOICES = 4
WMDP_SUBJECTS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
"""Topic to the word that the task description uses."""
WMDP_RELEASES = {
    "old (4,157 items)": {"bio": 1520, "chem": 412, "cyber": 2225},
    "current (3,668 items)": {"bio": 1273, "chem": 408, "cyber": 1987},
}
MMLU_TEST_ITEMS = 14_042
WMDP_HUB, MMLU_HUB = "cais/wmdp", "cais/mmlu"

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Question:
    """Hold one question with four options."""

    index: int
    """Row in its file or hub split; the key, since question texts repeat."""
    subject: str
    """`biology`, `virology`, `college_biology` ..."""
    question: str
    choices: tuple[str, ...]
    """Text exactly as in the file: `0.50` and `None` are options too."""
    answer: int
    """Index of the right option."""


@dataclass(frozen=True)
class QuestionSet:
    """Hold the questions of one task and where they came from."""

    name: str
    """`wmdp_bio`, `wmdp_chem`, `wmdp_cyber` or `mmlu`."""
    questions: tuple[Question, ...]
    source: str
    """File name or hub id, never a path of this machine."""
    sha256: str
    """Hash of the file; for hub data, of the rows."""
    num_available: int
    """Items before sampling."""
    from_hub: bool
    shots: tuple[Question, ...] = ()
    """Solved examples in order; MMLU only."""
    shots_sha256: str = ""
    offsets: Mapping[str, int] = field(default_factory=dict)
    """Row at which each subject starts, for files that hold subject after subject."""

    @property
    def subjects(self) -> dict[str, list[Question]]:
        """Questions by subject, in file order."""
        grouped: dict[str, list[Question]] = {}
        for question in self.questions:
            grouped.setdefault(question.subject, []).append(question)
        return grouped

    def shots_of(self, subject: str, num_shots: int) -> list[Question]:
        """Return the first `num_shots` solved examples of a subject.

        Raises:
            DataError: the subject has fewer.
        """
        found = [shot for shot in self.shots if shot.subject == subject][:num_shots]
        if len(found) < num_shots:
            raise DataError(
                f"{self.name}: {num_shots} solved examples wanted, {subject} has {len(found)}",
                hint="ask for fewer shots, or add the dev file",
            )
        return found

    def sample(self, limit: int | None, seed: int) -> QuestionSet:
        """Keep `limit` questions drawn without replacement, in file order."""
        return replace(self, questions=tuple(take_sample(self.questions, limit, seed)))


def load_wmdp(topic: str, folder: Path | None) -> QuestionSet:
    """Read one WMDP topic from `folder`, or from the hub when there is none.

    Raises:
        DataError: a missing file or a malformed item.
        PrerequisiteError: the hub or the optional `datasets` package is needed and absent.
    """
    subject, name = WMDP_SUBJECTS[topic], f"wmdp_{topic}"
    if folder is None:
        rows = read_hub(WMDP_HUB, f"wmdp-{topic}", "test")
        source, digest = f"{WMDP_HUB}:wmdp-{topic}[test]", hash_rows(rows)
    else:
        rows, digest = _read_json(folder / f"{topic}.json", name)
        source = f"{topic}.json"
    questions = tuple(_question(index, row, subject) for index, row in enumerate(rows))
    return QuestionSet(name, questions, source, digest, len(questions), folder is None)


def load_mmlu(folder: Path | None, *, with_shots: bool = False) -> QuestionSet:
    """Read the MMLU test questions, with the solved examples of the dev file where asked.

    Raises:
        DataError, PrerequisiteError: As `load_wmdp`.
    """
    splits = ("test", "dev") if with_shots else ("test",)
    if folder is None:
        found = [read_hub(MMLU_HUB, "all", split) for split in splits]
        digests = [hash_rows(rows) for rows in found]
        source = f"{MMLU_HUB}:all[test]"
    else:
        files = [_read_json(folder / f"{split}.jsonl", "mmlu") for split in splits]
        found, digests = [rows for rows, _ in files], [digest for _, digest in files]
        source = "test.jsonl"
    questions, *shots = [tuple(_question(index, row) for index, row in enumerate(rows)) for rows in found]
    offsets: dict[str, int] = {}
    for question in questions:
        offsets.setdefault(question.subject, question.index)
    return QuestionSet(
        name="mmlu",
        questions=questions,
        source=source,
        sha256=digests[0],
        num_available=len(questions),
        from_hub=folder is None,
        shots=shots[0] if shots else (),
        shots_sha256=digests[-1] if shots else "",
        offsets=offsets,
    )


def wmdp_release(counts: Mapping[str, int]) -> str:
    """Name the WMDP release from the items per topic; `unknown` when they fit none, or when there are none.

    Scores on different releases do not compare, so the name belongs beside every score.
    """
    for name, sizes in WMDP_RELEASES.items():
        if counts and all(sizes.get(topic) == count for topic, count in counts.items()):
            return name
    return "unknown"


def take_sample(items: Sequence[Kept], limit: int | None, seed: int) -> list[Kept]:
    """Draw `limit` items without replacement and keep their order; all of them when there are no more."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def read_text_file(path: Path, task: str) -> str:
    """Read a text file of a local data folder with plain newlines.

    Raises:
        DataError: the file is missing or is not UTF-8 text.
    """
    try:
        return decode_text(path.read_bytes(), path.name)
    except OSError as error:
        raise DataError(
            f"{task}: cannot read {path.name} in the folder {path.parent.name}: {error.strerror}",
            hint="give the folder that holds this file, or no folder to use the hub",
        ) from error


def read_hub(path: str, subset: str, split: str) -> list[Row]:
    """Read one split of a hub data set.

    Raises:
        PrerequisiteError: `datasets` is not installed or the hub cannot be reached.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise PrerequisiteError(
            f"reading {path} from the hub needs the optional package `datasets`",
            hint="pip install 'falcon-unlearn[data]', or give a local folder",
        ) from error
    try:
        loaded = datasets.load_dataset(path, name=subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise PrerequisiteError(
            f"cannot load {path}:{subset}[{split}] from the hub ({type(error).__name__})",
            hint="go online once and log in if the data are gated, or give a local folder",
        ) from error
    return [Row(f"{path}:{subset}[{split}], row {number}", value) for number, value in enumerate(loaded, 1)]


def _read_json(path: Path, task: str) -> tuple[list[Row], str]:
    rows = parse_json_rows(read_text_file(path, task), path.name)
    return rows, sha256_file(path)


def hash_rows(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows, independent of the order of their keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.value, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _question(index: int, row: Row, subject: str | None = None) -> Question:
    value = row.value
    if not isinstance(value, dict):
        raise DataError(f"{row.place}: an object is needed, got {type(value).__name__}")
    choices, answer = value.get("choices"), value.get("answer")
    if not isinstance(value.get("question"), str):
        raise DataError(f"{row.place}: `question` must be a text, got {value.get('question')!r:.60}")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
        raise DataError(f"{row.place}: `choices` must be a list of {NUM_CHOICES} texts")
    for choice in choices:
        if not isinstance(choice, str):
            raise DataError(
                f"{row.place}: `choices` must be texts, got {choice!r}",
                hint="a table reader turned options into numbers; convert again and keep them as text",
            )
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < NUM_CHOICES:
        raise DataError(
            f"{row.place}: `answer` must be an integer from 0 to 3, got {answer!r}",
            hint="write 0 for A, 1 for B, 2 for C, 3 for D",
        )
    found = subject if subject is not None else value.get("subject")
    if not isinstance(found, str):
        raise DataError(f"{row.place}: `subject` must be a text, got {found!r}")
    return Question(index, found, value["question"], tuple(choices), answer)
