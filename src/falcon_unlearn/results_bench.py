"""The versioned result of one model on one benchmark. Tables and pictures read only these files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.results import Record

BENCH_VERSION = 1


class BenchMetric(Record):
    """State one number with its interval."""

    name: str
    value: float | None
    """None when the metric cannot be computed; `note` says why."""
    low: float | None = None
    high: float | None = None
    interval: Literal["wilson", "bootstrap", "exact", "none"] = "none"
    num_items: int = 0
    desired: Literal["lower", "higher", "retain model", "none"] = "none"
    """`retain model`: as near as possible to the model that never saw the forget data; beyond it is
    over-forgetting."""
    note: str = ""


class Gate(Record):
    """State one condition without which the table means nothing."""

    name: str
    passed: bool
    value: float
    condition: str


class BenchResult(Record):
    """Record one model on one benchmark."""

    version: int = BENCH_VERSION
    benchmark: Literal["tofu", "muse", "wmdp", "run"]
    """`run`: own data, made from the records of a run folder."""
    setting: dict[str, str]
    """Split, tier, sizes: two results compare only when these are equal."""
    role: Literal["base", "target", "retain", "retain_replicate", "unlearned", "other"]
    label: str
    """Row name, such as `NPO` or `retain A`."""
    method: str = ""
    seed: int | None = None
    model: str
    """Public name, never an absolute path."""
    metrics: list[BenchMetric]
    forget_axis: str
    """Metric that says how much is still known, for pictures."""
    utility_axis: str
    gates: list[Gate] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """Warnings that belong beside the numbers: release of the questions, stand-in data, failed gates."""
    data: dict[str, str] = Field(default_factory=dict)
    """File name to sha256 and number of rows."""
    recipe: dict[str, str] = Field(default_factory=dict)
    """Settings that were tuned, with the number of trials."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """train, evaluation ..."""
    peak_memory_bytes: int | None = None
    memory: dict[str, int] = Field(default_factory=dict)
    """Peak bytes of each stage of this row: `unlearning`, `evaluation`; `... on device` on an accelerator."""
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: str = ""

    def metric(self, name: str) -> BenchMetric | None:
        """Return a metric by name."""
        return next((metric for metric in self.metrics if metric.name == name), None)
