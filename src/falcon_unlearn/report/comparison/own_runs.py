"""Turn finished runs on own data into rows: the model before is the target, the one after competes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from falcon_unlearn.errors import DataError
from falcon_unlearn.report.compare import KNOWLEDGE_METRICS, METRIC_NAMES
from falcon_unlearn.report.comparison.seeds import usable
from falcon_unlearn.report.facts import stage_seconds
from falcon_unlearn.report.records import RunRecords
from falcon_unlearn.results import EvaluationResult, Metric, SetResult
from falcon_unlearn.results_bench import BenchMetric, BenchResult

Run = tuple[Path, RunRecords]
Headline = tuple[SetResult, Metric]

_RISES_WITH_HARM = frozenset({"perplexity", "divergence"})


def run_results(runs: Sequence[Run]) -> list[tuple[Path, BenchResult]]:
    """Return one row for the original model of every setting and one for every run.

    Runs of one method that differ in nothing but the seed share a label, so that they are averaged.

    Raises:
        DataError: a run without evaluation, or without a metric for what was to be forgotten or kept.
    """
    labels = _labels(runs)
    rows: list[tuple[Path, BenchResult]] = []
    originals: dict[str, int] = {}
    for run, label in zip(runs, labels, strict=True):
        before, after = _evaluations(run)
        setting = _setting(run, before)
        key = json.dumps(setting, sort_keys=True)
        original = _original(run, before, setting)
        if key not in originals:
            originals[key] = len(rows)
            rows.append((run[0], original))
        else:
            rows[originals[key]] = _merged(rows[originals[key]], original)
        rows.append((run[0], _changed(run, after, setting, label)))
    return rows


def _evaluations(run: Run) -> tuple[EvaluationResult, EvaluationResult]:
    folder, records = run
    if records.before is None or records.after is None:
        missing = "before" if records.before is None else "after"
        raise DataError(
            f"{folder}: holds no evaluation {missing} the change",
            hint="Repeat it with `falcon-unlearn run`; `unlearn` measures nothing.",
        )
    return records.before, records.after


def _labels(runs: Sequence[Run]) -> list[str]:
    """Name each run by its method, and by its folder too where one method was run with several recipes."""
    methods = [records.training.method for _, records in runs]
    recipes = [_recipe_hash(records) for _, records in runs]
    first: dict[tuple[str, str], str] = {}
    for (folder, _), method, recipe in zip(runs, methods, recipes, strict=True):
        first.setdefault((method, recipe), folder.resolve().name)
    counts = [sum(known == method for known, _ in first) for method in methods]
    return [
        method if count == 1 else f"{method} ({first[method, recipe]})"
        for method, recipe, count in zip(methods, recipes, counts, strict=True)
    ]


def _recipe_hash(records: RunRecords) -> str:
    values = records.recipe.model_dump(mode="json", exclude={"seed"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _setting(run: Run, before: EvaluationResult) -> dict[str, str]:
    """Say what makes two runs comparable: the model, and the same items in every set."""
    items = sorted({(result.name, item.id) for result in before.sets for item in result.items})
    counts = sorted((result.name, result.num_items) for result in before.sets)
    digest = hashlib.sha256(json.dumps([items, counts]).encode()).hexdigest()
    forget = ", ".join(result.name for result in before.sets if result.role == "forget")
    return {"model": run[1].base_model, "forget": forget, "items": digest[:12]}


def _original(run: Run, before: EvaluationResult, setting: dict[str, str]) -> BenchResult:
    return _row(run, before, setting).model_copy(update={"role": "target", "label": "before"})


def _changed(run: Run, after: EvaluationResult, setting: dict[str, str], label: str) -> BenchResult:
    records = run[1]
    training, environment = records.training, records.environment
    return _row(run, after, setting).model_copy(
        update={
            "label": label,
            "method": training.method,
            "seed": records.recipe.seed,
            "recipe": {
                "layer": str(records.selection.layer),
                "steps": str(training.steps_done),
                "learning_rate": f"{training.learning_rate:g}",
            },
            "seconds": {k: v for k, v in stage_seconds(records).items() if usable(v) is not None},
            "peak_memory_bytes": training.peak_memory_bytes,
            "versions": dict(environment.packages),
            "hardware": f"{environment.processor}, {environment.cores} cores, {environment.device}",
        }
    )


def _row(run: Run, evaluation: EvaluationResult, setting: dict[str, str]) -> BenchResult:
    """Make a row from the headline metrics; the first of either side are the axes of the picture."""
    forget = _headlines(evaluation, ("forget",))
    kept = _headlines(evaluation, ("retain", "general", "neighbour"))
    for side, words in ((forget, "to be forgotten"), (kept, "to be kept")):
        if not side:
            raise DataError(
                f"{run[0]}: no test measures what was {words}",
                hint="Add an evaluation set of that role to the recipe and repeat the run.",
            )
    corpora = {corpus.source: f"{corpus.sha256}, {corpus.read} rows" for corpus in run[1].data.corpora}
    return BenchResult(
        benchmark="run",
        setting=setting,
        role="unlearned",
        label="",
        model=run[1].base_model,
        metrics=[_metric(headline) for headline in (*forget, *kept)],
        forget_axis=_name(forget[0]),
        utility_axis=_name(kept[0]),
        notes=[f"not measured: {reason}" for reason in evaluation.skipped],
        data=corpora,
    )


def _headlines(evaluation: EvaluationResult, roles: Sequence[str]) -> list[Headline]:
    """Return the metrics that say most about each set: accuracies, other knowledge metrics, perplexity."""
    found = []
    for role in roles:
        for result in evaluation.sets:
            if result.role != role:
                continue
            known = [metric for metric in result.metrics if metric.name in KNOWLEDGE_METRICS]
            accuracies = [metric for metric in known if metric.name.startswith("accuracy")]
            texts = [metric for metric in result.metrics if metric.name == "perplexity"]
            found += [(result, metric) for metric in accuracies or known or texts]
    # Tests of knowledge first: the first one becomes the axis.
    return sorted(found, key=lambda headline: headline[1].name not in KNOWLEDGE_METRICS)


def _name(headline: Headline) -> str:
    result, metric = headline
    return f"{result.name}: {METRIC_NAMES.get(metric.name, ('', metric.name))[1]}"


def _metric(headline: Headline) -> BenchMetric:
    result, metric = headline
    desired: Literal["lower", "higher"] = "lower" if metric.name in _RISES_WITH_HARM else "higher"
    if result.role == "forget":
        desired = "higher" if desired == "lower" else "lower"
    value = usable(metric.value)
    return BenchMetric(
        name=_name(headline),
        value=value,
        low=usable(metric.low),
        high=usable(metric.high),
        interval=metric.interval,
        num_items=metric.num_items,
        desired=desired,
        note="" if value is not None else f"the measurement gave {metric.value}",
    )


def _merged(known: tuple[Path, BenchResult], again: BenchResult) -> tuple[Path, BenchResult]:
    """Keep the first measurement of an original model, and say so where a later run found other values."""
    path, first = known
    note = "several runs measured the original model, with different values; those of the first are shown"
    if first.metrics == again.metrics or note in first.notes:
        return known
    return path, first.model_copy(update={"notes": [*first.notes, note]})
