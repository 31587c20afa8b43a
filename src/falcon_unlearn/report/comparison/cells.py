"""Make the columns and the cells of a comparison: means, intervals, and what the retain model says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from falcon_unlearn.report.comparison.records import CONFIDENCE, Cell, Column, Direction, State
from falcon_unlearn.report.comparison.seeds import spread, usable
from falcon_unlearn.results_bench import BenchMetric, BenchResult


def make_columns(
    results: Sequence[BenchResult], target: Sequence[BenchResult], retain: Sequence[BenchResult]
) -> list[Column]:
    """Describe every metric of one group, in the order of first appearance.

    Args:
        results: all results of the group.
        target: seeds of the model that still knows; may be empty.
        retain: seeds of the model that never saw the forget data; may be empty.
    """
    metrics = {metric.name: metric for result in results for metric in reversed(result.metrics)}
    names = dict.fromkeys(metric.name for result in results for metric in result.metrics)
    replicates = [result for result in results if result.role == "retain_replicate"]
    axis = results[0].forget_axis
    return [_column(metrics[name], axis, target, retain, replicates) for name in names]


def _column(
    metric: BenchMetric,
    forget_axis: str,
    target: Sequence[BenchResult],
    retain: Sequence[BenchResult],
    replicates: Sequence[BenchResult],
) -> Column:
    name = metric.name
    plain = Column(name=name, desired=metric.desired)
    value = _mean(retain, name)
    if value is None or (metric.desired != "retain model" and name != forget_axis):
        return plain
    edges = [edge for result in (*retain, *replicates) for edge in _edges(result.metric(name))]
    low, high = min(edges), max(edges)
    forgetting: Direction = "unknown"
    if name == forget_axis:
        # By its definition the axis says how much is still known.
        forgetting = "higher" if metric.desired == "higher" else "lower"
    elif (known := _mean(target, name)) is not None and not low <= known <= high:
        forgetting = "lower" if known > high else "higher"
    return plain.model_copy(
        update={"retain": value, "retain_low": low, "retain_high": high, "forgetting": forgetting}
    )


def make_cell(column: Column, results: Sequence[BenchResult], *, is_judged: bool) -> Cell:
    """Put the seeds of one label together.

    Args:
        column: the metric, with the range of the retain models.
        results: one per seed.
        is_judged: whether forgetting too much is a fault of this row; not so for models that we compare to.
    """
    found = [metric for result in results if (metric := result.metric(column.name)) is not None]
    known = [(metric, value) for metric in found if (value := usable(metric.value)) is not None]
    note = _note(found, len(known), len(results))
    if not known:
        return Cell(metric=column.name, value=None, note=note)
    values = [value for _, value in known]
    summary = spread(values, CONFIDENCE)
    low, high = usable(known[0][0].low), usable(known[0][0].high)
    if len(known) > 1:
        low, high = usable(summary.low), usable(summary.high)
    elif low is None or high is None or low > high:
        low = high = None
    cell = Cell(
        metric=column.name,
        value=summary.mean,
        low=low,
        high=high,
        interval="none" if low is None else "seeds" if len(known) > 1 else "items",
        minimum=summary.minimum,
        maximum=summary.maximum,
        num_seeds=len(known),
        num_items=max(metric.num_items for metric, _ in known),
        note=note,
    )
    if column.retain is None or all(result.role == "retain" for result in results):
        return cell
    state = _state(cell, column) if is_judged else ""
    return cell.model_copy(update={"distance": summary.mean - column.retain, "state": state})


def _state(cell: Cell, column: Column) -> State:
    """Place a value below, inside or above the range of the retain models, from the side of forgetting."""
    low, high, value = column.retain_low, column.retain_high, cell.value
    if low is None or high is None or value is None:
        return ""
    if low <= value <= high:
        return "like retain"
    below = value < low
    # Without any interval of a retain model only the interval of the row can tell a difference from noise.
    if low == high and cell.low is not None and cell.high is not None and cell.low <= low <= cell.high:
        return "like retain"
    if column.forgetting == "unknown":
        return "outside retain"
    return "over-forgetting" if below == (column.forgetting == "lower") else ""


def _mean(results: Sequence[BenchResult], name: str) -> float | None:
    metrics = [metric for result in results if (metric := result.metric(name)) is not None]
    values = [value for metric in metrics if (value := usable(metric.value)) is not None]
    return spread(values, CONFIDENCE).mean if values else None


def _edges(metric: BenchMetric | None) -> Iterable[float]:
    """Return the value and the ends of its item interval, as far as they are known."""
    if metric is None or usable(metric.value) is None:
        return []
    return [edge for end in (metric.value, metric.low, metric.high) if (edge := usable(end)) is not None]


def _note(found: Sequence[BenchMetric], num_known: int, num_seeds: int) -> str:
    notes = list(dict.fromkeys(metric.note for metric in found if metric.note))
    if not found:
        notes.append("not in the file")
    elif num_known < num_seeds and num_seeds > 1:
        notes.append(f"{num_known} of {num_seeds} seeds have a value")
    elif not num_known and not notes:
        notes.append("no usable number in the file")
    return "; ".join(notes)
