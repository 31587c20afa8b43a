"""Run every measurement of an evaluation and collect the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from falcon_unlearn.config.evaluation import EvaluationSettings
from falcon_unlearn.evaluation.answers import has_answer
from falcon_unlearn.evaluation.measures import (
    Context,
    HeldOutCorpus,
    Kind,
    Label,
    Texts,
    measure_answers,
    measure_choice,
    measure_divergence,
    measure_generation,
    measure_perplexity,
)
from falcon_unlearn.evaluation.sets import EvaluationSet, TextItem, load_sets
from falcon_unlearn.evaluation.streamed import NO_GENERATION
from falcon_unlearn.evaluation.subject import OriginalWeights, Subject
from falcon_unlearn.events import EventSink, Progress, ignore_events
from falcon_unlearn.models.arithmetic import fast_arithmetic
from falcon_unlearn.models.head import contiguous_head_input
from falcon_unlearn.results import EvaluationResult, SetResult

KeepSet = Callable[[str, Callable[[], SetResult]], SetResult]
"""Receives the name of a measurement and the measurement."""
_NO_ORIGINAL = "there is no original model to compare with"


@dataclass(frozen=True)
class _Job:
    message: str
    run: Callable[[], SetResult]


def evaluate(
    model: Any,
    tokenizer: Any,
    settings: EvaluationSettings,
    *,
    held_out: Sequence[HeldOutCorpus] = (),
    label: Label,
    model_name: str,
    seed: int,
    original: OriginalWeights | None = None,
    sets: Sequence[EvaluationSet] | None = None,
    sink: EventSink = ignore_events,
    keep: KeepSet | None = None,
    subject: Subject | None = None,
) -> EvaluationResult:
    """Measure `model` on all sets and on the held-out share of the corpora.

    Deterministic for a given seed, which decides only the samples of limited sets and the bootstrap. The
    model is put into evaluation mode meanwhile.

    Args:
        model: Hugging Face causal language model.
        tokenizer: its tokenizer.
        settings: sets, formats and intervals.
        held_out: corpora for perplexity, divergence and answers, if `settings.held_out`.
        label: when the measurement takes place; before the change the divergence is 0 by definition.
        model_name: name for the record, never a local path.
        seed: see above.
        original: context manager factory that swaps the original tensors into `model`; None: no divergence.
        sets: sets loaded before by `load_sets`; None loads them now.
        sink: receives one `Progress` event per measurement.
        keep: gives back a set measured by an earlier process, or measures and keeps it; None measures all.
        subject: runs the model; None: all of it in memory.

    Raises:
        DataError: an evaluation file is unusable or a text is too long.
        NumericalError: the model's outputs are not finite.
    """
    started = time.perf_counter()
    subject = subject or Subject(model, tokenizer, settings.batch_tokens)
    context = Context(subject, settings, label, seed, original)
    loaded = load_sets(settings, seed=seed) if sets is None else sets
    jobs: list[_Job] = []
    skipped: list[str] = []
    for entry in loaded:
        _plan_set(context, entry, jobs, skipped)
    if settings.held_out:
        for corpus in held_out:
            _plan_corpus(context, corpus, jobs, skipped)
    else:
        skipped.append("held-out texts: evaluation.held_out is false")
    results = []
    with evaluation_mode(model) as dtype, contiguous_head_input(model):
        for done, job in enumerate(jobs):
            sink(Progress(stage="evaluate", done=done, total=len(jobs), message=job.message))
            results.append(job.run() if keep is None else keep(f"{done}: {job.message}", job.run))
    sink(Progress(stage="evaluate", done=len(jobs), total=len(jobs), message="done"))
    return EvaluationResult(
        label=label,
        model=model_name,
        sets=results,
        skipped=skipped,
        seconds=time.perf_counter() - started,
        compute_dtype=subject.compute_dtype or str(dtype).removeprefix("torch."),
    )


def _plan_set(context: Context, entry: EvaluationSet, jobs: list[_Job], skipped: list[str]) -> None:
    name, kind = entry.settings.name, entry.settings.kind
    if kind == "choice":
        jobs.append(_Job(f"{name}: questions", lambda: measure_choice(context, entry)))
        # A set that says so itself is not asked by letter on purpose, which needs no remark.
        if not context.settings.letter and entry.settings.letter is None:
            skipped.append(f"{name}, accuracy_letter: evaluation.letter is false")
    elif kind == "generation" and not context.subject.generates:
        skipped.append(f"{name}: {NO_GENERATION}")
    elif kind == "generation":
        jobs.append(_Job(f"{name}: free answers", lambda: measure_generation(context, entry)))
    else:
        items = [item for item in entry.items if isinstance(item, TextItem)]
        texts = Texts(
            name,
            entry.settings.role,
            [item.id for item in items],
            [item.cluster for item in items],
            [tuple(context.subject.encode(item.text)) for item in items],
        )
        _plan_texts(context, texts, kind, jobs, skipped)


def _plan_corpus(context: Context, corpus: HeldOutCorpus, jobs: list[_Job], skipped: list[str]) -> None:
    if not corpus.texts:
        skipped.append(f"{corpus.name}, held-out texts: the corpus has none")
        return
    ids = [f"held-out-{number}" for number in range(1, len(corpus.texts) + 1)]
    tokens = [text.input_ids for text in corpus.texts]
    texts = Texts(f"{corpus.name} (held out)", corpus.role, ids, [""] * len(ids), tokens)
    _plan_texts(context, texts, "perplexity", jobs, skipped)
    _plan_texts(context, texts, "divergence", jobs, skipped)
    if not context.subject.generates:
        skipped.append(f"{texts.name}, answer_probability and rouge_l: {NO_GENERATION}")
    elif any(has_answer(text) for text in corpus.texts):
        jobs.append(_Job(f"{texts.name}: answers", lambda: measure_answers(context, corpus, texts.name)))
    else:
        skipped.append(f"{texts.name}, answer_probability and rouge_l: the texts have no answers")


def _plan_texts(context: Context, texts: Texts, kind: Kind, jobs: list[_Job], skipped: list[str]) -> None:
    if kind == "perplexity":
        jobs.append(_Job(f"{texts.name}: perplexity", lambda: measure_perplexity(context, texts)))
    elif context.original is None and context.label != "before":
        skipped.append(f"{texts.name}, divergence: {_NO_ORIGINAL}")
    else:
        jobs.append(_Job(f"{texts.name}: divergence", lambda: measure_divergence(context, texts)))


@contextmanager
def evaluation_mode(model: Any) -> Iterator[torch.dtype]:
    """Switch dropout off, and compute in the dtype that is fast here, while the context is open."""
    was_training = bool(model.training)
    model.eval()
    try:
        with fast_arithmetic(model) as dtype:
            yield dtype
    finally:
        if was_training:
            model.train()
