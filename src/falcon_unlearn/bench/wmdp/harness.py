"""Run the same tasks through lm-evaluation-harness on the model in memory.

Local data: the task files of the installed harness are included and only their data set is replaced, so that
its own prompts, token borders and windows are used. Hub data: its tasks by name. Response caches are never
used: they are keyed by the question, not by the weights.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from falcon_unlearn.bench.wmdp.data import Question, QuestionSet
from falcon_unlearn.bench.wmdp.native import LETTERS, ChoiceScore, describe
from falcon_unlearn.bench.wmdp.pages import PageSet
from falcon_unlearn.bench.wmdp.perplexity import PageScore, count_words
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.models.access import LoadedModel

Style = Literal["letters", "cloze"]
_ROW = "falcon_row"
"""Column that carries the position of a question through the harness."""


@dataclass(frozen=True)
class HarnessSettings:
    """Hold what scores depend on besides the questions."""

    max_length: int
    prefix_token_id: int
    batch_size: int = 8


@dataclass(frozen=True)
class HarnessTask:
    """Hold one task: a file of the harness with its data set replaced, or its name on the hub."""

    name: str
    include: str
    """Task file below the task folder of the harness."""
    rows: tuple[dict[str, Any], ...] = ()
    shots: tuple[dict[str, Any], ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[int, ...] = ()
    """Hub tasks only: rows of the data set to ask."""
    num_shots: int = 0


def harness_choices(
    loaded: LoadedModel,
    questions: QuestionSet,
    settings: HarnessSettings,
    *,
    style: Style = "letters",
    num_shots: int = 0,
) -> tuple[list[ChoiceScore], dict[str, str]]:
    """Score questions through the harness.

    Returns:
        One score per question in the order of `questions`, and the versions of harness and tasks.

    Raises:
        PrerequisiteError: the optional package is not installed.
        DataError: the harness has no task for a subject, or its hub data hold other questions.
    """
    check_installed()
    if style == "cloze" and questions.name != "mmlu":
        questions = replace(questions, from_hub=False)  # the harness has no such task
    tasks = [
        _choice_task(questions, subject, members, style, num_shots)
        for subject, members in questions.subjects.items()
    ]
    samples, versions = _run(loaded, tasks, settings, from_hub=questions.from_hub)
    scores: dict[int, ChoiceScore] = {}
    for task, members in zip(tasks, questions.subjects.values(), strict=True):
        for position, sample in enumerate(samples[task.name]):
            question = members[sample["doc"].get(_ROW, position)]
            _check_same(question, sample["doc"], task.name)
            was_cut = _was_cut(loaded, sample, settings.max_length)
            scores[question.index] = _choice_score(question, sample, style, was_cut)
    return [scores[question.index] for question in questions.questions], versions


def harness_pages(
    loaded: LoadedModel, pages: PageSet, settings: HarnessSettings
) -> tuple[list[PageScore], dict[str, str]]:
    """Score pages through the task `wikitext` of the harness; returns and errors as `harness_choices`."""
    check_installed()
    rows = tuple({"page": page.text, _ROW: row} for row, page in enumerate(pages.pages))
    name = "wikitext" if pages.from_hub else "falcon_wikitext"
    indices = tuple(page.index for page in pages.pages)
    # A training split in the included file would be looked for in the replaced data.
    changes = {"training_split": None, "validation_split": None}
    task = HarnessTask(name, "wikitext/wikitext.yaml", rows, changes=changes, samples=indices)
    samples, versions = _run(loaded, [task], settings, from_hub=pages.from_hub)
    scores = {}
    for position, sample in enumerate(samples[name]):
        page = pages.pages[sample["doc"].get(_ROW, position)]
        if sample["doc"]["page"] != page.text:
            raise DataError(f"{name}: the harness scored another page than {page.index}")
        total = float(_responses(sample)[0])
        scores[page.index] = PageScore(page.index, total, count_words(page.text), len(page.text.encode()))
    return [scores[page.index] for page in pages.pages], versions


def check_installed() -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        PrerequisiteError: it is not installed.
    """
    try:
        importlib.import_module("lm_eval.models.huggingface")
        return metadata.version("lm_eval")
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise PrerequisiteError(
            "backend: 'lm-eval' needs the optional package `lm-eval`",
            hint="pip install 'falcon-unlearn[eval]', or use backend 'native', which gives the same numbers",
        ) from error


def _choice_task(
    questions: QuestionSet, subject: str, members: Sequence[Question], style: Style, num_shots: int
) -> HarnessTask:
    """Name the task file of a subject; WMDP has no cloze task there and borrows the wording of MMLU's."""
    changes: dict[str, Any] = {}
    if questions.name == "mmlu":
        folder, ending = ("continuation", "_continuation") if style == "cloze" else ("default", "")
        include, name = f"mmlu/{folder}/mmlu_{subject}.yaml", f"mmlu_{subject}{ending}"
    elif style == "letters":
        include, name = f"wmdp/{questions.name}.yaml", questions.name
    else:
        include, name = "mmlu/continuation/_continuation_template_yaml", f"{questions.name}_cloze"
        changes["description"] = describe(subject, cloze=True)
    if num_shots == 0:
        changes["fewshot_split"] = None
    if not questions.from_hub:
        name = f"falcon_{name}"
    return HarnessTask(
        name=name,
        include=include,
        rows=_rows(members),
        shots=_rows(questions.shots_of(subject, num_shots)),
        changes=changes,
        samples=_hub_rows(questions, members),
        num_shots=num_shots,
    )


