"""Versioned records that every stage writes. The report, the card and `--json` read only these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Refuse unknown fields and later changes, so that a result file means one thing."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class CorpusCount(Record):
    """Count what became of one corpus."""

    name: str
    role: Literal["forget", "retain"]
    source: str
    """File name or data set id, never an absolute path."""
    sha256: str
    """Hash of the loaded texts in file order."""
    read: int
    too_short: int
    cut: int
    """Examples shortened to the maximum length."""
    duplicates: int
    overlapping: int
    """Retain examples found in a forget set."""
    training: int
    held_out: int
    tokens: int
    """Training tokens."""


class EnvironmentDifference(Record):
    """State one difference between the environment of a run and another one."""

    name: str
    recorded: str
    now: str
    grade: Literal["low", "medium", "high", "critical"]
    """How much it can change a result; `runs/grading.py` says what each grade means."""


class FileHash(Record):
    """Identify one file."""

    name: str
    bytes: int
    sha256: str


class DataResult(Record):
    """Record the data stage."""

    version: int = SCHEMA_VERSION
    corpora: list[CorpusCount]
    warnings: list[str] = Field(default_factory=list)
    evaluation_files: dict[str, FileHash] = Field(default_factory=dict)
    """The file of every evaluation set, by the name of the set, so that `verify` can ask for it again."""


class LayerValue(Record):
    """Score one layer."""

    layer: int
    value: float
    """Nats, or a cosine for the gradient-conflict estimator."""
    low: float
    high: float
    null_mean: float | None = None
    null_low: float | None = None
    null_high: float | None = None
    components: int | None = None
    probability_best: float
    """Share of bootstrap resamples in which this layer is the best candidate."""
    candidate: bool
    fall: float | None = None
    """Fall of the log-probability of other forget text after a short trial here, nats per token."""
    fall_error: float | None = None
    """Standard error of the fall, over texts."""
    flags: list[str] = Field(default_factory=list)


class TrialRecord(Record):
    """Record the trial that confirmed or replaced the layer; the falls stand with the layers."""

    updates: int
    speed: float
    measured: int
    """Forget texts on which the falls were measured, worded unlike those that the trial trained on."""
    share: float
    strongest_layer: int | None
    """Where the fall is largest; None where no trial lowered the log-probability."""
    seconds: float


class SelectionResult(Record):
    """Record step 1."""

    version: int = SCHEMA_VERSION
    estimator: str
    unit: Literal["nats", "cosine", "none"]
    layer: int
    """The chosen loss layer, 0-based."""
    best_layer: int
    """The bare optimum among the candidates."""
    fixed: bool
    """True when the user fixed the layer; then `layers` is empty."""
    rule: str
    tied_layers: list[int] = Field(default_factory=list)
    """Candidates that the data cannot tell from the optimum."""
    trial: TrialRecord | None = None
    """None where no trial ran."""
    rank_stability: float | None = None
    """Mean Spearman correlation of bootstrap rankings with the ranking shown."""
    layers: list[LayerValue] = Field(default_factory=list)
    samples: dict[str, int] = Field(default_factory=dict)
    pooling: str = ""
    eta: float = 0.0
    explanation: str = ""
    """One paragraph for people: why this layer."""
    seconds_forward: float = 0.0
    seconds_estimator: float = 0.0


class TensorChange(Record):
    """Describe how one tensor changed."""

    name: str
    shape: list[int]
    norm_before: float
    norm_change: float
    """Frobenius norm of the difference."""
    relative_change: float
    largest_change: float


class TrainingResult(Record):
    """Record steps 2 and 3."""

    version: int = SCHEMA_VERSION
    method: str
    status: Literal["completed", "stopped_on_budget"]
    steps_planned: int
    steps_done: int
    kept_step: int
    """Step whose parameters were kept."""
    utility_loss: float | None = None
    """Relative rise of the perplexity of held-out retain text, where `train.maximum_utility_loss` is set."""
    window: tuple[int, int]
    """First and last block executed, 0-based, inclusive."""
    trained: list[str]
    trained_parameters: int
    total_parameters: int
    learning_rate: float
    compute_dtype: str
    history: list[dict[str, float]]
    """One row per step: step, domain, forget_loss, retain_loss, conflict_share, cosine:<tensor>,
    forget_norm, retain_norm, sink_norm, retain_drift, retain_cosine_distance, learning_rate, seconds; methods
    on outputs: forget_log_probability, retain_log_probability, mean_cosine instead of states and tensors."""
    domains: list[str]
    """Index used in the `domain` column of the history."""
    changes: list[TensorChange]
    seconds_cache: float
    seconds_train: float
    cached_tokens: int
    cache_bytes: int
    peak_memory_bytes: int
    """Peak resident memory of the process."""
    flops: dict[str, float] = Field(default_factory=dict)
    """FLOP by part: cache, train."""
    bytes_read: int = 0
    """Bytes of weights read from disk while caching and training; 0 for a model in memory."""
    seconds_read: float = 0.0
    """Wall time of that, inside the other two."""


class Metric(Record):
    """State one number with its interval."""

    name: str
    """accuracy_text, accuracy_letter, letter_mass, accuracy_generation, perplexity, divergence,
    answer_probability, rouge_l, extraction_strength, exact_memorisation."""
    value: float
    low: float
    high: float
    interval: Literal["wilson", "bootstrap"]
    unit: Literal["share", "per token", "nats per token", "ratio"]
    chance: float | None = None
    desired: Literal["lower", "unchanged", "higher"]
    num_items: int


class GenerationSample(Record):
    """Keep one generation for the report."""

    prompt: str
    completion: str
    expected: str
    correct: bool


class EvaluationItem(Record):
    """Keep one scored item."""

    id: str
    cluster: str = ""
    metric: str
    value: float


class SetResult(Record):
    """Record all metrics of one evaluation set."""

    name: str
    role: Literal["forget", "neighbour", "retain", "general"]
    kind: Literal["choice", "generation", "perplexity", "divergence", "answer"]
    num_items: int
    metrics: list[Metric]
    samples: list[GenerationSample] = Field(default_factory=list)
    items: list[EvaluationItem] = Field(default_factory=list)


class EvaluationResult(Record):
    """Record one evaluation of one model."""

    version: int = SCHEMA_VERSION
    label: Literal["before", "after", "single"]
    model: str
    sets: list[SetResult]
    skipped: list[str] = Field(default_factory=list)
    """Metrics that were not computed, each with the reason."""
    seconds: float
    compute_dtype: str = ""
    """Dtype of the arithmetic; empty in records of versions that did not say."""


class EnvironmentResult(Record):
    """Record the machine and the versions."""

    version: int = SCHEMA_VERSION
    python: str
    platform: str
    packages: dict[str, str]
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    device: str
    seed: int | None = None
    started: str
    """UTC time, ISO 8601."""


class DeltaTensor(Record):
    """Name one changed tensor."""

    name: str
    shard: str
    """Weight file of the base that holds it."""
    shape: list[int]


class DeltaManifest(Record):
    """Say what a delta folder changes, and which base it belongs to."""

    version: int = SCHEMA_VERSION
    base_model: str
    base_sha256: dict[str, str]
    """Hash of every weight file of the base."""
    result_sha256: dict[str, str]
    """Hash that each changed weight file has after the delta is applied."""
    tensors: list[DeltaTensor]
    delta_sha256: str
    """Hash of delta.safetensors."""


class ExportResult(Record):
    """Record what an export wrote."""

    version: int = SCHEMA_VERSION
    output: str
    base_model: str
    tensors: list[str]
    """Tensors that differ from the base."""
    weight_files: dict[str, int]
    """Number of weight files by how they were made: rewritten, reflink, hardlink, copy."""


class Manifest(Record):
    """Close a run folder; written last, so a folder without it is not finished."""

    version: int = SCHEMA_VERSION
    package_version: str
    fingerprint: str
    """Hash of the resolved recipe, the data, the weights and the code version."""
    base_model: str
    base_weights_sha256: dict[str, str]
    files: list[FileHash]
    command: str
    """A command that repeats the run."""
    seconds: dict[str, float]
    """Wall time by stage."""


def comparison_rows(before: EvaluationResult, after: EvaluationResult) -> list[dict[str, Any]]:
    """Pair the metrics of two evaluations, in the order of `before`: set, role, metric, before, after."""
    later = {(s.name, m.name): m for s in after.sets for m in s.metrics}
    return [
        {"set": s.name, "role": s.role, "before": m, "after": later[s.name, m.name]}
        for s in before.sets
        for m in s.metrics
        if (s.name, m.name) in later
    ]


class CoverageRow(Record):
    """Say how one kind of block part was recognised."""

    role: str
    """mlp.down, mlp.up, mlp.gate, attention.query, attention.output ..."""
    pattern: str
    """Parameter name with {layer} for the block index."""
    blocks: int
    """Number of blocks in which it was found."""
    shape: list[int]


class PlanResult(Record):
    """Say what a run would do; made without loading weights."""

    version: int = SCHEMA_VERSION
    model: str
    architecture: str
    blocks: int
    hidden_size: int
    total_parameters: int
    coverage: list[CoverageRow]
    layer: int | None
    """None while the selection has not run; then the window below is the costliest candidate."""
    window: tuple[int, int]
    trained: list[str]
    trained_parameters: int
    steps: int
    batch_size: int
    streamed: bool = False
    """True when the model stays on disk and is read block by block."""
    placement: str = ""
    """Why."""
    memory_bytes: dict[str, int]
    """Predicted peak by part, and `total`."""
    disk_bytes: dict[str, int]
    """`store` while running, `output` the finished folder, `written` what of it is no shared file."""
    flops: dict[str, float]
    """selection, trial, cache, train, evaluation."""
    seconds: dict[str, float]
    """Estimate from the measured matrix-product speed of this machine."""
    metrics: list[str]
    not_computed: list[str]
    """Metrics that will be missing, each with the reason."""
    warnings: list[str] = Field(default_factory=list)


class RunSummary(Record):
    """Point to everything a finished run produced."""

    version: int = SCHEMA_VERSION
    output: str
    report: str | None
    data: DataResult
    selection: SelectionResult
    training: TrainingResult
    before: EvaluationResult | None
    after: EvaluationResult | None
    seconds: dict[str, float]
    collapse: list[str] = Field(default_factory=list)
    """Kept sets on which the model broke, each with the figures; empty when it did not."""
