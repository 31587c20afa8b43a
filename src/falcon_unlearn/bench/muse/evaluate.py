"""Evaluate one model on MUSE: C1 to C4, with intervals and a per-sample log. C5 and C6 are in `curves`.

ROUGE is a share here; the MUSE paper prints it times 100. PrivLeak is in percent.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from falcon_unlearn.bench.muse.criteria import (
    AnswerScore,
    VerbatimScore,
    knowledge_scores,
    text_probabilities,
    verbatim_scores,
)
from falcon_unlearn.bench.muse.data import MuseData
from falcon_unlearn.bench.muse.log import (
    Log,
    knowledge_entries,
    membership_entries,
    probability_entry,
    verbatim_entries,
)
from falcon_unlearn.bench.muse.privacy import (
    MIN_K,
    PrivacyReference,
    auc_estimate,
    membership_scores,
    membership_texts,
    privleak_estimate,
)
from falcon_unlearn.bench.muse.small import plain_ids, training_chunks
from falcon_unlearn.bench.muse.verbatim import Locator
from falcon_unlearn.bench.records import BenchMetric, BenchResult
from falcon_unlearn.config.paths import public_name
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import EventSink, StageFinished, StageStarted, ignore_events
from falcon_unlearn.linalg.intervals import Estimate, bootstrap_interval
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.runs import capture_environment
from falcon_unlearn.runs.memory import peak_memory_bytes

Role = Literal["base", "target", "retain", "retain_replicate", "unlearned", "other"]
Reference = PrivacyReference | Literal["no reference"]

NO_REFERENCE: Literal["no reference"] = "no reference"
UTILITY_TEXTS = 100
"""Texts of retain2 whose probability is averaged, drawn at random where there are more."""


@dataclass(frozen=True)
class MuseSettings:
    """Set the evaluation; the defaults follow open-unlearning."""

    stemmer: bool = True
    """ROUGE with the Porter stemmer, as open-unlearning; the original MUSE code does without."""
    min_k: float = MIN_K
    batch_tokens: int = 8192
    """Tokens per forward pass or generated batch, padding included."""
    resamples: int = 1000
    seed: int = 0
    """Of the bootstrap and of the drawn texts; models compare only under the same one."""


def evaluate_muse(
    loaded: LoadedModel,
    data: MuseData,
    settings: MuseSettings | None = None,
    *,
    reference: Reference | None = None,
    role: Role = "other",
    label: str = "",
    method: str = "",
    seed: int | None = None,
    sink: EventSink = ignore_events,
) -> tuple[BenchResult, Log]:
    """Measure C1 to C4.

    Args:
        loaded: The model.
        data: MUSE, or a tier of it from `small_muse`.
        settings: How.
        reference: What the retrained model scores on the membership texts, or `no reference` to go without
            PrivLeak: for the retrained model itself, and where there is none.
        role: What the model is.
        label: Row name.
        method: Unlearning method, if any.
        seed: Of the training or unlearning, if any.
        sink: Receives the stages.

    Returns:
        The record, and the log in the layout of open-unlearning.

    Raises:
        UsageError: No reference was given.
        DataError: Texts are absent, too long for the model, or not those of the reference.
        NumericalError: The model's outputs are not finite.
    """
    if reference is None:
        raise UsageError(
            "PrivLeak needs the retrained model as its zero, got no reference",
            hint="pass read_reference(LOG of the retrained model), or 'no reference' to leave PrivLeak out; "
            "an AUC of 0.5 is not a substitute, since forget and holdout texts differ",
        )
    subject = Subject(loaded.model, loaded.tokenizer, (settings or MuseSettings()).batch_tokens)
    run = _Evaluation(subject, data, settings or MuseSettings(), sink)
    run.verbatim()
    run.knowledge("forget")
    run.membership(reference)
    run.knowledge("retain")
    run.utility()
    environment = capture_environment(str(loaded.model.device), torch.get_num_threads())
    result = BenchResult(
        benchmark="muse",
        setting=run.setting,
        role=role,
        label=label or role,
        method=method,
        seed=seed,
        model=public_name(loaded.name),
        metrics=run.metrics,
        forget_axis="verbmem_rouge" if data.verbatim else "min_k_auc",
        utility_axis=run.utility_axis,
        notes=[*data.notes, *run.notes],
        data=dict(data.files),
        seconds=run.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        versions=environment.packages,
        hardware=environment.processor,
    )
    return result, run.log


class _Evaluation:
    """Collect metrics, log and times of one model."""

    def __init__(self, subject: Subject, data: MuseData, settings: MuseSettings, sink: EventSink) -> None:
        self.subject, self.data, self.settings, self.sink = subject, data, settings, sink
        self.metrics: list[BenchMetric] = []
        self.log: Log = {}
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.setting = dict(data.setting) | {
            "stemmer": "on" if settings.stemmer else "off",
            "evaluation_seed": str(settings.seed),
        }

    @property
    def utility_axis(self) -> str:
        """KnowMem on retain questions where it could be measured, else the probability of retain2 text."""
        known = next(metric for metric in self.metrics if metric.name == "knowmem_retain_rouge")
        return "retain2_probability" if known.value is None else known.name

    def verbatim(self) -> None:
        """Measure C1."""
        started = self._start("VerbMem")
        samples = self.data.verbatim
        self.setting["verbmem_samples"] = str(len(samples))
        scores: list[VerbatimScore] = []
        if samples:
            locator = Locator(self.data.require("raw/forget"))
            scores = verbatim_scores(self.subject, samples, locator, use_stemmer=self.settings.stemmer)
        if scores:
            self.log |= verbatim_entries(scores)
        absent = self.data.missing.get("verbmem/forget", "there are no samples")
        values: Mapping[str, list[float]] = {
            "verbmem_rouge": [score.generated.rouge.rouge_l_f1 for score in scores],
            "verbmem_exact_memorisation": [score.exact_memorisation for score in scores],
            "verbmem_extraction_strength": [score.extraction_strength for score in scores],
        }
        for name, column in values.items():
            self._mean(name, column, "retain model", absent)
        self._finish("verbmem", started)

    def knowledge(self, side: Literal["forget", "retain"]) -> None:
        """Measure C2 or C4 by questions."""
        started = self._start(f"KnowMem {side}")
        name = f"knowmem/{side}_qa"
        questions = self.data.questions.get(name, ())
        shots = self.data.questions.get(f"{name}_icl", ())
        if questions and not shots:
            self.notes.append(f"{name}: the shots are absent, so the questions were asked without any.")
        self.setting[f"knowmem_{side}"] = f"{len(questions)} questions, {len(shots)} shots"
        scores = knowledge_scores(self.subject, questions, shots, use_stemmer=self.settings.stemmer)
        if scores:
            self.log |= knowledge_entries(side, scores)
        reason = self.data.missing.get(name, "none of its questions is about these articles")
        self._knowledge_metrics(side, scores, reason)
        self._finish(f"knowmem_{side}", started)

    def _knowledge_metrics(
        self, side: Literal["forget", "retain"], scores: Sequence[AnswerScore], absent: str
    ) -> None:
        desired: Literal["higher", "retain model"] = "higher" if side == "retain" else "retain model"
        reason = f"Cannot be measured here: {absent}."
        rouge = [score.generated.rouge.rouge_l_f1 for score in scores]
        self._mean(f"knowmem_{side}_rouge", rouge, desired, reason)
        values = [score.mean_log_probability for score in scores]
        self._mean(f"knowmem_{side}_answer_log_probability", values, desired, reason)

    def membership(self, reference: Reference) -> None:
        """Measure C3."""
        started = self._start("PrivLeak")
        settings = self.settings
        texts = membership_texts(self.subject, self.data, seed=settings.seed)
        scores = membership_scores(self.subject, texts, share=settings.min_k)
        self.setting |= {"membership": texts.description, "min_k": f"{settings.min_k:g}"}
        estimate = auc_estimate(scores, texts, self._generator("auc"), settings.resamples)
        self._add("min_k_auc", estimate, "retain model", len(texts.forget))
        self.log |= membership_entries(scores, texts.digest)
        if isinstance(reference, str):
            note = "No model that never saw the forget set was given as reference."
            self.metrics.append(BenchMetric(name="privleak", value=None, desired="retain model", note=note))
            self.log["privleak"] = {"agg_value": None}
        else:
            estimate = privleak_estimate(
                scores, reference, texts, self._generator("privleak"), settings.resamples
            )
            note = "" if reference.forget else "The interval leaves out the error of the reference."
            self._add("privleak", estimate, "retain model", len(texts.forget), note)
            self.log["privleak"] = {"agg_value": estimate.value}
        self._finish("privleak", started)

    def utility(self) -> None:
        """Measure the probability of retain2 text, the part of C4 that needs no questions."""
        started = self._start("retain2 text")
        source, texts = utility_texts(self.subject, self.data, seed=self.settings.seed)
        values = text_probabilities(self.subject, texts) if texts else []
        self.setting["retain2_texts"] = f"{len(texts)} of {source}"
        if values:
            self.log["retain2_Prob"] = probability_entry([math.log(value) for value in values])
        self._mean(
            "retain2_probability", values, "higher", "Neither raw/retain2 nor privleak/retain is there."
        )
        self._finish("retain2_probability", started)

    def _mean(
        self, name: str, values: Sequence[float], desired: Literal["higher", "retain model"], absent: str
    ) -> None:
        if not values:
            self.metrics.append(BenchMetric(name=name, value=None, desired=desired, note=absent))
            return
        estimate = bootstrap_interval(
            values, generator=self._generator(name), num_resamples=self.settings.resamples
        )
        self._add(name, estimate, desired, len(values))

    def _add(
        self,
        name: str,
        estimate: Estimate,
        desired: Literal["higher", "retain model"],
        num_items: int,
        note: str = "",
    ) -> None:
        self.metrics.append(
            BenchMetric(
                name=name,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                interval="bootstrap",
                num_items=num_items,
                desired=desired,
                note=note,
            )
        )

    def _generator(self, name: str) -> np.random.Generator:
        # One stream for each metric, so that leaving one out does not move the intervals of the others.
        return np.random.default_rng([self.settings.seed, *name.encode()])

    def _start(self, what: str) -> float:
        self.sink(StageStarted(stage="evaluate", message=f"MUSE: {what}"))
        return time.perf_counter()

    def _finish(self, name: str, started: float) -> None:
        self.seconds[name] = time.perf_counter() - started
        self.sink(StageFinished(stage="evaluate", seconds=self.seconds[name]))


def utility_texts(subject: Subject, data: MuseData, *, seed: int) -> tuple[str, list[tuple[int, ...]]]:
    """Return the source of retain2 text with its training chunks, or else its whole PrivLeak texts."""
    if "raw/retain2" in data.texts:
        name = "raw/retain2"
        texts: list[tuple[int, ...]] = [
            chunk.input_ids for chunk in training_chunks(subject, data.texts[name])
        ]
    else:
        name = "privleak/retain"
        prefix = tuple(subject.encode(""))
        texts = [
            (*prefix, *plain_ids(subject, text))[: subject.maximum_tokens]
            for text in data.texts.get(name, ())
        ]
    chosen = random.Random(f"{seed}:utility").sample(range(len(texts)), min(UTILITY_TEXTS, len(texts)))
    return name, [texts[at] for at in sorted(chosen)]
