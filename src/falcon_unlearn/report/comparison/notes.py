"""Collect what must be read beside the numbers: failed gates, warnings, and reasons not to compare."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_unlearn.report.comparison.records import REFERENCE_ROLES, Row
from falcon_unlearn.report.comparison.sources import Entry
from falcon_unlearn.report.format import listing, quantity
from falcon_unlearn.results_bench import BenchResult

MAXIMUM_NAMED = 4
"""Values or metrics that one note spells out."""


def failed_gates(entries: Sequence[Entry]) -> list[str]:
    """Say which conditions were missed, by which row and by how much."""
    missed = [
        f"{_who(entry)}: {gate.name} is {quantity(gate.value)}, needed: {gate.condition}"
        for entry in entries
        for gate in entry.result.gates
        if not gate.passed
    ]
    return list(dict.fromkeys(missed))


def gather_notes(entries: Sequence[Entry], rows: Sequence[Row]) -> list[str]:
    """Return all notes, each once, with the rows it belongs to."""
    results = [entry.result for entry in entries]
    return [
        *_missing_references(rows),
        *_repeated_references(rows),
        *_differing_data(results),
        *_differing_recipes(results),
        *_differing("versions differ", _versions(results)),
        *_differing("times were measured on different machines", _hardware(results)),
        *_result_notes(entries),
        *_cell_notes(rows),
    ]


def _missing_references(rows: Sequence[Row]) -> list[str]:
    roles = {row.role for row in rows}
    notes = []
    if "retain" not in roles:
        notes.append("no retain model in this group: nothing says how low the forget axis should be")
    if "target" not in roles:
        notes.append("no target model in this group: utility cannot be compared to the one before")
    return notes


def _repeated_references(rows: Sequence[Row]) -> list[str]:
    notes = []
    for role in ("target", "retain"):
        labels = [row.label for row in rows if row.role == role]
        if len(labels) > 1:
            notes.append(f"{listing(labels)} all have the role {role}; measured against {labels[0]}")
    return notes


def _differing_data(results: Sequence[BenchResult]) -> list[str]:
    """Name files that carry one name and differ in content."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for name, content in result.data.items():
            found.setdefault(name, {}).setdefault(content, []).append(result.label)
    return [
        f"{name} is not the same file in all rows: {_sides(versions)}"
        for name, versions in found.items()
        if len(versions) > 1
    ]


def _differing_recipes(results: Sequence[BenchResult]) -> list[str]:
    """Name rows whose seeds were not run with the same settings."""
    labels: dict[tuple[str, str], list[BenchResult]] = {}
    for result in results:
        labels.setdefault((result.role, result.label), []).append(result)
    notes = []
    for (_, label), members in labels.items():
        names = dict.fromkeys(name for member in members for name in member.recipe)
        different = [name for name in names if len({member.recipe.get(name) for member in members}) > 1]
        if different:
            notes.append(f"{label}: its seeds differ in {listing(different)}")
    return notes


def _versions(results: Sequence[BenchResult]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    names = dict.fromkeys(name for result in results for name in result.versions)
    for name in names:
        values = {result.versions[name] for result in results if name in result.versions}
        if len(values) > 1:
            for value in sorted(values):
                rows = [result.label for result in results if result.versions.get(name) == value]
                found.setdefault(f"{name} {value}", []).extend(rows)
    return found


def _hardware(results: Sequence[BenchResult]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for result in results:
        if result.hardware and result.seconds:
            found.setdefault(result.hardware, []).append(result.label)
    return found


def _differing(words: str, versions: dict[str, list[str]]) -> list[str]:
    return [f"{words}: {_sides(versions)}"] if len(versions) > 1 else []


def _sides(versions: dict[str, list[str]]) -> str:
    parts = [
        f"{value} ({listing(list(dict.fromkeys(labels)))})"
        for value, labels in list(versions.items())[:MAXIMUM_NAMED]
    ]
    more = len(versions) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _result_notes(entries: Sequence[Entry]) -> list[str]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        for note in entry.result.notes:
            found.setdefault(note, []).append(entry.result.label)
    everyone = {entry.result.label for entry in entries}
    return [
        note if set(labels) == everyone else f"{listing(list(dict.fromkeys(labels)))}: {note}"
        for note, labels in found.items()
    ]


def _cell_notes(rows: Sequence[Row]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for cell in row.cells:
            # A column that models to measure against do not have needs no word.
            if cell.note and not (row.role in REFERENCE_ROLES and cell.note == "not in the file"):
                found.setdefault((cell.metric, cell.note), []).append(row.label)
    everyone = {row.label for row in rows}
    shared: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (metric, note), labels in found.items():
        shared.setdefault((note, tuple(labels)), []).append(metric)
    return [
        f"{_some(metrics)}: {note}"
        if set(labels) == everyone
        else f"{_some(metrics)}, {listing([*labels])}: {note}"
        for (note, labels), metrics in shared.items()
    ]


def _some(names: Sequence[str]) -> str:
    """Name the first few, and count the rest: a benchmark may have a metric for each of 57 subjects."""
    if len(names) <= MAXIMUM_NAMED:
        return listing([*names])
    return f"{', '.join(names[:MAXIMUM_NAMED])} and {len(names) - MAXIMUM_NAMED} more"


def _who(entry: Entry) -> str:
    seed = entry.result.seed
    return entry.result.label if seed is None else f"{entry.result.label}, seed {seed}"
