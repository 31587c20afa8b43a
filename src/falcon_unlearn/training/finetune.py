"""Teach a model texts: the plain fine-tuning that makes benchmark targets and retain models.

Continues after an interruption from the last saved step, to the same weights as without it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from falcon_unlearn.events import EventSink, TrainingStepped
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine, parameters_in_dtype
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states
from falcon_unlearn.runs import WorkFolder
from falcon_unlearn.stopping import current_stop
from falcon_unlearn.training.guards import check_finite_loss, check_finite_tensors
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.session import settled_dtype
from falcon_unlearn.training.states import LoopState, TrainingStates

POOL = 8
"""Batches whose examples are sorted by length together: little padding, and batches stay random."""
SAVE_SECONDS = 60.0
"""Work between two saved states; more where saving is slow."""
STATES = "training"
"""Name of the states in the work folder."""
STATE_BYTES = 12
"""Of one saved state, for each trained parameter: its value and both moments, in float32."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Set the fine-tuning; the defaults memorise TOFU with SmolLM2-135M."""

    epochs: int = 5
    batch_size: int = 8
    learning_rate: float = 5e-4
    """Peak; linear warm-up over the first twentieth, linear decay to zero over the last two fifths."""
    weight_decay: float = 0.01
    maximum_gradient_norm: float = 1.0
    embeddings: bool = False
    """Whether embeddings and head are trained too."""
    everything: bool = False
    """Whether all tokens are learnt, or answers only."""
    compute_dtype: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Finetuned:
    """Report a finished fine-tuning; the model holds the result in its source dtype."""

    steps: int
    losses: list[float]
    """Mean loss of each epoch, in nats per token."""
    seconds: float
    """Wall time, that of earlier processes included."""
    tokens: int


def finetune(
    engine: BlockEngine,
    examples: Sequence[EncodedExample],
    settings: FinetuneSettings,
    sink: EventSink,
    work: WorkFolder | None = None,
    *,
    save_seconds: float = SAVE_SECONDS,
) -> Finetuned:
    """Minimise the mean negative log-likelihood per token on `examples`.

    Args:
        engine: Engine over the model, which is changed in place.
        examples: What to learn.
        settings: How.
        sink: Receives progress.
        work: Keeps states about every `save_seconds` and the last one, and gives them back after a kill;
            nothing is kept if None. The caller removes it once the result is safe.
        save_seconds: 0 means after every step.

    Raises:
        NumericalError: A loss or a gradient is not finite.
        PrerequisiteError: The disk refused a state; the states saved before stay.
        KeyboardInterrupt, Terminated: A signal came; the step was finished and the state saved.
    """
    dtype = settled_dtype(work, "compute_dtype", settings.compute_dtype, engine.device)
    masters = Masters(engine.model, trainable_names(engine, embeddings=settings.embeddings))
    run = _Run(engine, masters, settings, math.ceil(len(examples) / settings.batch_size))
    states = TrainingStates(None if work is None else work.snapshots(STATES), save_seconds)
    finished = False
    try:
        with parameters_in_dtype(list(engine.model.parameters()), dtype), masters.trainable():
            run.train(examples, sink, states)
        finished = True
    finally:
        if not finished:
            masters.revert()
    masters.commit()
    tokens = sum(len(example.input_ids) - 1 for example in examples) * settings.epochs
    return Finetuned(run.total, run.epoch_losses(), run.state.seconds, tokens)


def trainable_names(engine: BlockEngine, *, embeddings: bool) -> list[str]:
    """Return the names of all floating point parameters, tied ones once, embeddings and head at will."""
    model = engine.model
    left_out = set()
    if not embeddings:
        for module in (engine.base.get_input_embeddings(), _head(model)):
            left_out |= {id(parameter) for parameter in module.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and id(parameter) not in left_out
    ]


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


class _Run:
    def __init__(self, engine: BlockEngine, masters: Masters, settings: FinetuneSettings, steps: int) -> None:
        self.engine, self.masters, self.settings = engine, masters, settings
        self.steps, self.total = steps, steps * settings.epochs
        self.state = LoopState()
        self.optimizer = torch.optim.AdamW(
            masters.values.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def train(self, examples: Sequence[EncodedExample], sink: EventSink, states: TrainingStates) -> None:
        """Take all steps that are missing."""
        self.state = states.restore(self.masters.values, self.optimizer)
        self.masters.push()
        started, stop = time.perf_counter() - self.state.seconds, current_stop()
        for step, chosen in self.missing(examples):
            with stop.postponed():
                begun = time.perf_counter()
                loss, labels = self.step(step, [examples[i] for i in chosen])
                self.state.history.append({"loss": loss, "labels": float(labels)})
                self.state.step, self.state.seconds = step + 1, time.perf_counter() - started
                row = {"loss": loss, "seconds": time.perf_counter() - begun}
                sink(TrainingStepped(step=step + 1, total=self.total, metrics=row))
                if states.due or stop.number is not None or step + 1 == self.total:
                    states.save(self.state, self.masters.values, self.optimizer)
            stop.check()

    def missing(self, examples: Sequence[EncodedExample]) -> Iterator[tuple[int, list[int]]]:
        """Yield the steps that are not done yet, each with its batch."""
        done = self.state.step
        for epoch in range(done // self.steps, self.settings.epochs):
            for step, batch in enumerate(self.batches(epoch, examples), epoch * self.steps):
                if step >= done:
                    yield step, batch

    def epoch_losses(self) -> list[float]:
        """Return the mean loss per token of every epoch."""
        rows, losses = self.state.history, []
        for start in range(0, len(rows), self.steps):
            epoch = rows[start : start + self.steps]
            losses.append(sum(r["loss"] * r["labels"] for r in epoch) / sum(r["labels"] for r in epoch))
        return losses

    def batches(self, epoch: int, examples: Sequence[EncodedExample]) -> list[list[int]]:
        """Return the epoch's batches: a seeded shuffle in which similar lengths share a batch."""
        size = self.settings.batch_size
        chance = random.Random(f"{self.settings.seed}:finetune:{epoch}")
        order = list(range(len(examples)))
        chance.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), POOL * size):
            pool = sorted(order[start : start + POOL * size], key=lambda i: len(examples[i].input_ids))
            batches += [pool[at : at + size] for at in range(0, len(pool), size)]
        chance.shuffle(batches)
        return batches

    def step(self, step: int, examples: list[EncodedExample]) -> tuple[float, int]:
        masters = self.masters
        batch = pack_examples(examples, self.engine.device, everything=self.settings.everything)
        logits_MV = head_logits(self.engine.model, supervised_states(self.engine, batch))
        loss = cross_entropy(logits_MV, batch.labels_M)
        gradients = torch.autograd.grad(loss, list(masters.parameters.values()))
        value = float(loss.detach())
        check_finite_loss("fine-tuning", value, step)
        for master, gradient in zip(masters.values.values(), gradients, strict=True):
            master.grad = gradient.float()
        limit = self.settings.maximum_gradient_norm
        norm = torch.nn.utils.clip_grad_norm_(masters.values.values(), limit)
        check_finite_tensors("gradient norm", {"fine-tuning": norm}, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        masters.push()
        return value, len(batch.labels_M)

    def rate(self, step: int) -> float:
        warmup, decay = max(1, self.total // 20), max(1, 2 * self.total // 5)
        return self.settings.learning_rate * min(1.0, (step + 1) / warmup, (self.total - step) / decay)
