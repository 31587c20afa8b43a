"""The only place that knows the order: prepare, measure, select, unlearn, measure, write, report."""

from __future__ import annotations

from falcon_unlearn.pipeline.auditing import AuditRequest, audit_folder, audit_models
from falcon_unlearn.pipeline.evaluating import evaluate_model
from falcon_unlearn.pipeline.exporting import export_model
from falcon_unlearn.pipeline.planning import plan_run
from falcon_unlearn.pipeline.running import run_loaded, run_pipeline, unlearn
from falcon_unlearn.pipeline.selecting import select_layer
from falcon_unlearn.pipeline.workspace import validate_data

__all__ = [
    "AuditRequest",
    "audit_folder",
    "audit_models",
    "evaluate_model",
    "export_model",
    "plan_run",
    "run_loaded",
    "run_pipeline",
    "select_layer",
    "unlearn",
    "validate_data",
]
