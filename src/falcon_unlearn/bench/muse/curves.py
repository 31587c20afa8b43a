"""C5 and C6: what happens as more is to be forgotten, at once (scal) or request after request (sust)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pydantic import Field

from falcon_unlearn.bench.muse.data import NUM_FOLDS, MuseData
from falcon_unlearn.bench.muse.evaluate import NO_REFERENCE, MuseSettings, Reference, evaluate_muse
from falcon_unlearn.bench.muse.log import Log
from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.results import Record

Kind = Literal["scal", "sust"]
CURVE_VERSION = 1


@dataclass(frozen=True)
class CurvePoint:
    """State one unlearning run of a curve."""

    kind: Kind
    step: int
    """From 1."""
    unlearn: tuple[str, ...]
    """Forget texts of this run."""
    forgotten: tuple[str, ...]
    """All that the resulting model should not know."""
    start: Literal["target", "previous"]
    """Which model the run starts from."""


class CurveValue(Record):
    """State one metric at one point."""

    step: int
    num_articles: int
    """Forgotten so far."""
    value: float | None
    low: float | None = None
    high: float | None = None


class MuseCurve(Record):
    """Record how one metric moves along C5 or C6."""

    version: int = CURVE_VERSION
    kind: Kind
    criterion: Literal["C5 scalability", "C6 sustainability"]
    metric: str
    label: str
    setting: dict[str, str]
    points: list[CurveValue] = Field(min_length=1)
    largest_change: float | None
    """Largest difference from the first point, with its sign: a flat curve has 0. None with fewer than two
    measured points."""


def sustainability_folds(data: MuseData) -> list[tuple[str, ...]]:
    """Return the requests in order.

    Raises:
        DataError: A fold is absent; folds may be read only with `load_muse(..., folds=True)`.
    """
    return [data.require(f"sust/forget_{k}") for k in range(1, NUM_FOLDS + 1)]


def scalability_folds(data: MuseData) -> list[tuple[str, ...]]:
    """Return the growing forget sets; one that is absent is the first requests one after another.

    Raises:
        DataError: A set is absent and cannot be rebuilt.
    """
    return [
        data.texts.get(f"scal/forget_{k}")
        or tuple(text for j in range(1, k + 1) for text in data.require(f"sust/forget_{j}"))
        for k in range(1, NUM_FOLDS + 1)
    ]


def equal_parts(articles: Sequence[str], num_parts: int = NUM_FOLDS) -> list[tuple[str, ...]]:
    """Cut articles into runs whose sizes differ by one at most; neighbours stay together.

    Raises:
        UsageError: Fewer articles than parts.
    """
    if not 1 <= num_parts <= len(articles):
        raise UsageError(
            f"parts: got {num_parts} for {len(articles)} articles", hint="each part needs an article"
        )
    bounds = [len(articles) * k // num_parts for k in range(num_parts + 1)]
    return [tuple(articles[start:stop]) for start, stop in pairwise(bounds)]


def curve_points(data: MuseData, kind: Kind) -> list[CurvePoint]:
    """Return the four runs of a curve: official folds on MUSE-News, quarters of the forget set on a tier.

    Raises:
        DataError: A fold is absent.
        UsageError: The tier has fewer than four forget articles.
    """
    if data.membership_tokens is None:
        requests = sustainability_folds(data) if kind == "sust" else []
        unions = scalability_folds(data) if kind == "scal" else _unions(requests)
    else:
        requests = equal_parts(data.require("raw/forget"))
        unions = _unions(requests)
    if kind == "scal":
        return [CurvePoint("scal", k, union, union, "target") for k, union in enumerate(unions, 1)]
    return [
        CurvePoint("sust", k, request, union, "target" if k == 1 else "previous")
        for k, (request, union) in enumerate(zip(requests, unions, strict=True), 1)
    ]


def point_data(data: MuseData, point: CurvePoint) -> MuseData:
    """Return the data on which the model of a point is judged: C4, and PrivLeak of what it should not know.

    VerbMem and the forget questions are left out: they belong to the whole first fold. The official
    membership texts belong to it too, and are kept.
    """
    kept = {name: rows for name, rows in data.questions.items() if name.startswith("knowmem/retain")}
    reason = "left out on curves"
    return replace(
        data,
        texts={**data.texts, "raw/forget": point.forgotten},
        questions=kept,
        verbatim=(),
        missing={**data.missing, "verbmem/forget": reason, "knowmem/forget_qa": reason},
        setting={**data.setting, "curve": point.kind, "step": str(point.step)},
    )


def evaluate_curve(
    models: Iterable[LoadedModel],
    points: Sequence[CurvePoint],
    data: MuseData,
    settings: MuseSettings | None = None,
    *,
    references: Sequence[Reference] | None = None,
    label: str = "",
    sink: EventSink = ignore_events,
) -> tuple[list[MuseCurve], list[BenchResult], list[Log]]:
    """Evaluate the model of each point; models may be loaded one after the other as they are asked for.

    Args:
        models: One for each point, in order.
        points: From `curve_points`.
        data: The data that the points were made of.
        settings: How.
        references: What the retrained model scores at each point (`evaluate_curve` of it gives the logs);
            `no reference` for points without PrivLeak.
        label: Row name.
        sink: Receives the stages.

    Returns:
        A curve for each metric of C3 and C4, and record and log of each point.

    Raises:
        UsageError: Not as many models or references as points, or no references at all.
    """
    if references is None or len(references) != len(points):
        given = "none" if references is None else str(len(references))
        raise UsageError(
            f"references: got {given} for {len(points)} points",
            hint=f"give one for each point, {NO_REFERENCE!r} where PrivLeak is to be left out",
        )
    outcomes = [
        evaluate_muse(
            loaded,
            point_data(data, point),
            settings,
            reference=reference,
            label=f"{label} {point.kind} {point.step}".strip(),
            sink=sink,
        )
        for loaded, point, reference in _aligned(models, points, references)
    ]
    results = [result for result, _ in outcomes]
    return curve_records(points, results, label), results, [log for _, log in outcomes]


def curve_records(
    points: Sequence[CurvePoint], results: Sequence[BenchResult], label: str
) -> list[MuseCurve]:
    """Turn the results of all points into one record per metric that was measured anywhere.

    Raises:
        DataError: No points, or not as many results.
    """
    if not points or len(points) != len(results):
        raise DataError(f"a curve needs one result per point, got {len(results)} for {len(points)} points")
    kind = points[0].kind
    setting = {key: value for key, value in results[0].setting.items() if key not in ("step", "membership")}
    curves = []
    for metric in results[0].metrics:
        values = [
            _curve_value(point, result, metric.name) for point, result in zip(points, results, strict=True)
        ]
        if all(value.value is None for value in values):
            continue
        curves.append(
            MuseCurve(
                kind=kind,
                criterion="C5 scalability" if kind == "scal" else "C6 sustainability",
                metric=metric.name,
                label=label,
                setting=setting,
                points=values,
                largest_change=_largest_change([value.value for value in values]),
            )
        )
    return curves


def _unions(requests: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [tuple(text for part in requests[:k] for text in part) for k in range(1, len(requests) + 1)]


def _aligned(
    models: Iterable[LoadedModel], points: Sequence[CurvePoint], references: Sequence[Reference]
) -> Iterable[tuple[LoadedModel, CurvePoint, Reference]]:
    supply = iter(models)
    for number, (point, reference) in enumerate(zip(points, references, strict=True)):
        loaded = next(supply, None)
        if loaded is None:
            raise UsageError(f"models: got {number} for {len(points)} points", hint="give one for each point")
        yield loaded, point, reference
    if next(supply, None) is not None:
        raise UsageError(f"models: got more than {len(points)} points", hint="give one for each point")


def _curve_value(point: CurvePoint, result: BenchResult, name: str) -> CurveValue:
    metric = result.metric(name)
    if metric is None:
        return CurveValue(step=point.step, num_articles=len(point.forgotten), value=None)
    return CurveValue(
        step=point.step,
        num_articles=len(point.forgotten),
        value=metric.value,
        low=metric.low,
        high=metric.high,
    )


def _largest_change(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    if len(measured) < 2:
        return None
    return max((value - measured[0] for value in measured[1:]), key=abs)
