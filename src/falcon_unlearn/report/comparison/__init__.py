"""Compare results of several models from their result files alone; needs no torch."""

from __future__ import annotations

from falcon_unlearn.report.comparison.build import compare_results
from falcon_unlearn.report.comparison.page import render_page, write_comparison
from falcon_unlearn.report.comparison.records import Cell, Column, Comparison, Group, Row
from falcon_unlearn.report.comparison.tables import to_csv, to_markdown

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Group",
    "Row",
    "compare_results",
    "render_page",
    "to_csv",
    "to_markdown",
    "write_comparison",
]
