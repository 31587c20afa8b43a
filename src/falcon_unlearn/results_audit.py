"""The versioned result of a recovery audit. Report, card and gates read only these records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.results import EnvironmentResult, Record

AUDIT_VERSION = 1
ModelRole = Literal["original", "unlearned", "null"]
SetRole = Literal["forget", "neighbour", "retain", "general"]
Split = Literal["attack", "selection", "report"]
FormatName = Literal["letter", "text", "generation"]
Verdict = Literal["removed (bounded)", "suppressed", "not removed", "damaged", "inconclusive"]
NO_ATTACK = "none"
AUDIT_FILE = "audit.json"


class ItemRow(Record):
    """State one item of one model under one attack in one format."""

    model: ModelRole
    attack: str
    """`none`: the model as it is."""
    variant: str
    seed: int
    format: FormatName
    set: SetRole
    split: Split
    item: str
    cluster: str
    value: float
    """Share of correct answers: 0 or 1, between them where cyclic orders or samples are averaged."""
    probability: float | None = None
    """Probability of the right option among the options; None for free answers."""
    letter_mass: float | None = None
    """Probability that the next token is one of the letters."""
    letter_entropy: float | None = None
    """Entropy in nats of the letters' shares."""
    chosen: str = ""
    """Letters chosen, one per cyclic order."""
    answer: str = ""
    """Free answer, as far as it is judged."""
    distinct_2: float | None = None
    repetition: float | None = None


class Estimate(Record):
    """State one number with its interval."""

    value: float | None
    """None: not defined here, `note` says why."""
    low: float | None = None
    high: float | None = None
    note: str = ""


class Baseline(Record):
    """State what the models know in one format without any attack."""

    format: FormatName
    num_items: int
    num_clusters: int
    accuracy: dict[ModelRole, Estimate]
    retain_accuracy: dict[ModelRole, Estimate]
    neighbour_accuracy: dict[ModelRole, Estimate] = Field(default_factory=dict)
    informative: bool
    """Whether the original knows more than the null by at least two standard errors."""
    knowledge_left: Estimate
    """(m_unlearned - m_null) / (m_original - m_null)."""
    removed_share: Estimate
    """(m_original - m_unlearned) / (m_original - m_null)."""
    utility_loss: Estimate
    """Relative loss of retain accuracy against the original; negative: gain."""
    letter_mass: dict[ModelRole, float] = Field(default_factory=dict)
    """Median over the forget facts; letter format only."""
    degenerate: dict[ModelRole, float] = Field(default_factory=dict)
    """Share of degenerate free answers to retain and neighbour questions; generation only."""
    detectable_change: float = 0.0
    """Smallest paired change of accuracy that is found with 80 % power."""
    detectable_share: float | None = None
    """The same as a share of m_original - m_null."""


class AttackSummary(Record):
    """State what one attack recovered in one format, in its variant chosen on the selection split."""

    attack: str
    variant: str
    format: FormatName
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
    reachable: Estimate = Estimate(value=None)
    """(m_unlearned - m_null), both attacked, over m_original - m_null, neither attacked: the share of the
    knowledge that this attack reaches. Equals knowledge left without attack plus net recovery."""
    p_reachable: float | None = None
    """One-sided sign-flip test over clusters of `reachable` > 0, before Holm's correction."""
    p_reachable_adjusted: float | None = None
    p_value: float | None = None
    """Exact McNemar of attacked against unattacked, before Holm's correction."""
    p_adjusted: float | None = None
    discordant: tuple[int, int] = (0, 0)
    """Items that the attack turned right, and wrong."""
    counts: bool = True
    """False: it cannot count towards worst case and verdict; `note` says why."""
    note: str = ""
    retain_change: Estimate = Estimate(value=None)
    """Relative change of the unlearned model's retain accuracy by the attack."""
    seed_deviation: float | None = None
    """Standard deviation of the attacked forget accuracy between seeds."""
    destroys_model: bool = False
    """Retain accuracy fell by more than the limit: the attack does not count."""
    forward_equivalents: float = 0.0
    seconds: float = 0.0
    details: dict[str, float | str] = Field(default_factory=dict)


