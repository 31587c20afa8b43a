"""Measure a finished run again, from its model and the data that are given, and compare with its record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_unlearn.config.paths import is_local
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.evaluation.suite import evaluate
from falcon_unlearn.events import EventSink
from falcon_unlearn.models.access import load_model, pick_device
from falcon_unlearn.pipeline.evaluating import held_out_corpora, swap_to_original
from falcon_unlearn.pipeline.workspace import fill_workspace, seeded, timed_stage
from falcon_unlearn.report.records import RunRecords
from falcon_unlearn.results import EvaluationResult, Metric
from falcon_unlearn.results_verify import Check, MetricCheck
from falcon_unlearn.runs import sha256_file

_RELATIVE, _ABSOLUTE = 1e-9, 1e-12
_LOOSE = 0.01
_SAMPLED = "the text sampled from the original model, which is not kept"
_EXACT_WORDS = f"equal to {_RELATIVE:g} relative: the environment differs in nothing that changes numbers"
_LOOSE_WORDS = f"inside the recorded interval, or within {_LOOSE:g}: the environment differs"


@dataclass(frozen=True)
class _Found:
    """Say which data of the run were found."""

    sets: Mapping[str, str]
    """Path of the file by name of the evaluation set."""
    corpora: Mapping[str, str]
    """Path or hub id by name of the corpus."""
    checks: list[Check]


def remeasure(
    folder: Path,
    records: RunRecords,
    *,
    base: str | None,
    data: Iterable[Path],
    exact: bool,
    sink: EventSink,
) -> tuple[list[MetricCheck], str, list[Check]]:
    """Measure what can be measured with `data`, and compare.

    Args:
        folder: Output folder of the run, which holds its model.
        records: What the run recorded.
        base: Original model, for the divergence.
        data: Files and folders given by the user.
        exact: The environment is the recorded one, so numbers must be equal.
        sink: Receives progress.

    Returns:
        Comparisons, what counted as equal, and one check for each file of data and for the metrics.
    """
    if records.after is None:
        return [], "", [Check(name="metrics", status="skipped", detail="the run was not evaluated")]
    found = _find_data(records, _candidates(data))
    recipe, missing = _recipe_here(folder, records, found)
    if not recipe.evaluation.sets and missing:
        detail = f"not measured again: give --data with {', '.join(missing[:8])}"
        return [], "", [*found.checks, Check(name="metrics", status="skipped", detail=detail)]
    now = _measure(recipe, with_texts=not missing, base=base, sink=sink)
    compared = compare_metrics(records.after, now, exact=exact)
    wrong = [f"{one.set} {one.metric}" for one in compared if one.status == "failed"]
    detail = f"{len(compared) - len(wrong)} of {len(compared)} numbers agree"
    detail += f"; not: {', '.join(wrong[:8])}" if wrong else ""
    detail += f"; not measured again, give --data with {', '.join(missing[:8])}" if missing else ""
    status = Check(name="metrics", status="failed" if wrong else "passed", detail=detail)
    return compared, _EXACT_WORDS if exact else _LOOSE_WORDS, [*found.checks, status]


def compare_metrics(recorded: EvaluationResult, now: EvaluationResult, *, exact: bool) -> list[MetricCheck]:
    """Compare every metric that both evaluations have; with `exact`, values must be equal, else near."""
    later = {(entry.name, metric.name): metric for entry in now.sets for metric in entry.metrics}
    return [
        MetricCheck(
            set=entry.name,
            metric=metric.name,
            recorded=metric.value,
            now=later[entry.name, metric.name].value,
            status="passed" if _agrees(metric, later[entry.name, metric.name].value, exact) else "failed",
        )
        for entry in recorded.sets
        for metric in entry.metrics
        if (entry.name, metric.name) in later
    ]


def _agrees(recorded: Metric, now: float, exact: bool) -> bool:
    if math.isclose(recorded.value, now, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
        return True
    return not exact and (recorded.low <= now <= recorded.high or abs(now - recorded.value) <= _LOOSE)


def _candidates(data: Iterable[Path]) -> dict[str, list[Path]]:
    """List the files that were given, by name.

    Raises:
        UsageError: A path does not exist.
    """
    found: dict[str, list[Path]] = {}
    for path in data:
        if not path.exists():
            raise UsageError(f"--data: no such file or folder: {path}")
        files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
        for file in files:
            found.setdefault(file.name, []).append(file)
    return found


def _find_data(records: RunRecords, given: Mapping[str, list[Path]]) -> _Found:
    sets: dict[str, str] = {}
    corpora: dict[str, str] = {}
    checks: list[Check] = []
    for entry in records.recipe.evaluation.sets:
        recorded = records.data.evaluation_files.get(entry.name)
        files = given.get(Path(entry.path).name, [])
        same = [file for file in files if recorded is None or sha256_file(file) == recorded.sha256]
        if same:
            sets[entry.name] = str(same[0])
        elif files:
            checks.append(_other(f"evaluation set {entry.name}", files[0]))
    hashes = {count.name: count.sha256 for count in records.data.corpora}
    for corpus in (*records.recipe.data.forget, *records.recipe.data.retain):
        if corpus.path == "self":
            continue
        files = given.get(Path(corpus.path).name, [])
        places = [str(file) for file in files] if files or is_local(corpus.path) else [corpus.path]
        same_texts = [
            place
            for place in places
            if load_examples(corpus.model_copy(update={"path": place})).sha256 == hashes[corpus.name]
        ]
        if same_texts:
            corpora[corpus.name] = same_texts[0]
        elif files:
            checks.append(_other(f"corpus {corpus.name}", files[0]))
    return _Found(sets, corpora, checks)


def _other(what: str, file: Path) -> Check:
    return Check(name=what, status="failed", detail=f"{file.name} differs from what the run read")


def _recipe_here(folder: Path, records: RunRecords, found: _Found) -> tuple[Recipe, list[str]]:
    """Return the recipe over the data that were found, and the names of the files that are missing."""
    plain: dict[str, Any] = records.recipe.model_dump(mode="json")
    plain["model"] |= {"name": str(folder), "revision": None}
    missing = []
    for corpus in (*plain["data"]["forget"], *plain["data"]["retain"]):
        if corpus["name"] in found.corpora:
            corpus["path"] = found.corpora[corpus["name"]]
        else:
            missing.append(_SAMPLED if corpus["path"] == "self" else corpus["path"])
    kept = []
    for entry in plain["evaluation"]["sets"]:
        if entry["name"] in found.sets:
            kept.append(entry | {"path": found.sets[entry["name"]]})
        else:
            missing.append(entry["path"])
    plain["evaluation"]["sets"] = kept
    return Recipe.model_validate(plain), missing


def _measure(recipe: Recipe, *, with_texts: bool, base: str | None, sink: EventSink) -> EvaluationResult:
    """Measure the sets, and the held-out texts where all corpora are there."""
    seconds: dict[str, float] = {}
    with seeded(recipe.seed, recipe.runtime.threads), timed_stage("verify", "measuring again", sink, seconds):
        sets = load_sets(recipe.evaluation, seed=recipe.seed)
        loaded = load_model(recipe.model, pick_device(recipe.runtime.device))
        workspace = fill_workspace(loaded, recipe, sink, seconds) if with_texts else None
        other = None
        if base is not None:
            settings = recipe.model.model_copy(update={"name": base})
            other = load_model(settings, pick_device(recipe.runtime.device))
        return evaluate(
            loaded.model,
            loaded.tokenizer,
            recipe.evaluation,
            held_out=held_out_corpora(workspace) if workspace is not None else (),
            label="after",
            model_name=recipe.model.name,
            seed=recipe.seed,
            original=None if other is None else swap_to_original(loaded, other),
            sets=sets,
            sink=sink,
        )
