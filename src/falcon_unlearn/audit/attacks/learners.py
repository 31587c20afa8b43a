"""Fine-tune a model in instalments; between them the model is bit for bit as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from falcon_unlearn.config.train import LoraSettings
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.adapters import LoraAdapters, linear_maps, lora_adapters
from falcon_unlearn.models.engine import BlockEngine, parameters_in_dtype, tensors_replaced
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.training.finetune import trainable_names
from falcon_unlearn.training.guards import check_finite_loss

Method = Literal["full", "lora"]
Batch = Sequence[EncodedExample]


@dataclass(frozen=True)
class LearnerSettings:
    """Set the update; the learning rate is constant, so that s steps of a longer run are a run of s steps."""

    method: Method = "full"
    learning_rate: float | None = None
    """None: `relative_step`."""
    relative_step: float = 0.003
    """Size of the first AdamW step, relative to the root mean square of the trained matrices; for adapters
    that of their product."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    embeddings: bool = False
    """Full fine-tuning trains embeddings and head too."""
    weight_decay: float = 0.0
    maximum_gradient_norm: float = 1.0
    compute_dtype: str = "auto"


class Learner:
    """Hold what was learnt so far, in float32, beside a model that it changes inside contexts only."""

    def __init__(self, engine: BlockEngine, settings: LearnerSettings, seed: int) -> None:
        """Prepare; nothing is learnt yet.

        Raises:
            PrerequisiteError: Adapters are asked for and `peft` is absent.
            ModelError: The blocks hold matrices that cannot carry adapters.
        """
        self.engine, self.settings, self.seed = engine, settings, seed
        self.dtype = resolve_compute_dtype(settings.compute_dtype, engine.device)
        self.weights: dict[str, Tensor] = {}
        """What has been learnt: float32 tensors for the model's parameters, by their names."""
        self.values = self._start()
        self.learning_rate = settings.learning_rate or automatic_rate(engine, settings)
        self._optimizer = torch.optim.AdamW(
            self.values.values(),
            lr=self.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.steps = 0

    @property
    def num_trained(self) -> int:
        """Number of trained parameters."""
        return sum(value.numel() for value in self.values.values())

    def learn(self, batches: Iterable[Batch]) -> float | None:
        """Take one step per batch, with the mean negative log-likelihood per answer token as loss.

        Returns:
            The loss before the last step, in nats per token; None without batches.

        Raises:
            NumericalError: The loss is not finite.
        """
        loss = None
        with self._training() as parameters:
            for batch in batches:
                loss = self._step(parameters, batch)
        return loss

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Give the model what was learnt, in its own dtype, while the context is open."""
        with tensors_replaced(self.engine.model, self.weights):
            yield

    def _start(self) -> dict[str, Tensor]:
        if self.settings.method == "lora":
            with lora_adapters(self.engine.model, self.settings.lora, self.seed) as adapters:
                return {name: value.detach().clone() for name, value in adapters.parameters.items()}
        names = trainable_names(self.engine, embeddings=self.settings.embeddings)
        parameters = dict(self.engine.model.named_parameters())
        self.weights = {name: parameters[name].detach().float().clone() for name in names}
        return self.weights

    @contextmanager
    def _training(self) -> Iterator[Mapping[str, nn.Parameter]]:
        model = self.engine.model
        originals = {name: value.detach() for name, value in model.named_parameters()}
        with parameters_in_dtype(list(model.parameters()), self.dtype):
            if self.settings.method == "lora":
                with lora_adapters(model, self.settings.lora, self.seed) as adapters:
                    self._load(adapters)
                    yield adapters.parameters
                    self.weights = adapters.merged(originals)
                return
            parameters = dict(model.named_parameters())
            chosen = {name: parameters[name] for name in self.values}
            with tensors_replaced(model, self.values), _only_these_learn(model, chosen.values()):
                yield chosen

    def _load(self, adapters: LoraAdapters) -> None:
        for name, parameter in adapters.parameters.items():
            parameter.data = self.values[name]

    def _step(self, parameters: Mapping[str, nn.Parameter], examples: Batch) -> float:
        batch = pack_examples(examples, self.engine.device)
        with torch.enable_grad():
            logits_MV = head_logits(self.engine.model, supervised_states(self.engine, batch))
            loss = cross_entropy(logits_MV, batch.labels_M)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        value = float(loss.detach())
        check_finite_loss("relearning", value, self.steps)
        for name, gradient in zip(parameters, gradients, strict=True):
            self.values[name].grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(self.values.values(), self.settings.maximum_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for name, parameter in parameters.items():
            # In float32 both are one tensor.
            if parameter.data_ptr() != self.values[name].data_ptr():
                parameter.data.copy_(self.values[name])
        self.steps += 1
        return value


def automatic_rate(engine: BlockEngine, settings: LearnerSettings) -> float:
    """Return the rate at which the first AdamW step has the relative size asked for.

    AdamW moves an element by about the rate. An adapter moves its weight by scale * B A: in the first step
    every element of B moves by the rate, A is uniform within 1 / sqrt(inputs).
    """
    model = engine.model
    if settings.method == "full":
        parameters = dict(model.named_parameters())
        names = trainable_names(engine, embeddings=settings.embeddings)
        # Norms start at one; in small models they would set the rate.
        matrices = [parameters[name] for name in names if parameters[name].ndim >= 2]
        return settings.relative_step * _root_mean_square(matrices)
    weights = [linear.weight for linear in linear_maps(model).values()]
    inputs = sum(weight.shape[1] for weight in weights) / len(weights)
    rank = settings.lora.rank
    per_unit = settings.lora.alpha / rank * math.sqrt(rank / (3.0 * inputs))
    return settings.relative_step * _root_mean_square(weights) / per_unit


def _root_mean_square(tensors: Sequence[Tensor]) -> float:
    total = sum(float(tensor.detach().float().square().sum()) for tensor in tensors)
    return math.sqrt(total / sum(tensor.numel() for tensor in tensors))


@contextmanager
def _only_these_learn(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
