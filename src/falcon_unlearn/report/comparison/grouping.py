"""Sort results into groups that may be compared, and into rows of one label with several seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from falcon_unlearn.errors import DataError
from falcon_unlearn.report.comparison.records import REFERENCE_ROLES
from falcon_unlearn.report.comparison.sources import Entry

_APART = "Write both with the same release, or compare them apart."


def by_setting(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Separate benchmarks and settings, which are never mixed.

    Raises:
        DataError: results of one setting that disagree on what a metric or an axis means.
    """
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        key = json.dumps([entry.result.benchmark, sorted(entry.result.setting.items())])
        grouped.setdefault(key, []).append(entry)
    for members in grouped.values():
        _check_axes(members)
        _check_directions(members)
    return list(grouped.values())


def by_label(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Collect the seeds of each role and label: models to measure against first, the rest as given.

    Raises:
        DataError: two results for one seed, or one label for two methods.
    """
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        members = found.setdefault((entry.result.role, entry.result.label), [])
        for other in members:
            _check_seed(other, entry)
        members.append(entry)
    order = {role: index for index, role in enumerate(REFERENCE_ROLES)}
    rows = sorted(found.values(), key=lambda members: order.get(members[0].result.role, len(order)))
    return [sorted(members, key=lambda entry: entry.result.seed or 0) for members in rows]


def _check_axes(entries: Sequence[Entry]) -> None:
    first = entries[0]
    for entry in entries:
        for field in ("forget_axis", "utility_axis"):
            ours, theirs = getattr(entry.result, field), getattr(first.result, field)
            if ours != theirs:
                raise DataError(
                    f"{field}: {entry.source} has {ours!r}, {first.source} has {theirs!r}, in one setting",
                    hint=_APART,
                )


def _check_directions(entries: Sequence[Entry]) -> None:
    known: dict[str, tuple[str, Entry]] = {}
    for entry in entries:
        for metric in entry.result.metrics:
            desired, other = known.setdefault(metric.name, (metric.desired, entry))
            if desired != metric.desired:
                raise DataError(
                    f"metric {metric.name!r}: {entry.source} wants {metric.desired!r}, "
                    f"{other.source} wants {desired!r}",
                    hint=_APART,
                )


def _check_seed(one: Entry, other: Entry) -> None:
    label, seed = one.result.label, one.result.seed
    if seed == other.result.seed:
        words = "without a seed" if seed is None else f"with seed {seed}"
        raise DataError(
            f"{label!r} {words} appears twice: {one.source} and {other.source}",
            hint="Leave one out, or give them different labels or seeds.",
        )
    if one.result.method != other.result.method:
        raise DataError(
            f"label {label!r} names two methods: {one.result.method!r} in {one.source} and "
            f"{other.result.method!r} in {other.source}",
            hint="Give them different labels.",
        )
