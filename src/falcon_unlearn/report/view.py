"""Arrange the records of a run as the report shows them; everything here is plain words and charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from falcon_unlearn.report.audit_view import AuditView, audit_note, build_audit_view
from falcon_unlearn.report.charts import Bar, Chart, bar_chart
from falcon_unlearn.report.compare import METRIC_NAMES, Change, changes
from falcon_unlearn.report.curves import training_charts
from falcon_unlearn.report.evidence_charts import (
    ROLE_NAMES,
    chance_words,
    dumbbell_chart,
    layer_chart,
    layer_strip,
)
from falcon_unlearn.report.facts import (
    Fact,
    cost_facts,
    repeat_command,
    repeat_facts,
    request,
    selection_facts,
    stage_seconds,
    tensor_sentence,
    training_facts,
)
from falcon_unlearn.report.format import duration, in_unit, shorten
from falcon_unlearn.report.limits import general_limits, specific_limits
from falcon_unlearn.report.records import RunRecords, public_recipe
from falcon_unlearn.report.verdict import AUDIT_NOTE, Verdict, judge, kept_changes, key_changes
from falcon_unlearn.results import CorpusCount, EvaluationResult, GenerationSample, Metric, SelectionResult

MAXIMUM_SAMPLE_CHARACTERS = 800
_SECTIONS = [
    ("verdict", "Result"),
    ("audit", "Recovery audit"),
    ("request", "Request"),
    ("layer", "Layer"),
    ("training", "Training"),
    ("scores", "Before and after"),
    ("samples", "Samples"),
    ("tensors", "Tensors"),
    ("cost", "Cost"),
    ("limits", "Limits"),
    ("repeat", "Repeat"),
]

Row = TypeVar("Row")


@dataclass(frozen=True)
class Tile:
    """Show one number at a glance."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class ResultRow:
    """Show one metric before and after; `change` is None where only one side was measured."""

    set_name: str
    role_name: str
    label: str
    num_items: int
    before: Metric | None
    after: Metric | None
    change: Change | None


@dataclass(frozen=True)
class SamplePair:
    """Show one prompt with both completions."""

    set_name: str
    prompt: str
    expected: str
    before: GenerationSample | None
    after: GenerationSample | None


@dataclass(frozen=True)
class ReportView:
    """Hold everything the templates need."""

    records: RunRecords
    verdict: Verdict
    audit_note: str
    tiles: list[Tile]
    request: list[Fact]
    corpora: list[CorpusCount]
    selection_facts: list[Fact]
    selection_charts: list[Chart]
    training_facts: list[Fact]
    training_charts: list[Chart]
    result_groups: list[tuple[str, list[ResultRow]]]
    """Rows under the name of their role."""
    result_charts: list[Chart]
    sample_groups: list[tuple[str, list[SamplePair]]]
    """Pairs under the name of their set."""
    tensor_sentence: str
    cost_facts: list[Fact]
    cost_charts: list[Chart]
    general_limits: tuple[str, ...]
    specific_limits: list[str]
    command: str
    repeat_facts: list[Fact]
    recipe_yaml: str
    audit: AuditView | None
    sections: list[tuple[str, str]]
    """Anchor and name, in order."""


def build_view(records: RunRecords) -> ReportView:
    """Derive all words, tables and charts from the records."""
    before, after = records.before, records.after
    compared = changes(before, after, records.recipe.evaluation.confidence) if before and after else None
    verdict = judge(compared)
    return ReportView(
        records=records,
        verdict=verdict,
        audit_note=audit_note(records.audit) if records.audit else AUDIT_NOTE,
        tiles=_tiles(records, compared or []),
        request=request(records),
        corpora=records.data.corpora,
        selection_facts=selection_facts(records.selection),
        selection_charts=_selection_charts(records.selection),
        training_facts=training_facts(records),
        training_charts=training_charts(records.training),
        result_groups=_grouped(_result_rows(before, after, compared or []), lambda row: row.role_name),
        result_charts=_result_charts(compared or []),
        sample_groups=_grouped(_samples(before, after), lambda pair: pair.set_name),
        tensor_sentence=tensor_sentence(records),
        cost_facts=cost_facts(records),
        cost_charts=_cost_charts(records),
        general_limits=general_limits(records.audit),
        specific_limits=specific_limits(records, compared, verdict),
        command=repeat_command(records),
        repeat_facts=repeat_facts(records),
        recipe_yaml=public_recipe(records.recipe),
        audit=build_audit_view(records.audit) if records.audit else None,
        sections=[entry for entry in _SECTIONS if records.audit or entry[0] != "audit"],
    )


