"""Turn the training history into charts."""

from __future__ import annotations

import math

from falcon_unlearn.report.charts import Chart, GridRow, Series, heat_grid, line_chart
from falcon_unlearn.report.svg import spans_decades
from falcon_unlearn.results import TrainingResult

MAXIMUM_COLUMNS = 100
"""A heat grid of more steps shows every n-th."""
MAXIMUM_LINES = 6
"""Above this many tensors a heat grid replaces lines."""
_COSINE = "cosine:"


def training_charts(training: TrainingResult) -> list[Chart]:
    """Draw every diagnostic that the history holds."""
    if not training.history:
        return []
    charts = [
        _losses(training),
        _single(
            training,
            "Retain loss",
            _distance_key(training),
            1,
            "cosine distance",
            "Mean cosine distance of retained states from the original model: the utility budget.",
            include=(0.0,),
        ),
        _single(
            training,
            "Share of conflicts",
            "conflict_share",
            3,
            "share",
            "Share of the tensors (or scopes) whose two gradients opposed each other.",
            y_range=(0.0, 1.0),
        ),
        _norms(training),
        _single(
            training,
            "Drift of retained states",
            "retain_drift",
            1,
            "share",
            "Mean norm of the change of retained states, as a share of their own norm.",
            include=(0.0,),
        ),
        _cosines(training),
    ]
    return [chart for chart in charts if chart is not None]


def _distance_key(training: TrainingResult) -> str:
    """Return where the cosine distance is; early records have it as FALCON's retain loss only."""
    key, first = "retain_cosine_distance", training.history[0]
    acts_on_outputs = "forget_log_probability" in first or "retain_log_probability" in first
    return key if key in first or acts_on_outputs else "retain_loss"


def short_tensor_name(name: str) -> str:
    """Shorten `model.layers.5.mlp.down_proj.weight` to `5.mlp.down_proj`."""
    parts = [part for part in name.split(".") if part != "weight"]
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbered[0] :]) if numbered else ".".join(parts)


def _points(training: TrainingResult, key: str) -> list[tuple[float, float]]:
    return [
        (row.get("step", float(index)), row[key]) for index, row in enumerate(training.history) if key in row
    ]


def _marked(training: TrainingResult) -> float | None:
    return None if training.kept_step == training.steps_done else float(training.kept_step)


def _losses(training: TrainingResult) -> Chart | None:
    note = "Contrastive loss that pulls forget states towards their targets; lower means further steered."
    if len(training.domains) < 2:
        return _single(training, "Forget loss", "forget_loss", 0, "nats", note)
    styles = [0, *range(2, 2 + len(training.domains))]
    series = []
    for index, name in enumerate(training.domains):
        rows = [row for row in training.history if row.get("domain") == index and "forget_loss" in row]
        points = [(row.get("step", math.nan), row["forget_loss"]) for row in rows]
        series.append(Series(name, points, styles[index]))
    return line_chart("Forget loss", note, "nats", series, marked_step=_marked(training))


def _single(
    training: TrainingResult,
    title: str,
    key: str,
    style: int,
    unit: str,
    note: str,
    *,
    y_range: tuple[float, float] | None = None,
    include: tuple[float, ...] = (),
) -> Chart | None:
    points = _points(training, key)
    if not points:
        return None
    return line_chart(
        title,
        note,
        unit,
        [Series(title.lower(), points, style)],
        y_range=y_range,
        include=include,
        marked_step=_marked(training),
    )


def _norms(training: TrainingResult) -> Chart | None:
    named = {
        "forget_norm": ("forget tokens", 0),
        "retain_norm": ("retain tokens", 1),
        "sink_norm": ("attention sinks", 3),
    }
    found = {key: points for key in named if (points := _points(training, key))}
    series = [Series(named[key][0], points, named[key][1]) for key, points in found.items()]
    if not series:
        return None
    logarithmic = spans_decades(value for one in series for _, value in one.points)
    note = "Mean Euclidean norm of the states at the loss layer. A sudden rise is a sign of divergence."
    return line_chart(
        "Activation norms",
        note,
        "norm",
        series,
        include=() if logarithmic else (0.0,),
        marked_step=_marked(training),
        logarithmic=logarithmic,
    )


def _cosines(training: TrainingResult) -> Chart | None:
    keys = list(dict.fromkeys(key for row in training.history for key in row if key.startswith(_COSINE)))
    if not keys:
        return None
    title = "Agreement of the two gradients"
    note = "Cosine of forget and retain gradient, per tensor. Below zero they conflict."
    if len(keys) > MAXIMUM_LINES:
        return _cosine_grid(training, keys, title)
    styles = [3, 2, 4, 5, 1, 0]
    series = [
        Series(short_tensor_name(key.removeprefix(_COSINE)), _points(training, key), style)
        for key, style in zip(keys, styles, strict=False)
    ]
    return line_chart(
        title, note, "cosine", series, include=(0.0,), reference=0.0, marked_step=_marked(training)
    )


def _cosine_grid(training: TrainingResult, keys: list[str], title: str) -> Chart:
    every = max(1, math.ceil(len(training.history) / MAXIMUM_COLUMNS))
    shown = training.history[::every]
    rows = [
        GridRow(
            short_tensor_name(key.removeprefix(_COSINE)),
            [-row.get(key, math.nan) for row in shown],
            0.0,
            1.0,
        )
        for key in keys
    ]
    steps = [int(row.get("step", index)) for index, row in enumerate(shown)]
    note = "Strength of the conflict: negative cosine of the two gradients, per tensor. No colour: none."
    return heat_grid(title, note, rows, steps, "step")
