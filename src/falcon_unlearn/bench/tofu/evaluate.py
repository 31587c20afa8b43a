"""Evaluate one model on TOFU: a per-question log and the record of a table row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.tofu.data import TofuData, TofuRow, holdout_rows
from falcon_unlearn.bench.tofu.encoding import MAXIMUM_TOKENS, EncodedQuestion, encode_rows
from falcon_unlearn.bench.tofu.generating import greedy_answers
from falcon_unlearn.bench.tofu.gradient_norm import gradient_norms
from falcon_unlearn.bench.tofu.log import (
    Entries,
    Short,
    attack_entries,
    attack_entry,
    memorisation_entries,
    probability_entries,
    rouge_entry,
)
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.bench.tofu.statistics import answer_losses, answer_statistics
from falcon_unlearn.bench.tofu.summary import tofu_metrics
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.events import EventSink, Progress, ignore_events
from falcon_unlearn.metrics.membership import reference_score
from falcon_unlearn.metrics.open_unlearning_log import EvaluationLog
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.models.head import contiguous_head_input
from falcon_unlearn.models.text import TextEncoder
from falcon_unlearn.runs import capture_environment, public_name
from falcon_unlearn.runs.memory import peak_memory_bytes

Role = Literal["base", "target", "retain", "retain_replicate", "unlearned", "other"]
_SETS: tuple[Short, ...] = get_args(Short)


@dataclass(frozen=True)
class _Questions:
    """Hold the rows of every set and their tokens."""

    rows: dict[str, tuple[TofuRow, ...]]
    encoded: dict[str, list[EncodedQuestion]]


class _Counter:
    """Report questions finished, over all passes."""

    def __init__(self, sink: EventSink, total: int) -> None:
        self._sink, self._total = sink, total
        self._done = 0
        self.message = ""

    def __call__(self, count: int) -> None:
        self._done += count
        self._sink(Progress(stage="evaluate", done=self._done, total=self._total, message=self.message))


def evaluate_tofu(
    loaded: LoadedModel,
    data: TofuData,
    setting: TofuSetting,
    *,
    retain_log: EvaluationLog | None = None,
    sink: EventSink = ignore_events,
    batch_tokens: int = 4096,
    generate: bool = True,
    gradient_norm: bool = False,
    chat_template: bool = False,
    retain_rows: int | None = None,
    role: Role = "other",
    label: str = "",
    seed: int = 0,
) -> tuple[BenchResult, EvaluationLog]:
    """Measure what a model knows of the forget, retain, real-author and world-fact questions.

    Args:
        loaded: model and tokenizer.
        data: the files of the setting's forget split.
        setting: authors, number of retain rows, length of generations.
        retain_log: log of the retain model on the same setting, from here or from open-unlearning. Without it
            forget quality, PrivLeak and the reference attack have no value.
        sink: receives progress, in questions.
        batch_tokens: tokens per forward pass, padding included.
        generate: answer greedily, for ROUGE; without it model utility has no value either.
        gradient_norm: also run the gradient-norm attack: a backward pass per forget and holdout question.
        chat_template: word questions by the tokenizer's chat template, where it has one.
        retain_rows: leading rows of the retain set to evaluate, instead of the setting's number.
        role: part of the model in a table.
        label: row name, by default the model's public name.
        seed: of the bootstrap intervals.

    Returns:
        The record of a table row, and the log in open-unlearning's format.

    Raises:
        DataError: data of another split, a row whose tokens do not fit, or a retain log of other questions.
        NumericalError: the model's outputs are not finite.
    """
    started = time.perf_counter()
    if data.split != setting.forget:
        raise DataError(f"the setting forgets {setting.forget}, the data are those of {data.split}")
    if retain_rows is not None:
        setting = replace(setting, retain_rows=retain_rows)
    subject = Subject(loaded.model, loaded.tokenizer, batch_tokens)
    questions = _encode(subject, data, setting, chat_template=chat_template)
    with evaluation_mode(loaded.model), contiguous_head_input(loaded.model):
        entries = _measure(
            subject, questions, setting, generate=generate, gradient_norm=gradient_norm, sink=sink
        )
    _add_reference_attack(entries, retain_log)
    log = EvaluationLog(Path(f"{role}_TOFU_EVAL.json"), entries)
    metrics = tofu_metrics(log, retain_log, seed=seed)
    _add_aggregates(entries, {metric.name: metric.value for metric in metrics})
    wording = {
        "holdout_rows": str(len(questions.rows["holdout"])),
        "prompt": "chat template" if chat_template else "Question/Answer",
    }
    result = BenchResult(
        benchmark="tofu",
        setting=setting.describe() | wording,
        role=role,
        label=label or public_name(loaded.name),
        metrics=metrics,
        forget_axis="extraction_strength",
        utility_axis="model_utility",
        notes=[*setting.notes, *data.notes],
        data=dict(data.files),
        seconds={"evaluation": time.perf_counter() - started},
        **_machine(loaded, seed),
    )
    return result, log


def _machine(loaded: LoadedModel, seed: int) -> dict[str, Any]:
    """Return the fields of a record that name the model, versions and hardware."""
    environment = capture_environment(str(loaded.model.device), torch.get_num_threads(), seed)
    return {
        "model": public_name(loaded.name),
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": {"python": environment.python, **environment.packages},
        "hardware": f"{environment.processor}, {environment.threads} threads, {environment.device}",
    }


def _encode(subject: Subject, data: TofuData, setting: TofuSetting, *, chat_template: bool) -> _Questions:
    maximum_tokens = min(MAXIMUM_TOKENS, subject.maximum_tokens)
    encoder = TextEncoder(subject.tokenizer, chat_template=chat_template, maximum_tokens=maximum_tokens)
    rows = {
        "forget": data.forget,
        "retain": data.retain[: setting.retain_rows],
        "ra": data.real_authors,
        "wf": data.world_facts,
        "holdout": holdout_rows(data, setting),
    }
    return _Questions(rows, {name: encode_rows(encoder, part, name) for name, part in rows.items()})


def _measure(
    subject: Subject,
    questions: _Questions,
    setting: TofuSetting,
    *,
    generate: bool,
    gradient_norm: bool,
    sink: EventSink,
) -> Entries:
    encoded = questions.encoded
    sizes = {name: len(part) for name, part in encoded.items()}
    total = sum(sizes.values()) + sizes["forget"]
    total += sum(sizes[name] for name in _SETS) * generate
    total += (sizes["forget"] + sizes["holdout"]) * (gradient_norm and sizes["holdout"] > 0)
    counter = _Counter(sink, total)
    entries: Entries = {}
    counter.message = "forget: right answers"
    forget_answers = answer_statistics(subject, encoded["forget"], counter)
    entries |= memorisation_entries(forget_answers)
    num_greedy: dict[str, list[int]] = {}
    for name in _SETS:
        counter.message = f"{name}: all answers"
        known = forget_answers if name == "forget" else None
        losses = answer_losses(subject, encoded[name], counter, known)
        num_greedy[name] = [item.num_greedy for item in losses]
        entries |= probability_entries(name, losses)
    if encoded["holdout"]:
        counter.message = "holdout: right answers"
        holdout_answers = answer_statistics(subject, encoded["holdout"], counter)
        entries |= attack_entries(
            (forget_answers, questions.rows["forget"]), (holdout_answers, questions.rows["holdout"])
        )
    if gradient_norm and encoded["holdout"]:
        counter.message = "gradient norms"
        norms = [gradient_norms(subject.model, encoded[name], counter) for name in ("forget", "holdout")]
        entries["mia_gradnorm"] = attack_entry(*norms)
    if generate:
        for name in _SETS:
            counter.message = f"{name}: free answers"
            entries[f"{name}_Q_A_ROUGE"] = _generate(
                subject, questions, name, setting, counter, num_greedy[name]
            )
    return entries


def _generate(
    subject: Subject,
    questions: _Questions,
    name: Short,
    setting: TofuSetting,
    counter: _Counter,
    num_greedy: Sequence[int],
) -> Entries:
    encoded: Sequence[EncodedQuestion] = questions.encoded[name]
    generations = greedy_answers(
        subject,
        encoded,
        maximum_new_tokens=setting.maximum_new_tokens,
        done=counter,
        num_greedy=num_greedy,
    )
    prompts = [
        subject.tokenizer.decode(list(question.prompt), skip_special_tokens=True) for question in encoded
    ]
    return rouge_entry(questions.rows[name], prompts, generations)


def _add_reference_attack(entries: Entries, retain_log: EvaluationLog | None) -> None:
    """Add the loss minus that of the retain model, where its log holds losses of as many questions."""
    name = retain_log.find("mia_loss") if retain_log is not None else None
    own = entries.get("mia_loss")
    if retain_log is None or name is None or own is None:
        return
    sides = []
    for side in ("forget", "holdout"):
        losses = [sample["score"] for sample in own[side]["value_by_index"].values()]
        if not retain_log.has_samples(name, side):
            return
        reference = retain_log.column(name, "score", side).values
        if len(reference) != len(losses):
            return
        sides.append([reference_score(a, b) for a, b in zip(losses, reference.tolist(), strict=True)])
    entries["mia_reference"] = attack_entry(*sides)


def _add_aggregates(entries: Entries, metrics_by_name: dict[str, float | None]) -> None:
    """Add the aggregates without samples; null where they cannot be computed, never against a default."""
    for name in ("forget_quality", "model_utility", "privleak"):
        entries[name] = {"agg_value": metrics_by_name[name]}
