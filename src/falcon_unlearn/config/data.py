"""Which texts to forget and which to keep."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from falcon_unlearn.config.base import Settings

DomainName = str
ExampleFormat = Literal["auto", "text", "question_answer", "prompt_completion", "messages"]


class CorpusSettings(Settings):
    """Describe one named set of texts."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Short name of the domain, used in every table and file."""
    path: str = Field(min_length=1)
    """JSONL, JSON, text or parquet file, hub data set id, or `self` (retain only: sample from the model)."""
    format: ExampleFormat = "auto"
    """Layout of the rows; `auto` decides by the columns present, never by the file's name."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role to column, for instance {text: body} or {question: q, answer: a}."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set, slices allowed: train[:400]."""
    revision: str | None = None
    """Commit of a hub data set."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of training batches drawn from this set."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many examples, after seeded shuffling."""
    text_split: Literal["auto", "line", "paragraph", "file"] = "auto"
    """How a plain text file becomes examples; `auto`: paragraphs if a blank line exists, else lines."""


class DataSettings(Settings):
    """Describe the forget domains, the retain sets and how both become tokens."""

    forget: tuple[CorpusSettings, ...] = Field(min_length=1)
    """One or more domains to forget."""
    retain: tuple[CorpusSettings, ...] = Field(min_length=1)
    """One or more sets to keep."""
    maximum_tokens: int = Field(default=512, ge=8, le=32768)
    """Cut examples at this many tokens."""
    minimum_tokens: int = Field(default=4, ge=2)
    """Drop shorter examples."""
    loss_on: Literal["all", "answer"] = "all"
    """Tokens whose states are steered: all, or those of answers and completions only."""
    overlap: Literal["error", "drop", "warn"] = "drop"
    """What to do with retain examples that also occur in a forget set."""
    overlap_ngram: int = Field(default=8, ge=3)
    """Words per n-gram of the near-duplicate test."""
    overlap_share: float = Field(default=0.5, gt=0, le=1)
    """A retain example overlaps when this share of its n-grams occurs in the forget text."""
    holdout_share: float = Field(default=0.1, ge=0, le=0.5)
    """Share of every set kept out of training, for evaluation on unseen text."""
    chat_template: bool = True
    """Render question/answer rows through the tokenizer's chat template, where it has one."""
    self_samples: int = Field(default=128, ge=1)
    """Number of texts to sample when a retain path is `self`."""
    self_tokens: int = Field(default=64, ge=8)
    """Tokens of each sampled text."""

    @field_validator("forget", "retain")
    @classmethod
    def _unique_names(cls, corpora: tuple[CorpusSettings, ...]) -> tuple[CorpusSettings, ...]:
        names = [corpus.name for corpus in corpora]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the names {repeated} occur twice; give every set its own name: NAME=FILE")
        return corpora

    @model_validator(mode="after")
    def _separate(self) -> DataSettings:
        if any(corpus.path == "self" for corpus in self.forget):
            raise ValueError("`self` can only be a retain set: forget text must be yours")
        shared = {(c.path, c.split, c.subset) for c in self.forget} & {
            (c.path, c.split, c.subset) for c in self.retain
        }
        if shared:
            raise ValueError(f"forget and retain name the same source {sorted(str(s[0]) for s in shared)}")
        if self.minimum_tokens > self.maximum_tokens:
            raise ValueError("minimum_tokens exceeds maximum_tokens")
        return self
