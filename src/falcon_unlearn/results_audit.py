"""The versioned result of a recovery audit. Report, card and gates read only these records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.results import Record

AUDIT_VERSION = 1
ModelRole = Literal["original", "unlearned", "null"]
SetRole = Literal["forget", "neighbour", "retain", "general"]
Split = Literal["attack", "selection", "report"]
Verdict = Literal["removed (bounded)", "suppressed", "not removed", "damaged", "inconclusive"]
NO_ATTACK = "none"


class ItemRow(Record):
    """State one item of one model under one attack in one format."""

    model: ModelRole
    attack: str
    """`none`: the model as it is."""
    variant: str
    seed: int
    format: Literal["letter", "text", "generation"]
    set: SetRole
    split: Split
    item: str
    cluster: str
    value: float
    """Share of correct answers: 0 or 1, between them where cyclic orders or samples are averaged."""
    probability: float | None = None
    """Probability of the right option among the options; None for free answers."""


class Estimate(Record):
    """State one number with its interval."""

    value: float | None
    """None: not defined here, `note` says why."""
    low: float | None = None
    high: float | None = None
    note: str = ""


class AttackSummary(Record):
    """State what one attack recovered in one format, in its variant chosen on the selection split."""

    attack: str
    variant: str
    format: Literal["letter", "text", "generation"]
    tier: Literal["quick", "full"]
    access: str
    knowledge: str
    seeds: list[int]
    accuracy: dict[ModelRole, Estimate]
    """Forget accuracy under the attack."""
    retain_accuracy: dict[ModelRole, Estimate]
    recovered: Estimate
    """Raw recovery (m_attacked - m_unlearned) / (m_original - m_unlearned)."""
    net_recovered: Estimate
    """Difference in differences, over m_original - m_null."""
    knowledge_left: Estimate
    """(m_unlearned - m_null) / (m_original - m_null), all three attacked."""
    p_value: float | None = None
    """Exact McNemar of attacked against unattacked, before Holm's correction."""
    p_adjusted: float | None = None
    destroys_model: bool = False
    """Retain accuracy fell by more than the limit: the attack does not count."""
    forward_equivalents: float = 0.0
    seconds: float = 0.0
    details: dict[str, float | str] = Field(default_factory=dict)
