"""Show result records to people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from falcon_unlearn.cli.console import format_seconds
from falcon_unlearn.cli.terminal import clean
from falcon_unlearn.errors import GateError
from falcon_unlearn.results import (
    DataResult,
    EnvironmentResult,
    EvaluationResult,
    ExportResult,
    Metric,
    PlanResult,
    RunSummary,
    SelectionResult,
    comparison_rows,
)
from falcon_unlearn.runs.writing import format_bytes, weight_file_words

if TYPE_CHECKING:
    from falcon_unlearn.config.recipe import Recipe

BAR_WIDTH = 32
_HELD = {"lower": "falls", "higher": "rises", "unchanged": "stays"}


def new_table(title: str | None, *columns: str) -> Table:
    """Return an empty table; a column name that ends in > is aligned to the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.strip(">"), justify="right" if column.endswith(">") else "left")
    return table


def table_row(table: Table, *cells: str, style: str | None = None) -> None:
    """Add cells as plain text: names and model text are never markup."""
    table.add_row(*(Text(clean(cell)) for cell in cells), style=style)


def line(console: Console, text: str, style: str = "") -> None:
    """Print one line of plain text; no part of it is markup."""
    console.print(Text(clean(text), style=style), soft_wrap=True)


def show_comparison(before: EvaluationResult, after: EvaluationResult, console: Console) -> None:
    """Show every metric of two evaluations side by side, with intervals."""
    rows = comparison_rows(before, after)
    table = new_table(
        None, "set", "role", "metric", "wanted", "before>", "[low, high]", "after>", "[low, high]"
    )
    previous = None
    for row in rows:
        old, new = row["before"], row["after"]
        first = row["set"] != previous
        previous = row["set"]
        table_row(
            table,
            row["set"] if first else "",
            row["role"] if first else "",
            _metric_name(old),
            _HELD[old.desired],
            *_cells(old),
            *_cells(new),
            style="bold" if row["role"] == "forget" else None,
        )
    console.print(table)
    for reason in dict.fromkeys([*before.skipped, *after.skipped]):
        line(console, f"not measured: {reason}", "dim")


def show_evaluation(result: EvaluationResult, console: Console) -> None:
    """Show every metric of one evaluation, with intervals."""
    table = new_table(f"{clean(result.model)}", "set", "role", "metric", "value>", "[low, high]", "items>")
    for entry in result.sets:
        for index, metric in enumerate(entry.metrics):
            names = (entry.name, entry.role) if index == 0 else ("", "")
            table_row(table, *names, _metric_name(metric), *_cells(metric), str(metric.num_items))
    console.print(table)
    for reason in result.skipped:
        line(console, f"not measured: {reason}", "dim")


def _metric_name(metric: Metric) -> str:
    name = metric.name.replace("_", " ")
    return f"{name} (chance {metric.chance:.2f})" if metric.chance is not None else name


def _cells(metric: Metric) -> tuple[str, str]:
    return _number(metric.value), f"[{_number(metric.low)}, {_number(metric.high)}]"


def _number(value: float) -> str:
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 10 else f"{value:.1f}"


def show_selection(selection: SelectionResult, console: Console) -> None:
    """Show a bar per layer with its interval, and its null where there is one."""
    if selection.fixed or not selection.layers:
        line(console, f"Layer {selection.layer}: {selection.explanation or 'fixed by the user'}")
        return
    edges = [
        edge
        for v in selection.layers
        for edge in (v.low, v.high, v.value, v.null_low, v.null_high)
        if edge is not None
    ]
    low, high = min(edges), max(edges)
    title = f"{selection.estimator} estimator, {selection.unit}; # value, - interval, | null"
    table = new_table(title, "layer>", "", "value>", "[low, high]", "null", "best>", "")
    for value in selection.layers:
        null = "" if value.null_mean is None else _number(value.null_mean)
        notes = [
            *(["chosen"] if value.layer == selection.layer else []),
            *(["best"] if value.layer == selection.best_layer else []),
            *([] if value.candidate else ["not a candidate"]),
            *([] if value.fall is None else [f"trial: fall {_number(value.fall)}"]),
            *value.flags,
        ]
        table_row(
            table,
            str(value.layer),
            interval_bar(value.value, value.low, value.high, value.null_mean, low, high),
            _number(value.value),
            f"[{_number(value.low)}, {_number(value.high)}]",
            null,
            f"{value.probability_best:.0%}",
            ", ".join(notes),
            style="bold" if value.layer == selection.layer else None if value.candidate else "dim",
        )
    console.print(table)
    line(console, f"Layer {selection.layer} ({selection.rule}): {selection.explanation}")


def interval_bar(
    value: float, low: float, high: float, null: float | None, scale_low: float, scale_high: float
) -> str:
    """Draw a value, its interval and its null on a line of `BAR_WIDTH` characters."""
    span = scale_high - scale_low

    def place(number: float) -> int:
        share = (number - scale_low) / span if span > 0 else 0.0
        return min(BAR_WIDTH - 1, max(0, round(share * (BAR_WIDTH - 1))))

    cells = [" "] * BAR_WIDTH
    cells[: place(value) + 1] = "#" * (place(value) + 1)
    cells[place(low) : place(high) + 1] = "-" * (place(high) + 1 - place(low))
    cells[place(value)] = "#"
    if null is not None:
        cells[place(null)] = "|"
    return "".join(cells)