def _tiles(records: RunRecords, compared: list[Change]) -> list[Tile]:
    first = key_changes(compared, "forget")[:1]
    tiles = [_change_tile(f"To forget: {change.set_name}", change) for change in first]
    kept = kept_changes(compared)
    shares = [change for change in kept if change.before.unit == "share"]
    if shares:
        worst = min(shares, key=lambda change: change.difference)
        tiles.append(_change_tile(f"Worst kept score: {worst.set_name}", worst))
    perplexities = [change for change in kept if change.before.name == "perplexity"][:1]
    tiles += [_change_tile(f"Perplexity: {change.set_name}", change) for change in perplexities]
    training = records.training
    trained = f"{training.trained_parameters / max(1, training.total_parameters):.1%} of the parameters"
    of_all = f" of {records.num_tensors:,}" if records.num_tensors else ""
    tiles.append(Tile("Tensors changed", f"{len(training.changes)}{of_all}", trained))
    total = sum(stage_seconds(records).values())
    tiles.append(Tile("Time", duration(total), f"of it training {duration(training.seconds_train)}"))
    return tiles


def _change_tile(label: str, change: Change) -> Tile:
    unit = change.before.unit
    guessing = "" if change.before.chance is None else f"; guessing {in_unit(change.before.chance, unit)}"
    test = "" if change.before.name == "perplexity" else f"; {change.label}"
    note = f"from {in_unit(change.before.value, unit)}{test}{guessing}"
    return Tile(label, in_unit(change.after.value, unit), note)


def _selection_charts(selection: SelectionResult) -> list[Chart]:
    if selection.fixed or not selection.layers:
        return []
    name = "conflict" if selection.estimator == "gradient_conflict" else "information"
    return [layer_chart(selection, name), layer_strip(selection, name)]


def _result_rows(
    before: EvaluationResult | None, after: EvaluationResult | None, compared: Sequence[Change]
) -> list[ResultRow]:
    """List every metric of either evaluation, grouped by role."""
    paired = {(change.set_name, change.before.name): change for change in compared}
    sides: dict[tuple[str, str], dict[str, Metric]] = {}
    roles: dict[str, str] = {}
    for side, evaluation in (("before", before), ("after", after)):
        for result in evaluation.sets if evaluation else ():
            roles.setdefault(result.name, result.role)
            for metric in result.metrics:
                sides.setdefault((result.name, metric.name), {})[side] = metric
    rows = []
    for (set_name, metric_name), found in sides.items():
        label = METRIC_NAMES.get(metric_name, (metric_name, ""))[0]
        num_items = next(iter(found.values())).num_items
        change = paired.get((set_name, metric_name))
        role_name = ROLE_NAMES[roles[set_name]]
        rows.append(
            ResultRow(set_name, role_name, label, num_items, found.get("before"), found.get("after"), change)
        )
    order = list(ROLE_NAMES.values())
    names = list(roles)
    return sorted(rows, key=lambda row: (order.index(row.role_name), names.index(row.set_name)))


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    return [(name, list(members)) for name, members in groupby(rows, key=key)]


def _result_charts(compared: Sequence[Change]) -> list[Chart]:
    charts = []
    shares = [c for c in compared if c.before.unit == "share" and c.before.name != "letter_mass"]
    if shares:
        note = f"Scores with their intervals. {chance_words(shares)}"
        charts.append(dumbbell_chart("Before and after", note, shares, "share", is_share=True))
    perplexities = [change for change in compared if change.before.name == "perplexity"]
    if perplexities:
        note = "How surprised the model is by a text; lower is better where text is to be kept."
        charts.append(
            dumbbell_chart("Perplexity", note, perplexities, "perplexity per token", is_share=False)
        )
    return charts


def _samples(before: EvaluationResult | None, after: EvaluationResult | None) -> list[SamplePair]:
    found: dict[tuple[str, str], dict[str, GenerationSample]] = {}
    for side, evaluation in (("before", before), ("after", after)):
        for result in evaluation.sets if evaluation else ():
            for sample in result.samples:
                found.setdefault((result.name, sample.prompt), {})[side] = _shortened(sample)
    pairs = []
    for (set_name, prompt), sides in found.items():
        expected = next(iter(sides.values())).expected
        shown = shorten(prompt, MAXIMUM_SAMPLE_CHARACTERS)
        pairs.append(SamplePair(set_name, shown, expected, sides.get("before"), sides.get("after")))
    return pairs


def _shortened(sample: GenerationSample) -> GenerationSample:
    return sample.model_copy(update={"completion": shorten(sample.completion, MAXIMUM_SAMPLE_CHARACTERS)})


def _cost_charts(records: RunRecords) -> list[Chart]:
    stages = stage_seconds(records)
    if not stages:
        return []
    bars = [Bar(name.replace("_", " "), seconds, duration(seconds)) for name, seconds in stages.items()]
    return [bar_chart("Time by stage", "Wall time of each stage.", bars, "seconds")]
