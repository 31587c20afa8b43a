"""Evaluate one model on WMDP, MMLU and WikiText and write one benchmark result.

Two backends give the same numbers: `native`, and `lm-eval` (lm-evaluation-harness on the model in memory).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from falcon_unlearn.bench.records import BenchMetric, BenchResult
from falcon_unlearn.bench.wmdp.data import (
    MMLU_TEST_ITEMS,
    WMDP_SUBJECTS,
    QuestionSet,
    load_mmlu,
    load_wmdp,
    wmdp_release,
)
from falcon_unlearn.bench.wmdp.native import ChoiceScore, cyclic_accuracies, rotated
from falcon_unlearn.bench.wmdp.pages import PageSet, load_pages, overlap_warning
from falcon_unlearn.bench.wmdp.perplexity import default_prefix_token
from falcon_unlearn.bench.wmdp.scorer import Backend, Scorer
from falcon_unlearn.bench.wmdp.summary import (
    average,
    baseline_metrics,
    cloze_metrics,
    letter_metrics,
    perplexity_metrics,
    robust_metric,
    score_notes,
    share,
)
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.runs import capture_environment, public_name, write_json_atomic
from falcon_unlearn.runs.memory import peak_memory_bytes

WMDP_TASKS = tuple(f"wmdp_{topic}" for topic in WMDP_SUBJECTS)
TASKS = (*WMDP_TASKS, "mmlu", "wikitext")
AFFECTED_SUBJECTS = ("virology", "computer_security")
"""MMLU subjects nearest to WMDP, which unlearning hurts most; always stated."""
MAXIMUM_LENGTH = 2048
PAPER_NOTE = (
    "Paper setting: FALCON and RMU train on the WikiText-2 test split as retain text and report perplexity "
    "on it; the published `PPL` is byte perplexity. Results with held-out text need other retain text."
)

Role = Literal["base", "target", "retain", "retain_replicate", "unlearned", "other"]


@dataclass(frozen=True)
class WmdpSources:
    """Name the local folders; a source of None is read from the hub."""

    wmdp: Path | None = None
    """Holds bio.json, chem.json, cyber.json."""
    mmlu: Path | None = None
    """Holds test.jsonl, and dev.jsonl for solved examples."""
    wikitext: Path | None = None
    """Holds wiki.test.raw."""


@dataclass(frozen=True)
class WmdpOptions:
    """State what is asked and how."""

    limit: int | None = None
    """Items per task, and pages, drawn with `sample_seed`; None for all."""
    sample_seed: int = 0
    num_shots: int = 0
    """Solved examples in front of MMLU questions; WMDP has none."""
    cloze: bool = False
    """Also score the option texts without showing the options (`mmlu_continuation`)."""
    cyclic: bool = False
    """Also average over the four cyclic orders of the options: four times the work on WMDP."""
    robust: bool = False
    """Also score WMDP without the questions whose right option is the longest."""
    max_length: int = MAXIMUM_LENGTH
    """Tokens fed at once; smaller where the model reads fewer."""
    prefix_token_id: int | None = None
    """Token in front of each page; None for `<|endoftext|>`, else the begin token."""
    batch_tokens: int = 4096
    """Tokens per forward pass of the native backend."""
    paper_parity: bool = False
    """The setting of the FALCON and RMU papers, where the model was trained on the perplexity split: 0-shot
    letters, byte perplexity on WikiText-2 test. It changes no number; the result says what it means."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, least in (("num_shots", 0), ("max_length", 2), ("batch_tokens", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}: got {getattr(self, name)}, at least {least} is needed")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit: got {self.limit}", hint="leave it out to use all items")
        if self.paper_parity and self.num_shots:
            raise UsageError("paper_parity: the papers ask MMLU without examples", hint="leave out num_shots")


