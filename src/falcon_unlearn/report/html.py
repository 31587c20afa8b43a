"""Render one run folder as one HTML file that needs nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from falcon_unlearn.report import format as words
from falcon_unlearn.report.audit_view import build_audit_view
from falcon_unlearn.report.records import read_audit, read_records
from falcon_unlearn.report.view import ReportView, build_view
from falcon_unlearn.runs import RECORDS, write_text_atomic

FILE_NAME = "report.html"
AUDIT_FILE_NAME = "audit.html"


def render_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run folder and return its path.

    Args:
        folder: Output folder of a run, holding the records in `falcon/`.
        output: Where to write; default `folder`/falcon/report.html.

    Raises:
        UsageError: If a required record is missing or damaged, or the file cannot be written.
    """
    target = output or folder / RECORDS / FILE_NAME
    write_text_atomic(target, render_view(build_view(read_records(folder))))
    return target


def render_audit(folder: Path, output: Path | None = None) -> Path:
    """Write the page of an audit that stands alone, and return its path.

    Args:
        folder: Folder with `audit.json`.
        output: Where to write; default `folder`/audit.html.

    Raises:
        UsageError: If the record is missing or damaged, or the file cannot be written.
    """
    audit = read_audit(folder)
    audited = next((model.name for model in audit.models if model.role == "unlearned"), "model")
    page = environment().get_template("audit.html.jinja")
    text = page.render(
        audit=build_audit_view(audit),
        name=audited,
        tier=audit.tier,
        environment=audit.environment,
        version=audit.package_version,
    )
    target = output or folder / AUDIT_FILE_NAME
    write_text_atomic(target, text)
    return target


def render_view(view: ReportView) -> str:
    """Fill the templates. All text is escaped; control characters are removed from every value."""
    return environment().get_template("report.html.jinja").render(view=view)


@cache
def environment() -> Environment:
    """Return the template environment with what it compiled: escaping on, undefined names are errors."""
    templates = Environment(
        loader=PackageLoader("falcon_unlearn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for formatter in (
        words.duration,
        words.in_unit,
        words.points,
        words.quantity,
        words.share,
        words.signed,
    ):
        templates.filters[formatter.__name__] = formatter
    return templates


def _finalize(value: Any) -> Any:
    """Clean plain text; charts are Markup already, built from cleaned and escaped parts."""
    return words.clean(value) if type(value) is str else value
