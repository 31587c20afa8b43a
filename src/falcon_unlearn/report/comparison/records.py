"""The versioned result of a comparison. Every table and picture is drawn from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from falcon_unlearn.results import Record

COMPARISON_VERSION = 1
CONFIDENCE = 0.95
"""Of the interval over seeds. Item intervals keep the confidence of their result files."""
DEFAULT_TOLERANCE = 0.02

Role = Literal["base", "target", "retain", "retain_replicate", "unlearned", "other"]
State = Literal["", "like retain", "over-forgetting", "outside retain"]
Direction = Literal["lower", "higher", "unknown"]

_MAIN_SETTINGS = frozenset({"corpus", "tier", "forget", "tasks", "model"})

REFERENCE_ROLES: tuple[Role, ...] = ("base", "target", "retain", "retain_replicate")
"""Rows that say what the others are measured against, in the order shown; they compete with nobody."""


class Cell(Record):
    """State one metric of one row."""

    metric: str
    value: float | None
    """Mean over seeds."""
    low: float | None = None
    high: float | None = None
    interval: Literal["items", "seeds", "none"] = "none"
    """What the interval is about: the items of a single result, or the seeds (Student's t)."""
    minimum: float | None = None
    maximum: float | None = None
    num_seeds: int = 0
    """Results with a value."""
    num_items: int = 0
    distance: float | None = None
    """Value minus the retain model's, in the unit of the metric; None where this means nothing."""
    state: State = ""
    """`over-forgetting`: less is known than the range of retain models allows; `outside retain`: the same
    where the side cannot be told."""
    note: str = ""


class Row(Record):
    """State one method, or one model to measure against."""

    role: Role
    label: str
    method: str
    seeds: list[int | None]
    sources: list[str]
    """Names of the files."""
    cells: list[Cell]
    forgetting_cost: float | None
    """Lower is better: distance to the retain model on the forget axis, or the value without one."""
    utility: float | None
    """Mean on the utility axis."""
    on_front: bool | None = None
    """None for reference rows and for rows without a place in the picture."""
    equal_utility: bool | None = None
    """Whether utility is that of the target, within the tolerance; None where that is unknown."""
    trials: int | None = None
    """Settings tried before these were chosen; None where the files do not say."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Mean over seeds, by stage."""
    seconds_total: float | None = None
    """All stages except evaluation."""
    peak_memory_bytes: int | None = None
    """Largest over seeds."""

    def cell(self, metric: str) -> Cell | None:
        """Return a cell by metric."""
        return next((cell for cell in self.cells if cell.metric == metric), None)

    @property
    def is_reference(self) -> bool:
        """Tell a model to measure against from a method."""
        return self.role in REFERENCE_ROLES


class Column(Record):
    """Describe one metric."""

    name: str
    desired: Literal["lower", "higher", "retain model", "none"]
    retain: float | None = None
    """Value of the retain model, where the metric is judged against it."""
    retain_low: float | None = None
    retain_high: float | None = None
    """Range of the retain models: over the item intervals of the reference, all seeds, and replicates."""
    forgetting: Direction = "unknown"
    """The side of the retain model on which less is known."""


class Group(Record):
    """Hold the rows that may be compared: one benchmark in one setting."""

    benchmark: str
    setting: dict[str, str]
    forget_axis: str
    utility_axis: str
    higher_utility: bool
    """False where a lower value of the utility axis is the better one, as for perplexity."""
    target: str | None
    retain: str | None
    """Labels of the rows measured against."""
    columns: list[Column]
    rows: list[Row]
    failed_gates: list[str]
    notes: list[str]

    def column(self, name: str) -> Column | None:
        """Return a column by metric."""
        return next((column for column in self.columns if column.name == name), None)

    def row(self, role: str) -> Row | None:
        """Return the first row of a role."""
        return next((row for row in self.rows if row.role == role), None)

    @property
    def title(self) -> str:
        """Name benchmark and setting."""
        return self._named(self.setting)

    @property
    def heading(self) -> str:
        """Name benchmark and what tells settings apart at a glance."""
        return self._named([key for key in self.setting if key in _MAIN_SETTINGS])

    def _named(self, keys: Iterable[str]) -> str:
        name = {"run": "Own data"}.get(self.benchmark, self.benchmark.upper())
        return ", ".join([name, *(f"{key} {self.setting[key]}" for key in keys)])

    @property
    def cost_name(self) -> str:
        """Name what `forgetting_cost` is."""
        column = self.column(self.forget_axis)
        judged = column is not None and column.retain is not None
        return f"distance of {self.forget_axis} to {self.retain}" if judged else self.forget_axis


class Comparison(Record):
    """Record one comparison."""

    version: int = COMPARISON_VERSION
    utility_tolerance: float
    """In the unit of the utility axis."""
    confidence: float = CONFIDENCE
    """Of intervals over seeds."""
    groups: list[Group]
