"""The contract between attacks and scoring: an attack says what it changes, never how well it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.architectures import ModelStructure

Format = Literal["letter", "text", "generation"]
FORMATS: tuple[Format, ...] = ("letter", "text", "generation")
Tier = Literal["quick", "full"]
Access = Literal["text", "logits", "activations", "weights"]
Knowledge = Literal["none", "retain data", "forget questions", "forget answers"]
"""What of the data the attacker holds."""

TokenIds = Sequence[int]
OptionScorer = Callable[[Subject, Sequence[TokenIds], Sequence[Sequence[TokenIds]]], list[list[float]]]
"""Subject, N prompts, their completions: one score per completion, higher is more likely."""
Sampler = Callable[[Subject, Sequence[TokenIds], int], list[list[str]]]
"""Subject, N prompts, longest answer in tokens: the answers to each prompt."""


@dataclass(frozen=True)
class Cost:
    """Count passes over one sequence each, so that budgets of attacks compare."""

    forwards: float = 0.0
    backwards: float = 0.0

    @property
    def equivalents(self) -> float:
        """Return forward-equivalents: a backward pass counts twice."""
        return self.forwards + 2.0 * self.backwards


class PromptTransform:
    """Change what the model is asked; this one changes nothing.

    Scoring puts white space between the parts where they have none.
    """

    chat_template: bool | None = None
    """Ask through the chat template, or without it; None: as the audit asks otherwise."""

    def question(self, fact: Fact, asked: str) -> str:
        """Return the question to ask instead of `asked`, which is the fact's question or letter question."""
        del fact
        return asked

    def preamble(self, format: Format) -> str:
        """Return text in front of the whole prompt."""
        del format
        return ""

    def cue(self, format: Format) -> str:
        """Return text after the whole prompt, which the answer continues."""
        del format
        return ""


@dataclass(frozen=True)
class ExtraDecoder:
    """Read answers from somewhere else than the model's greedy output; None: as usual."""

    option_scores: OptionScorer | None = None
    """Replaces the log-probabilities of options and letters."""
    samples: Sampler | None = None
    """Replaces the one greedy answer by several; scoring turns them into leak rates."""
    leak_at: int | None = None
    """k of the leak rate that counts as accuracy; None: the largest of 1, 8, 64 that the samples allow."""


@dataclass(frozen=True)
class Attacked:
    """Describe one variant of an attack that is in force now."""

    variant: str
    """Unique within attack and seed: `int4-group-64`, `benign-full-step-32`."""
    transform: PromptTransform | None = None
    decoder: ExtraDecoder | None = None
    formats: tuple[Format, ...] = FORMATS
    """Formats in which this variant can be scored."""
    cost: Cost = Cost()
    """What making the attack took; scoring is not counted."""
    control: str = ""
    """Non-empty: this is a control of that variant (random direction, random mask), not an attack."""
    details: Mapping[str, float | str] = field(default_factory=dict)
    """Diagnostics for the report: changed tensors, bucket overlap, loss."""
    disclosure: bool = False
    """The original helps to answer: this shows what was removed, not what is left, and no verdict uses it."""
    again: Callable[[], AbstractContextManager[object]] | None = None
    """Puts an edit in force once more while its context is open, also after the attack has ended; None: it
    cannot be, so that all is asked at once. Transforms and decoders need none: they edit nothing."""

    @property
    def edits(self) -> bool:
        """Return whether the model is changed, and not only what is asked or where answers are read."""
        return self.transform is None and self.decoder is None

    @property
    def lasts(self) -> bool:
        """Return whether this variant can be scored after its successors have been in force."""
        return not self.edits or self.again is not None

    def in_force(self) -> AbstractContextManager[object]:
        """Return the context in which a variant that lasts is in force once more."""
        return nullcontext() if self.again is None else self.again()


@dataclass(frozen=True)
class AttackData:
    """Hold all that an attacker may see; facts of the report are not in here."""

    forget: tuple[Fact, ...]
    """The attack split of the forget facts."""
    retain: tuple[Fact, ...]
    """The attack split of the retain facts."""
    forget_texts: tuple[str, ...] = ()
    """Texts that state the forget facts of the attack split."""
    retain_texts: tuple[str, ...] = ()
    benign_texts: tuple[str, ...] = ()
    """Unrelated texts."""


@dataclass(frozen=True)
class AttackContext:
    """Hold the model under attack and what the attacker has."""

    subject: Subject
    structure: ModelStructure
    data: AttackData
    seed: int
    tier: Tier = "quick"
    original: Mapping[str, Tensor] | None = None
    """Tensors of the model before unlearning by parameter name, as far as they differ; None: not at hand."""
    sink: EventSink = ignore_events
    chat_template: bool = False
    """Whether scoring asks through the chat template; attacks that read states at questions do so too."""


class Attack(Protocol):
    """Attack a model. Instances hold settings only and can be used on several models."""

    @property
    def name(self) -> str:
        """Return the name in tables: `quantisation`."""

    @property
    def tier(self) -> Tier:
        """Return the lowest tier that runs it."""

    @property
    def access(self) -> Access:
        """Return what of the model the attacker needs."""

    @property
    def knowledge(self) -> Knowledge:
        """Return what of the data the attacker needs."""

    @property
    def needs_original(self) -> bool:
        """Return whether the model before unlearning is needed."""

    @property
    def source(self) -> str:
        """Return where the attack comes from."""

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield the variants one after the other.

        A variant is in force from its yield until the iterator is asked for the next one or closed. Then the
        attack undoes what it did, so that weights, hooks, gradients and the training mode are as before; the
        caller proves it. Everything random comes from the context's seed. Nothing is printed.
        """
