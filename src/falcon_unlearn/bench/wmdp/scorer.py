"""One way to score questions and pages, through either backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from falcon_unlearn.bench.wmdp.data import QuestionSet
from falcon_unlearn.bench.wmdp.harness import (
    HarnessSettings,
    check_installed,
    harness_choices,
    harness_pages,
)
from falcon_unlearn.bench.wmdp.native import ChoiceScore, Report, score_cloze, score_letters
from falcon_unlearn.bench.wmdp.pages import PageSet
from falcon_unlearn.bench.wmdp.perplexity import PageScore, score_pages
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import EventSink, Progress, StageStarted
from falcon_unlearn.models.access import LoadedModel

Backend = Literal["native", "lm-eval"]
STAGE = "evaluate"


@dataclass
class Scorer:
    """Score with the native scorer or with lm-evaluation-harness; both give the same numbers."""

    loaded: LoadedModel
    subject: Subject
    backend: Backend
    max_length: int
    prefix_token_id: int
    sink: EventSink
    versions: dict[str, str] = field(default_factory=dict)
    """Backend, and versions of harness and tasks as they are used."""

    def __post_init__(self) -> None:
        """Refuse an unknown or missing backend before any work.

        Raises:
            UsageError: an unknown backend.
            PrerequisiteError: lm-evaluation-harness is asked for and not installed.
        """
        if self.backend not in ("native", "lm-eval"):
            raise UsageError(f"backend: got {self.backend!r}", hint="allowed: native, lm-eval")
        if self.backend == "lm-eval":
            check_installed()
        self.versions["backend"] = self.backend

    def letters(self, questions: QuestionSet, num_shots: int) -> list[ChoiceScore]:
        """Score the letters of the options."""
        report = self._announce(questions.name, f"{len(questions.questions):,} questions by letter")
        if self.backend == "native":
            return score_letters(
                self.subject, questions, max_length=self.max_length, num_shots=num_shots, report=report
            )
        scores, versions = harness_choices(self.loaded, questions, self._harness, num_shots=num_shots)
        self.versions |= versions
        return scores

    def cloze(self, questions: QuestionSet) -> list[ChoiceScore]:
        """Score the texts of the options."""
        report = self._announce(questions.name, f"{len(questions.questions):,} questions by option text")
        if self.backend == "native":
            return score_cloze(self.subject, questions, max_length=self.max_length, report=report)
        scores, versions = harness_choices(self.loaded, questions, self._harness, style="cloze")
        self.versions |= versions
        return scores

    def pages(self, pages: PageSet) -> list[PageScore]:
        """Score whole pages."""
        report = self._announce("wikitext", f"{len(pages.pages)} pages")
        if self.backend == "native":
            return score_pages(
                self.subject,
                pages.pages,
                max_length=self.max_length,
                prefix_token_id=self.prefix_token_id,
                report=report,
            )
        scores, versions = harness_pages(self.loaded, pages, self._harness)
        self.versions |= versions
        return scores

    @property
    def _harness(self) -> HarnessSettings:
        return HarnessSettings(self.max_length, self.prefix_token_id)

    def _announce(self, task: str, what: str) -> Report:
        self.sink(StageStarted(stage=STAGE, message=f"{task}: {what}"))
        return _reporter(self.sink, task)


def _reporter(sink: EventSink, task: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        sink(Progress(stage=STAGE, done=done, total=total, message=task))

    return report