class ControlSummary(Record):
    """State what a control of an attack (random direction, random mask) recovered."""

    attack: str
    variant: str
    control: str
    format: FormatName
    accuracy: Estimate
    """Forget accuracy of the unlearned model."""


class WorstCase(Record):
    """State the attack that did best on the selection facts, measured on the report facts."""

    format: FormatName
    attack: str
    """`none`: no attack counts."""
    variant: str
    net_recovered: Estimate
    reachable: Estimate
    recovered: Estimate


class MembershipScore(Record):
    """State how well one score tells answers that were learnt from others."""

    name: Literal["loss", "zlib", "min_k", "min_k_plus_plus", "reference"]
    auc: Estimate
    """Chance that a text that was not learnt scores above one that was: 1 finds all, about .5 none."""
    true_positive_rate: float | None
    """Share found where 1 % of the others are taken for learnt; None: fewer than 100 others."""


class ModelMemorisation(Record):
    """State how much of the forget answers one model reproduces, and what their losses betray."""

    model: ModelRole
    extraction_strength: Estimate
    exact_memorisation: Estimate
    extraction_strength_others: Estimate
    """The same of the texts that were not learnt."""
    membership: list[MembershipScore]


class MemorisationResult(Record):
    """Record statistics that are no recovery attack: memorisation and membership of the report facts."""

    num_members: int
    num_others: int
    others: str
    """What the texts are that were not learnt."""
    blind: Estimate
    """AUC of words alone, without any model: above .5 the texts differ by themselves."""
    models: list[ModelMemorisation]


class AuditedModelRecord(Record):
    """Identify one model of the audit."""

    role: ModelRole
    name: str
    weights_sha256: str
    tokenizer_sha256: str
    parameters: int
    compute_dtype: str


class AuditSetRecord(Record):
    """Count the facts of one set."""

    role: SetRole
    source: str
    sha256: str
    facts: int
    clusters: int
    attack: int = 0
    selection: int = 0
    report: int = 0


class AuditWarning(Record):
    """Name a known pitfall that this audit ran into."""

    number: int
    """Row of the table of pitfalls in docs/audit.md."""
    name: str
    message: str


class AuditGate(Record):
    """State one limit that the user set."""

    expression: str
    metric: str
    limit: float
    value: float | None
    """None: not defined here, which fails the gate."""
    passed: bool


class AuditResult(Record):
    """Record one audit."""

    version: int = AUDIT_VERSION
    package_version: str
    tier: Literal["quick", "full"]
    seeds: list[int]
    chat_template: bool
    null_source: Literal["model", "chance"]
    """Where the zero of the knowledge scale comes from; with `chance` nothing is called removed."""
    models: list[AuditedModelRecord]
    sets: list[AuditSetRecord]
    settings: dict[str, float | int | str | bool]
    """Thresholds of the verdict and sizes."""
    baselines: list[Baseline]
    attacks: list[AttackSummary]
    controls: list[ControlSummary] = Field(default_factory=list)
    worst: list[WorstCase]
    """One per format."""
    verdict: Verdict
    reasons: list[str]
    """Why, in sentences with numbers."""
    format_verdicts: dict[FormatName, Verdict]
    warnings: list[AuditWarning] = Field(default_factory=list)
    skipped: list[str] = Field(default_factory=list)
    """Attacks and formats that were not run, each with the reason."""
    gates: list[AuditGate] = Field(default_factory=list)
    memorisation: MemorisationResult | None = None
    items_file: str = "audit.items.jsonl"
    environment: EnvironmentResult
    seconds: float = 0.0

    def baseline(self, format: FormatName) -> Baseline | None:
        """Return the baseline of a format."""
        return next((entry for entry in self.baselines if entry.format == format), None)