def _hub_rows(questions: QuestionSet, members: Sequence[Question]) -> tuple[int, ...]:
    """Return the rows within a subject's own split; MMLU's common split holds subject after subject."""
    return tuple(question.index - questions.offsets.get(question.subject, 0) for question in members)


def _rows(questions: Iterable[Question]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"question": q.question, "choices": list(q.choices), "answer": q.answer, _ROW: row}
        for row, q in enumerate(questions)
    )


def _run(
    loaded: LoadedModel, tasks: Sequence[HarnessTask], settings: HarnessSettings, *, from_hub: bool
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Return the logged samples by task, in the order asked, and the versions."""
    lm_eval: Any = importlib.import_module("lm_eval")
    managers: Any = importlib.import_module("lm_eval.tasks")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, _quiet(), _same_randomness():
        model = _wrap(loaded, settings)
        home = Path(managers.__file__).parent
        # Task files are named directly: an index of all tasks of the harness takes seconds to build.
        files = [home / t.include if from_hub else _write_task(Path(folder), home, t) for t in tasks]
        found = managers.TaskManager(include_defaults=False).load([str(file) for file in files])
        for task in tasks:
            found["tasks"][task.name].set_config(key="num_fewshot", value=task.num_shots)
        # `evaluate` rather than `simple_evaluate`: that one reseeds every global generator.
        outcome = lm_eval.evaluate(
            lm=model,
            task_dict=found,
            samples={task.name: list(task.samples) for task in tasks} if from_hub else None,
            bootstrap_iters=0,
            log_samples=True,
        )
    versions = {"lm-eval": metadata.version("lm_eval")}
    versions |= {f"task {name}": str(version) for name, version in sorted(outcome["versions"].items())}
    return outcome["samples"], versions


def _wrap(loaded: LoadedModel, settings: HarnessSettings) -> Any:
    hugging_face: Any = importlib.import_module("lm_eval.models.huggingface")
    return hugging_face.HFLM(
        pretrained=loaded.model,
        # The harness may give the tokenizer another padding token.
        tokenizer=copy.deepcopy(loaded.tokenizer),
        max_length=settings.max_length,
        prefix_token_id=settings.prefix_token_id,
        batch_size=settings.batch_size,
    )


def _write_task(folder: Path, home: Path, task: HarnessTask) -> Path:
    """Write data and task file of one task; parquet, whose column types cannot be guessed wrong."""
    included = home / task.include
    if not included.is_file():
        raise DataError(
            f"lm-eval has no task file {task.include}", hint="use its subject names, or backend 'native'"
        )
    files = {"test": _write_rows(folder / f"{task.name}-test.parquet", task.rows)}
    if task.shots:
        files["dev"] = _write_rows(folder / f"{task.name}-dev.parquet", task.shots)
    config = {
        "include": str(included),
        "task": task.name,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "num_fewshot": task.num_shots,
        "test_split": "test",
        **task.changes,
    }
    path = folder / f"{task.name}.yaml"
    # JSON is YAML, without the latter's many spellings of strings.
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist([dict(row) for row in rows]), str(path))
    return str(path)


def _check_same(question: Question, row: Mapping[str, Any], task: str) -> None:
    if (row["question"], tuple(row["choices"])) != (question.question, question.choices):
        raise DataError(
            f"{task}: the harness scored another question than row {question.index}",
            hint="the hub copies differ; give a local folder",
        )


def _choice_score(question: Question, sample: Mapping[str, Any], style: Style, was_cut: bool) -> ChoiceScore:
    targets = question.choices if style == "cloze" else tuple(LETTERS)
    return ChoiceScore(
        index=question.index,
        subject=question.subject,
        answer=question.answer,
        log_likelihoods=tuple(float(response[0]) for response in _responses(sample)),
        num_characters=tuple(len(text) for text in targets),
        was_cut=was_cut,
    )


def _was_cut(loaded: LoadedModel, sample: Mapping[str, Any], max_length: int) -> bool:
    """Tell whether the harness had to drop the beginning of a prompt; the last token is not fed."""
    texts = ["".join(arguments) for arguments in sample["arguments"]]
    return any(len(loaded.tokenizer.encode(text, verbose=False)) > max_length + 1 for text in texts)


def _responses(sample: Mapping[str, Any]) -> list[Any]:
    """Return the model's answer to each request; the harness repeats each request once."""
    return [repeats[0] for repeats in sample["resps"]]


@contextlib.contextmanager
def _same_randomness() -> Iterator[None]:
    """Put the global generators back, from which the harness and its loaders draw."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's progress bars off the terminal, which shows the events of this package."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
