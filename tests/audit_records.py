"""Invent the record of a recovery audit, small and complete."""

from __future__ import annotations

from typing import Any

from falcon_unlearn.results import EnvironmentResult
from falcon_unlearn.results_audit import (
    AttackSummary,
    AuditedModelRecord,
    AuditGate,
    AuditResult,
    AuditSetRecord,
    AuditWarning,
    Baseline,
    ControlSummary,
    Estimate,
    WorstCase,
)

ATTACKS = {"none": 0.05, "relearning": 0.82, "quantisation": 0.1, "direction_ablation": -0.04}


def estimate(value: float, width: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value - width, high=value + width)


def attack(name: str, reached: float, format: str = "text", **changes: Any) -> AttackSummary:
    values: dict[str, Any] = {
        "attack": name,
        "variant": "" if name == "none" else "variant-1",
        "format": format,
        "tier": "quick",
        "access": "weights",
        "knowledge": "forget answers",
        "seeds": [0, 1, 2],
        "accuracy": {"original": estimate(0.9), "unlearned": estimate(0.3), "null": estimate(0.25)},
        "retain_accuracy": {"unlearned": estimate(0.9)},
        "recovered": estimate(reached),
        "net_recovered": estimate(reached - 0.05),
        "knowledge_left": estimate(reached),
        "reachable": estimate(reached),
        "p_reachable_adjusted": 0.001,
        "retain_change": estimate(-0.01),
        "forward_equivalents": 1200.0,
        "seconds": 12.5,
    }
    return AttackSummary(**(values | changes))


def baseline(format: str = "text", *, informative: bool = True) -> Baseline:
    return Baseline(
        format=format,
        num_items=120,
        num_clusters=40,
        accuracy={"original": estimate(0.9), "unlearned": estimate(0.3), "null": estimate(0.25)},
        retain_accuracy={"original": estimate(0.95), "unlearned": estimate(0.94), "null": estimate(0.95)},
        informative=informative,
        knowledge_left=estimate(0.05),
        removed_share=estimate(0.95),
        utility_loss=estimate(0.01),
    )


def audit_record(**changes: Any) -> AuditResult:
    values: dict[str, Any] = {
        "package_version": "0.0",
        "tier": "quick",
        "seeds": [0, 1, 2],
        "chat_template": False,
        "null_source": "model",
        "models": [
            AuditedModelRecord(
                role=role,
                name=f"the {role}",
                weights_sha256="0" * 64,
                tokenizer_sha256="1" * 64,
                parameters=10,
                compute_dtype="float32",
            )
            for role in ("original", "unlearned", "null")
        ],
        "sets": [
            AuditSetRecord(
                role="forget",
                source="forget.jsonl",
                sha256="2" * 64,
                facts=240,
                clusters=80,
                attack=72,
                selection=48,
                report=120,
            )
        ],
        "settings": {"delta": 0.1, "alpha": 0.05},
        "baselines": [baseline("letter", informative=False), baseline()],
        "attacks": [attack(name, reached) for name, reached in ATTACKS.items()],
        "controls": [
            ControlSummary(
                attack="direction_ablation",
                variant="random-1",
                control="random direction",
                format="text",
                accuracy=estimate(0.28),
            )
        ],
        "worst": [
            WorstCase(
                format="text",
                attack="relearning",
                variant="variant-1",
                net_recovered=estimate(0.77),
                reachable=estimate(0.82),
                recovered=estimate(0.82),
            )
        ],
        "verdict": "suppressed",
        "reasons": ["relearning (variant-1) reaches 82% of the knowledge"],
        "format_verdicts": {"letter": "inconclusive", "text": "suppressed"},
        "warnings": [AuditWarning(number=3, name="choice only", message="free answers were not asked")],
        "skipped": ["gcg: full tier only"],
        "gates": [AuditGate(expression="worst<=0.2", metric="worst", limit=0.2, value=0.77, passed=False)],
        "environment": EnvironmentResult(
            python="3.11",
            platform="test",
            packages={},
            processor="test",
            cores=2,
            threads=1,
            memory_bytes=1,
            device="cpu",
            started="2026-01-01T00:00:00+00:00",
        ),
        "seconds": 321.0,
    }
    return AuditResult(**(values | changes))
