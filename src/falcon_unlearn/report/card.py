"""Write the model card that travels with the changed model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from falcon_unlearn.config.yaml_text import MAXIMUM_BYTES, parse_yaml
from falcon_unlearn.errors import UsageError
from falcon_unlearn.report.audit_view import audit_note, build_audit_view
from falcon_unlearn.report.compare import changes
from falcon_unlearn.report.facts import repeat_command, tensor_sentence
from falcon_unlearn.report.format import clean, in_unit, listing, quantity
from falcon_unlearn.report.limits import general_limits, specific_limits
from falcon_unlearn.report.records import RunRecords, read_records
from falcon_unlearn.report.verdict import judge
from falcon_unlearn.results import Metric
from falcon_unlearn.results_audit import AttackSummary, AuditResult

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(folder: Path, base_card: str = "") -> str:
    """Write README.md text for the output folder: hub metadata, results, limits, how to repeat.

    Args:
        folder: Output folder of a run, holding the records in `falcon/`.
        base_card: README.md of the original model; its licence is inherited and its text appended.

    Raises:
        UsageError: If a required record is missing or damaged.
    """
    records = read_records(folder)
    metadata, base_text = split_card(base_card)
    parts = [_front_matter(records, metadata), *_body(records)]
    if base_text.strip():
        parts += ["---", "## Card of the original model", base_text.strip()]
    return "\n\n".join(parts) + "\n"


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into its metadata and its text; unreadable metadata counts as none."""
    match = _FRONT_MATTER.match(card)
    if match is None:
        return {}, card
    try:
        metadata = parse_yaml(match.group(1)[:MAXIMUM_BYTES], "the card")
    except UsageError:
        metadata = None
    return (metadata if isinstance(metadata, dict) else {}), card[match.end() :]


def escape_markdown(text: str) -> str:
    """Make a text harmless within a line or a table cell of Markdown."""
    return _MARKDOWN.sub(r"\\\1", " ".join(clean(text).split()))


def _front_matter(records: RunRecords, base: dict[str, Any]) -> str:
    metadata: dict[str, Any] = {key: base[key] for key in _INHERITED if base.get(key)}
    name = records.recipe.model.name
    if _HUB_ID.match(name) and not Path(name).exists():
        metadata["base_model"] = name
        metadata["base_model_relation"] = "finetune"
    metadata["library_name"] = "transformers"
    own = ["unlearning", "falcon-unlearn", records.training.method]
    inherited = base.get("tags")
    tags = [tag for tag in inherited if isinstance(tag, str)] if isinstance(inherited, list) else []
    metadata["tags"] = list(dict.fromkeys([*own, *tags]))
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _body(records: RunRecords) -> list[str]:
    recipe, training = records.recipe, records.training
    compared = None
    if records.before and records.after:
        compared = changes(records.before, records.after, recipe.evaluation.confidence)
    verdict = judge(compared)
    forget = listing([corpus.name for corpus in records.data.corpora if corpus.role == "forget"])
    limits = [*specific_limits(records, compared, verdict), *general_limits(records.audit)]
    name = escape_markdown(records.base_model)
    return [
        f"# {name}, changed by falcon-unlearn",
        f"This model is {name} after unlearning by the {training.method} method. "
        f"It was to forget: {escape_markdown(forget)}. {tensor_sentence(records)}",
        "## Result",
        f"**{escape_markdown(verdict.title)}.**",
        "\n".join(f"- {escape_markdown(sentence)}" for sentence in verdict.sentences),
        *_table(records),
        *(["## Recovery audit", *audit_lines(records.audit)] if records.audit else []),
        "## Limits",
        "\n".join(f"- {escape_markdown(limit)}" for limit in limits),
        "## How to repeat it",
        _code(repeat_command(records)),
        f"Layer {records.selection.layer}, {training.steps_done} steps, learning rate "
        f"{quantity(training.learning_rate)}, seed {recipe.seed}. The recipe, the result of every stage, the "
        "versions and the full report are in `falcon/`.",
    ]


def _table(records: RunRecords) -> list[str]:
    if not (records.before and records.after):
        return []
    rows = ["| set | role | test | items | guessing | before | after |", "|---|---|---|--:|--:|--:|--:|"]
    for change in changes(records.before, records.after, records.recipe.evaluation.confidence):
        chance = change.before.chance
        guessing = "" if chance is None else in_unit(chance, change.before.unit)
        cells = [change.set_name, change.role, change.label, str(change.before.num_items), guessing]
        cells += [_cell(change.before), _cell(change.after)]
        rows.append(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |")
    return [
        "\n".join(rows),
        f"In parentheses: {in_unit(records.recipe.evaluation.confidence, 'share')} intervals.",
    ]


def audit_lines(audit: AuditResult) -> list[str]:
    """Write verdict and attacks as Markdown, those that succeeded first."""
    view = build_audit_view(audit)
    rows = [
        "| attack | variant | test | audited model | null model | recovered | reached |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in sorted(zip(audit.attacks, view.attacks, strict=True), key=lambda pair: -_reached(pair[0])):
        shown = row[1]
        cells = [shown.name, shown.variant, shown.format, shown.accuracy["unlearned"], shown.accuracy["null"]]
        cells += [shown.recovered, shown.reached]
        rows.append(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |")
    reasons = "\n".join(f"- {escape_markdown(reason)}" for reason in view.reasons)
    return [f"**{escape_markdown(audit_note(audit))}**", *([reasons] if reasons else []), "\n".join(rows)]


def _reached(row: AttackSummary) -> float:
    return -1.0 if row.reachable.value is None else row.reachable.value


def _cell(metric: Metric) -> str:
    value, low, high = (in_unit(number, metric.unit) for number in (metric.value, metric.low, metric.high))
    return f"{value} ({low} to {high})"


def _code(command: str) -> str:
    """Fence a command with more backticks than it holds."""
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{clean(command)}\n{fence}"
