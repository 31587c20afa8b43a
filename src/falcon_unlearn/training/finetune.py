"""Teach a model texts: the plain fine-tuning that makes benchmark targets and retain models.

Continues after an interruption from the last finished epoch, to the same weights as without it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from falcon_unlearn.events import EventSink, TrainingStepped
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine, parameters_in_dtype
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.training.guards import check_finite_loss
from falcon_unlearn.training.masters import Masters

POOL = 8
"""Batches whose examples are sorted by length together: little padding, and batches stay random."""


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
    """Mean loss of each epoch run here, in nats per token."""
    seconds: float
    tokens: int


def finetune(
    engine: BlockEngine,
    examples: Sequence[EncodedExample],
    settings: FinetuneSettings,
    sink: EventSink,
    state_file: Path | None = None,
) -> Finetuned:
    """Minimise the mean negative log-likelihood per token on `examples`.

    Args:
        engine: Engine over the model, which is changed in place.
        examples: What to learn.
        settings: How.
        sink: Receives progress.
        state_file: Where the state after each epoch is kept; training goes on from there if it exists, and
            it is removed at the end.

    Raises:
        NumericalError: The loss is not finite.
    """
    started = time.perf_counter()
    dtype = resolve_compute_dtype(settings.compute_dtype, engine.device)
    masters = Masters(engine.model, trainable_names(engine, embeddings=settings.embeddings))
    run = _Run(engine, masters, settings, math.ceil(len(examples) / settings.batch_size))
    first = run.load(state_file)
    losses: list[float] = []
    finished = False
    try:
        with parameters_in_dtype(list(engine.model.parameters()), dtype), masters.trainable():
            masters.push()
            for epoch in range(first, settings.epochs):
                losses.append(run.epoch(epoch, examples, sink))
                if state_file is not None and epoch + 1 < settings.epochs:
                    run.save(state_file, epoch + 1)
        finished = True
    finally:
        if not finished:
            masters.revert()
    masters.commit()
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    tokens = sum(len(example.input_ids) - 1 for example in examples) * len(losses)
    return Finetuned(run.total, losses, time.perf_counter() - started, tokens)


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
        self.optimizer = torch.optim.AdamW(
            masters.values.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def epoch(self, epoch: int, examples: Sequence[EncodedExample], sink: EventSink) -> float:
        total, count = 0.0, 0
        for number, chosen in enumerate(self.batches(epoch, examples)):
            step = epoch * self.steps + number
            started = time.perf_counter()
            loss, labels = self.step(step, [examples[i] for i in chosen])
            total, count = total + loss * labels, count + labels
            row = {"loss": loss, "seconds": time.perf_counter() - started}
            sink(TrainingStepped(step=step + 1, total=self.total, metrics=row))
        return total / count

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
        torch.nn.utils.clip_grad_norm_(masters.values.values(), self.settings.maximum_gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        masters.push()
        return value, len(batch.labels_M)

    def rate(self, step: int) -> float:
        warmup, decay = max(1, self.total // 20), max(1, 2 * self.total // 5)
        return self.settings.learning_rate * min(1.0, (step + 1) / warmup, (self.total - step) / decay)

    def save(self, path: Path, epoch: int) -> None:
        tensors: dict[str, Tensor] = {}
        for name, value in self.masters.values.items():
            state = self.optimizer.state[value]
            tensors |= {f"value:{name}": value, f"first:{name}": state["exp_avg"]}
            tensors |= {f"second:{name}": state["exp_avg_sq"]}
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished, metadata={"epoch": str(epoch)})
        unfinished.replace(path)

    @torch.no_grad()
    def load(self, path: Path | None) -> int:
        if path is None or not path.is_file():
            return 0
        with safe_open(path, framework="pt") as stored:
            epoch = int(stored.metadata()["epoch"])
            for name, value in self.masters.values.items():
                value.copy_(stored.get_tensor(f"value:{name}"))
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(epoch * self.steps)),
                    "exp_avg": stored.get_tensor(f"first:{name}"),
                    "exp_avg_sq": stored.get_tensor(f"second:{name}"),
                }
        return epoch