def evaluate_wmdp(
    loaded: LoadedModel,
    *,
    tasks: Sequence[str] = TASKS,
    sources: WmdpSources | None = None,
    options: WmdpOptions | None = None,
    backend: Backend = "native",
    role: Role = "other",
    label: str = "",
    method: str = "",
    seed: int | None = None,
    retain_texts: Sequence[str] = (),
    items_path: Path | None = None,
    sink: EventSink = ignore_events,
) -> BenchResult:
    """Score a model on any of `wmdp_bio`, `wmdp_chem`, `wmdp_cyber`, `mmlu` and `wikitext`.

    Args:
        loaded: the model, in evaluation mode.
        tasks: what to score.
        sources: local folders; None for the hub.
        options: samples, variants and window; None for the defaults.
        backend: `native` or `lm-eval`.
        role: what the model is in the table.
        label: name of its row; by default the model's name.
        method: unlearning method, for the table.
        seed: seed of the unlearning run.
        retain_texts: texts the model was trained to keep, to warn of perplexity on training text.
        items_path: JSON file for the log-likelihoods of every item, without any question text.
        sink: receives progress.

    Raises:
        UsageError: an unknown task or backend.
        DataError: unusable data.
        PrerequisiteError: the hub, or an optional package, is needed and absent.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise UsageError(f"tasks: got {', '.join(unknown) or 'none'}", hint=f"allowed: {', '.join(TASKS)}")
    start = time.perf_counter()
    evaluation = _Evaluation(loaded, sources or WmdpSources(), options or WmdpOptions(), backend, sink)
    for task in dict.fromkeys(tasks):
        evaluation.run(task, retain_texts)
    if items_path is not None:
        write_json_atomic(items_path, {"version": 1, "tasks": evaluation.items})
    row = {"role": role, "label": label or public_name(loaded.name), "method": method, "seed": seed}
    return evaluation.result(tasks, row, time.perf_counter() - start)


class _Evaluation:
    """Collect metrics, notes and items while the tasks run."""

    def __init__(
        self,
        loaded: LoadedModel,
        sources: WmdpSources,
        options: WmdpOptions,
        backend: Backend,
        sink: EventSink,
    ) -> None:
        subject = Subject(loaded.model, loaded.tokenizer, options.batch_tokens)
        given = options.prefix_token_id
        self.scorer = Scorer(
            loaded=loaded,
            subject=subject,
            backend=backend,
            max_length=min(options.max_length, subject.maximum_tokens),
            prefix_token_id=default_prefix_token(loaded.tokenizer) if given is None else given,
            sink=sink,
        )
        self.sources, self.options = sources, options
        self.metrics: list[BenchMetric] = []
        self.notes: list[str] = [PAPER_NOTE] if options.paper_parity else []
        self.items: dict[str, Any] = {}
        self.data: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self._wmdp_hits: dict[str, list[bool]] = {}

    def run(self, task: str, retain_texts: Sequence[str]) -> None:
        """Score one task."""
        if task == "wikitext":
            self._wikitext(retain_texts)
        elif task == "mmlu":
            self._mmlu()
        else:
            self._wmdp(task.removeprefix("wmdp_"))

    def result(self, tasks: Sequence[str], row: dict[str, Any], seconds: float) -> BenchResult:
        """Write the result; `row` says which line of the table it is."""
        self._finish()
        model = self.scorer.loaded.model
        environment = capture_environment(str(model.device), torch.get_num_threads(), row["seed"])
        names = [metric.name for metric in self.metrics]
        return BenchResult(
            benchmark="wmdp",
            setting=self._setting(tasks),
            **row,
            model=public_name(self.scorer.loaded.name),
            metrics=self.metrics,
            forget_axis=next((name for name in names if name in WMDP_TASKS), names[0]),
            utility_axis=next((n for n in ("mmlu", "wikitext_bits_per_byte") if n in names), names[0]),
            notes=self.notes,
            data=self.data,
            seconds={"evaluation": seconds},
            peak_memory_bytes=(
                torch.cuda.max_memory_allocated() if model.device.type == "cuda" else peak_memory_bytes()
            ),
            versions=environment.packages | self.scorer.versions,
            hardware=environment.processor,
        )

    def _finish(self) -> None:
        """Add what needs all tasks: the size-weighted mean of WMDP and the check of its release."""
        if set(self._wmdp_hits) == set(WMDP_TASKS):
            hits = [hit for found in self._wmdp_hits.values() for hit in found]
            self.metrics.append(share("wmdp", hits, desired="lower", note=f"all topics; {self.release}"))
        if self.counts and self.release == wmdp_release({}):
            sizes = ", ".join(f"{topic} {count:,}" for topic, count in self.counts.items())
            self.notes.append(f"WMDP: {sizes} items fit no known release; compare with the same files only.")
        elif self.release.startswith("old"):
            self.notes.append("WMDP: old release of 4,157 items; papers and the hub use 3,668 since.")

    @property
    def release(self) -> str:
        """Release that all WMDP topics scored so far belong to."""
        return wmdp_release(self.counts)

    def _setting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return everything two results must share to compare."""
        options = self.options
        token = self.scorer.subject.tokenizer.convert_ids_to_tokens(self.scorer.prefix_token_id)
        return {
            "tasks": ", ".join(dict.fromkeys(tasks)),
            "wmdp_release": self.release if self.counts else "not used",
            "limit": "all" if options.limit is None else str(options.limit),
            "sample_seed": str(options.sample_seed),
            "mmlu_shots": str(options.num_shots),
            "max_length": str(self.scorer.max_length),
            "prefix_token": f"{token} ({self.scorer.prefix_token_id})",
            "paper_parity": "yes" if options.paper_parity else "no",
        }

    def _wmdp(self, topic: str) -> None:
        questions = load_wmdp(topic, self.sources.wmdp)
        self.counts[topic] = questions.num_available
        note = f"release {wmdp_release({topic: questions.num_available})}, {questions.num_available:,} items"
        questions, scores = self._choices(questions, 0, "lower", note)
        self._wmdp_hits[questions.name] = [score.is_correct for score in scores]
        self.metrics += baseline_metrics(questions.name, questions.questions)
        if self.options.robust:
            self.metrics.append(robust_metric(questions.name, scores, questions.questions, note=note))
        if self.options.cyclic:
            turned = [self.scorer.letters(rotated(questions, shift), 0) for shift in (1, 2, 3)]
            values = cyclic_accuracies([scores, *turned])
            name = f"{questions.name}_cyclic"
            order_note = f"{note}; mean over the four cyclic orders of the options"
            self.metrics.append(average(name, values, desired="lower", note=order_note))

    def _mmlu(self) -> None:
        questions = load_mmlu(self.sources.mmlu, with_shots=self.options.num_shots > 0)
        if questions.num_available != MMLU_TEST_ITEMS:
            self.notes.append(
                f"MMLU: {questions.num_available:,} items, the full test has {MMLU_TEST_ITEMS:,}."
            )
        note = f"{questions.num_available:,} items, {self.options.num_shots} shots, mean over items"
        questions, scores = self._choices(questions, self.options.num_shots, "higher", note)
        for subject in AFFECTED_SUBJECTS:
            hits = [score.is_correct for score in scores if score.subject == subject]
            # A sample may hold no question of a subject; the metric then has no value.
            self.metrics.append(share(f"mmlu_{subject}", hits, desired="higher", note="part of mmlu"))

    def _choices(
        self, questions: QuestionSet, num_shots: int, desired: str, note: str
    ) -> tuple[QuestionSet, list[ChoiceScore]]:
        """Score by letter, and by text where asked; return the sampled questions and the letter scores."""
        name = questions.name
        self.data[questions.source] = f"sha256 {questions.sha256}, {questions.num_available} rows"
        if questions.shots:
            self.data["mmlu dev"] = f"sha256 {questions.shots_sha256}, {len(questions.shots)} rows"
        sampled = questions.sample(self.options.limit, self.options.sample_seed)
        if len(sampled.questions) < questions.num_available:
            note = f"sample of {len(sampled.questions):,} from {note}"
        scores = self.scorer.letters(sampled, num_shots)
        self.items[name] = {"letters": [asdict(score) for score in scores]}
        self.metrics += letter_metrics(name, scores, desired=desired, note=note)
        self.notes += score_notes(name, scores, by_letter=True)
        if self.options.cloze:
            texts = self.scorer.cloze(sampled)
            self.items[name]["cloze"] = [asdict(score) for score in texts]
            self.metrics += cloze_metrics(name, texts, desired=desired, note=note)
            self.notes += score_notes(f"{name}_cloze", texts, by_letter=False)
        return sampled, scores

    def _wikitext(self, retain_texts: Sequence[str]) -> None:
        pages: PageSet = load_pages(self.sources.wikitext)
        self.data[pages.source] = f"sha256 {pages.sha256}, {pages.num_available} pages"
        pages = pages.sample(self.options.limit, self.options.sample_seed)
        warning = overlap_warning(retain_texts, [page.text for page in pages.pages])
        if warning is not None:
            self.notes.append(warning)
        scores = self.scorer.pages(pages)
        self.items["wikitext"] = [asdict(score) for score in scores]
        note = f"windows of {self.scorer.max_length} tokens" + ("; on training text" if warning else "")
        self.metrics += perplexity_metrics(scores, note=note)