def show_plan(plan: PlanResult, console: Console, *, recipe: Recipe | None = None) -> None:
    """Show what a run would do, and the recipe it would follow."""
    line(
        console,
        f"{plan.model}: {plan.architecture}, {plan.blocks} blocks of width {plan.hidden_size}, "
        f"{plan.total_parameters:,} parameters",
    )
    layer = "chosen by the selection" if plan.layer is None else f"layer {plan.layer}"
    line(
        console,
        f"Loss layer: {layer}. Window: blocks {plan.window[0]} to {plan.window[1]}. "
        f"{plan.steps} steps of {plan.batch_size} + {plan.batch_size} samples.",
    )
    line(console, f"Trained: {plan.trained_parameters:,} parameters in {len(plan.trained)} tensors")
    for name in plan.trained:
        line(console, f"  {name}")
    table = new_table("Coverage", "part", "parameter", "blocks>", "shape")
    for row in plan.coverage:
        table_row(
            table, row.role, row.pattern, f"{row.blocks}/{plan.blocks}", " x ".join(map(str, row.shape))
        )
    console.print(table)
    line(console, f"Memory: {plan.placement}.")
    table = new_table("Cost", "part", "memory>", "disk>", "FLOP>", "time>")
    parts = dict.fromkeys([*plan.memory_bytes, *plan.disk_bytes, *plan.flops, *plan.seconds])
    for part in sorted(parts, key=lambda name: name == "total"):
        table_row(
            table,
            part,
            format_bytes(plan.memory_bytes[part]) if part in plan.memory_bytes else "",
            format_bytes(plan.disk_bytes[part]) if part in plan.disk_bytes else "",
            f"{plan.flops[part]:.1e}" if part in plan.flops else "",
            format_seconds(plan.seconds[part]) if part in plan.seconds else "",
        )
    console.print(table)
    line(console, f"Measured: {', '.join(plan.metrics) or 'nothing'}")
    for reason in plan.not_computed:
        line(console, f"not measured: {reason}", "dim")
    for warning in plan.warnings:
        line(console, f"warning: {warning}", "yellow")
    if recipe is not None:
        from falcon_unlearn.config.load import resolved_yaml

        line(console, "\nResolved recipe:")
        line(console, resolved_yaml(recipe))


def show_data(data: DataResult, console: Console) -> None:
    """Show what became of every corpus."""
    table = new_table(
        None,
        "set",
        "role",
        "read>",
        "short>",
        "cut>",
        "twice>",
        "overlap>",
        "training>",
        "held out>",
        "tokens>",
    )
    for c in data.corpora:
        counts = (c.read, c.too_short, c.cut, c.duplicates, c.overlapping, c.training, c.held_out, c.tokens)
        table_row(table, c.name, c.role, *(f"{count:,}" for count in counts))
    console.print(table)
    for warning in data.warnings:
        line(console, f"warning: {warning}", "yellow")
    line(console, "The recipe and its data are valid.")


def show_valid_recipe(recipe: Recipe, console: Console) -> None:
    """Say that a recipe is valid; its data files were not opened."""
    forget, retain = (", ".join(c.name for c in group) for group in (recipe.data.forget, recipe.data.retain))
    line(console, f"The recipe is valid: forget {forget}; keep {retain}; model {recipe.model.name}.")


def show_run(summary: RunSummary, console: Console) -> None:
    """Show the layer, the training, the comparison, and where everything is."""
    selection, training = summary.selection, summary.training
    how = "fixed" if selection.fixed else f"chosen by the {selection.estimator} estimator"
    line(console, f"Layer {selection.layer} ({how}), blocks {training.window[0]} to {training.window[1]}")
    status = "" if training.status == "completed" else ", stopped on the utility budget"
    line(
        console,
        f"{training.steps_done} of {training.steps_planned} steps{status}, step {training.kept_step} kept; "
        f"{training.trained_parameters:,} of {training.total_parameters:,} parameters trained",
    )
    if summary.before is not None and summary.after is not None:
        show_comparison(summary.before, summary.after, console)
    total = sum(summary.seconds.values())
    line(console, f"Model:  {summary.output}  ({format_seconds(total)})")
    if summary.report is not None:
        report = Path(summary.report)
        line(console, f"Report: {report if report.exists() else Path(summary.output) / report}")


def refuse_collapse(summary: RunSummary) -> None:
    """Raise GateError for a model that broke where it should have stayed; the output is complete then.

    Raises:
        GateError: Names every set with its figures.
    """
    if summary.collapse:
        raise GateError(
            "the model has collapsed on what it should keep:\n" + "\n".join(summary.collapse),
            hint="The output is written, for inspection. Lower train.learning_rate or train.steps, raise "
            "objective.retain_multiplier, or set --max-utility-loss.",
        )


def show_export(result: ExportResult, console: Console) -> None:
    """Say where the model is, and how its weight files were made."""
    line(console, f"{len(result.tensors)} tensors of {result.base_model} replaced, all hashes verified")
    line(console, f"Weight files: {weight_file_words(result.weight_files)}")
    line(console, f"Model:  {result.output}")


def show_environment(environment: EnvironmentResult, console: Console) -> None:
    """Show the machine and the versions."""
    rows = {
        "python": environment.python,
        "platform": environment.platform,
        "processor": f"{environment.processor}, {environment.cores} cores, {environment.threads} threads",
        "memory": format_bytes(environment.memory_bytes),
        "device": environment.device,
        **environment.packages,
    }
    for name, value in rows.items():
        line(console, f"{name:<16} {value}")
