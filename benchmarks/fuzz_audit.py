"""Loaders of an audit's files, for fuzz_loaders.py: its record, the page made of it, and its journal.

No command reads `audit.items.jsonl` or what `verify` prints, so neither has a loader to try.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from falcon_unlearn.audit.keeping import Memory
from falcon_unlearn.report.html import render_audit
from falcon_unlearn.report.records import read_audit
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
from falcon_unlearn.runs import Journal

Case = tuple[str, list[bytes], Callable[[bytes], Any]]
"""Name, valid inputs and what reads them."""


def audit_cases(folder: Path) -> list[Case]:
    """List the readers of audits; their files go into a folder of their own."""
    place = folder / "audit"
    place.mkdir()
    record, journal = place / "audit.json", place / "audit.journal.jsonl"

    def read(content: bytes) -> Any:
        record.write_bytes(content)
        return read_audit(place)

    def show(content: bytes) -> Any:
        record.write_bytes(content)
        return render_audit(place)

    def remember(content: bytes) -> Any:
        journal.write_bytes(content)
        memory = Memory(Journal(journal))
        return memory.scores("scores") if memory.get("scores") else None

    good = [_audit().model_dump_json().encode()]
    return [
        ("audit record", good, read),
        ("audit page", good, show),
        ("audit journal", [_journal(folder / "seed.audit.jsonl")], remember),
    ]


def _audit() -> AuditResult:
    half = Estimate(value=0.5, low=0.4, high=0.6)
    roles = ("original", "unlearned", "null")
    everyone = dict.fromkeys(roles, half)
    attack = {"attack": "relearning", "variant": "v", "format": "text"}
    return AuditResult(
        package_version="0",
        tier="quick",
        seeds=[0],
        chat_template=False,
        null_source="model",
        models=[
            AuditedModelRecord(
                role=role,
                name="m",
                weights_sha256="0",
                tokenizer_sha256="1",
                parameters=1,
                compute_dtype="float32",
            )
            for role in roles
        ],
        sets=[AuditSetRecord(role="forget", source="f.jsonl", sha256="2", facts=9, clusters=3)],
        settings={"delta": 0.1},
        baselines=[
            Baseline(
                format="text",
                num_items=9,
                num_clusters=3,
                accuracy=everyone,
                retain_accuracy=everyone,
                informative=True,
                knowledge_left=half,
                removed_share=half,
                utility_loss=half,
            )
        ],
        attacks=[
            AttackSummary(
                **attack,
                tier="quick",
                access="weights",
                knowledge="forget answers",
                seeds=[0],
                accuracy=everyone,
                retain_accuracy={"unlearned": half},
                recovered=half,
                net_recovered=half,
                knowledge_left=half,
                reachable=half,
                p_reachable_adjusted=0.01,
                retain_change=half,
                forward_equivalents=1.0,
                seconds=1.0,
            )
        ],
        controls=[ControlSummary(**attack, control="random", accuracy=half)],
        worst=[WorstCase(**attack, net_recovered=half, reachable=half, recovered=half)],
        verdict="suppressed",
        reasons=["r"],
        format_verdicts={"text": "suppressed"},
        warnings=[AuditWarning(number=3, name="n", message="m")],
        gates=[AuditGate(expression="worst<=0.2", metric="worst", limit=0.2, value=0.7, passed=False)],
        environment=EnvironmentResult(
            python="3",
            platform="x",
            packages={},
            processor="p",
            cores=1,
            threads=1,
            memory_bytes=1,
            device="cpu",
            started="2026-01-01T00:00:00Z",
        ),
    )


def _journal(path: Path) -> bytes:
    row = {"item": "f0", "cluster": "c", "format": "text", "value": 1.0, "leaks": [[1, 0.5]]}
    journal = Journal(path)
    journal.append("scores", {"scores": [row]})
    journal.append("other", {"value": 1.5})
    return path.read_bytes()
