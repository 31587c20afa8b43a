"""Turn result files into one self-contained HTML report and a model card; needs no torch."""

from __future__ import annotations

from falcon_unlearn.report.card import model_card
from falcon_unlearn.report.html import render_audit, render_report

__all__ = ["model_card", "render_audit", "render_report"]
