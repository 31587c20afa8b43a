"""The training loop of methods on outputs: forget and retain gradient per step, combined, applied.

Legend: M supervised positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.conflict import ResolvedGradients
from falcon_unlearn.conflict.gramian import sum_gramians
from falcon_unlearn.data.batches import BatchPlan, StepBatch
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import EventSink, TrainingStepped
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import head_logits, supervised_states
from falcon_unlearn.objectives.outputs.base import OutputObjective, TokenBatch, Unit
from falcon_unlearn.objectives.outputs.likelihood import count_units
from falcon_unlearn.optimizers import build_optimizer
from falcon_unlearn.stopping import current_stop
from falcon_unlearn.training.guards import (
    RetainGuard,
    check_finite_loss,
    check_finite_optimizer,
    check_finite_tensors,
    check_loss_growth,
)
from falcon_unlearn.training.loop import TrainingOutcome, combine
from falcon_unlearn.training.micro_batches import MeanOfParts, split_by_tokens
from falcon_unlearn.training.outputs.corpora import OutputCorpus, build_batch
from falcon_unlearn.training.outputs.reference import FrozenHead
from falcon_unlearn.training.outputs.trainables import Trainables
from falcon_unlearn.training.schedule import scheduled_rate
from falcon_unlearn.training.states import LoopState, TrainingStates
from falcon_unlearn.training.utility import UtilityMeter

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """Report one half of a step."""

    loss: float
    gradients: Gradients
    log_probability: float
    """Mean over the labels of original answers, in nats per token."""


class OutputLoop:
    """Run the steps; the trainables' leaves must require gradients."""

    def __init__(
        self,
        engine: BlockEngine,
        trainables: Trainables,
        layers: dict[str, int],
        forget: Sequence[OutputCorpus],
        retain: Sequence[OutputCorpus],
        objective: OutputObjective,
        recipe: Recipe,
        learning_rate: float,
        head: FrozenHead | None,
    ) -> None:
        self.engine, self.trainables, self.layers = engine, trainables, layers
        self.forget, self.retain, self.head = forget, retain, head
        self.objective, self.recipe, self.learning_rate = objective, recipe, learning_rate
        self.optimizer = build_optimizer(
            recipe.train.optimizer,
            list(trainables.values.values()),
            learning_rate=learning_rate,
            weight_decay=recipe.train.weight_decay,
        )
        self.everything = recipe.data.loss_on == "all"
        self.state = LoopState()
        self.retain_guard = RetainGuard(recipe.objective.retain_multiplier)
        self._updated = False
        self._retain_retain: float | None = None

    def run(
        self,
        plan: BatchPlan,
        sink: EventSink,
        states: TrainingStates | None = None,
        meter: UtilityMeter | None = None,
    ) -> TrainingOutcome:
        """Take all steps that are missing, or stop where the utility budget ends.

        Args:
            plan: The batches of all steps.
            sink: Receives one event per step.
            states: Where the loop is saved and taken up; nowhere if None.
            meter: Measures utility every few steps, where the recipe sets a budget.

        Raises:
            NumericalError: A loss, gradient or parameter is not finite.
            KeyboardInterrupt, Terminated: A signal came; the step was finished and the state saved.
        """
        states = states or TrainingStates()
        self.state = states.restore(self.trainables.values, self.optimizer)
        self.trainables.push()
        started = time.perf_counter() - self.state.seconds
        total = self.recipe.train.steps
        stop = current_stop()
        for step in range(self.state.step, total):
            with stop.postponed():
                row = self._guarded_step(step, plan.batch(step), states, sink)
                self.state.history.append(row)
                self.state.step, self.state.seconds = step + 1, time.perf_counter() - started
                sink(TrainingStepped(step=step + 1, total=total, metrics=row))
                if meter is not None and not self._inside_budget(meter):
                    return self._back_inside()
                if states.due or stop.number is not None or step + 1 == total:
                    states.save(self.state, self.trainables.values, self.optimizer)
            stop.check()
        loss = self.state.guards.get("utility", [0.0, None])[1]
        return TrainingOutcome("completed", total, total, self.state.history, self.state.num_tokens, loss)

    def _guarded_step(
        self, step: int, indices: StepBatch, states: TrainingStates, sink: EventSink
    ) -> dict[str, float]:
        """Take a step; before one that goes wrong, the parameters are good, and kept."""
        self._updated = False
        try:
            if step == 0 and self.recipe.train.maximum_utility_loss is not None:
                self.state.tensors["inside"] = self._copies()
            row = self.step(step, indices)
            losses = [entry["forget_loss"] for entry in self.state.history if "forget_loss" in entry]
            check_loss_growth([*losses, row.get("forget_loss", 0.0)], self.recipe.train.loss_factor)
        except NumericalError:
            if not self._updated:
                states.save(self.state, self.trainables.values, self.optimizer)
            raise
        if self._retain_retain is not None:
            self.retain_guard.note(self._retain_retain, step, sink)
        return row

    def _inside_budget(self, meter: UtilityMeter) -> bool:
        """Measure utility where it is due, and remember the parameters inside the budget."""
        train, step = self.recipe.train, self.state.step
        if train.maximum_utility_loss is None or (step % train.utility_steps and step < train.steps):
            return True
        loss = meter.loss()
        if loss > train.maximum_utility_loss:
            return False
        self.state.tensors["inside"] = self._copies()
        self.state.guards["utility"] = [float(step), loss]
        return True

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.trainables.values.items()}

    def _back_inside(self) -> TrainingOutcome:
        with torch.no_grad():
            for name, value in self.state.tensors["inside"].items():
                self.trainables.values[name].copy_(value)
        self.trainables.push()
        step, loss = self.state.guards.get("utility", [0.0, 0.0])
        return TrainingOutcome(
            "stopped_on_budget", self.state.step, int(step), self.state.history, self.state.num_tokens, loss
        )

    def step(self, step: int, indices: StepBatch) -> dict[str, float]:
        """Take one step and return its diagnostics."""
        started = time.perf_counter()
        turn = self.objective.turn(step, self.recipe.train.steps)
        multiplier = self.recipe.objective.retain_multiplier
        forget = retain = None
        if turn != "retain":
            corpus = self.forget[indices.domain]
            rows = [(corpus, i) for i in indices.forget]
            unit = self.objective.forget_unit
            forget = self._measure(rows, step, self.objective.forget_loss, unit=unit, alternatives=True)
            check_finite_loss("forget", forget.loss, step)
        if turn != "forget" and (multiplier > 0 or turn == "retain"):
            rows = [(self.retain[c], i) for c, i in indices.retain]
            retain = self._measure(rows, step, self.objective.retain_loss, unit="tokens", alternatives=False)
            check_finite_loss("retain", retain.loss, step)
        gradients, diagnostics = self._combined(forget, retain, multiplier)
        check_finite_tensors("gradient", gradients, step)
        self._update(step, gradients)
        row = {"step": float(step), "domain": float(indices.domain), **diagnostics}
        rate = scheduled_rate(self.recipe.train, self.learning_rate, step)
        return row | {"learning_rate": rate, "seconds": time.perf_counter() - started}

    def _measure(
        self,
        rows: Sequence[tuple[OutputCorpus, int]],
        step: int,
        loss_of: Callable[[Tensor, TokenBatch], Tensor],
        *,
        unit: Unit,
        alternatives: bool,
    ) -> Measured:
        """Return loss and gradients of a batch, computed in parts where the recipe asks for that."""
        alternatives = alternatives and bool(rows[0][0].alternatives)
        lengths = [corpus.num_tokens(i, alternatives=alternatives) for corpus, i in rows]
        mean, likelihood = MeanOfParts(), MeanOfParts()
        for part in split_by_tokens(lengths, self.recipe.train.micro_batch_tokens):
            packed, batch = build_batch(
                [rows[row] for row in part],
                step,
                self.engine.device,
                self.head,
                everything=self.everything,
                alternatives=alternatives,
            )
            weight = count_units(batch, unit)
            if not weight:
                continue  # nothing of what the loss averages is in these rows
            logits_MV = head_logits(self.engine.model, supervised_states(self.engine, packed))
            loss = loss_of(logits_MV, batch)
            mean.add(weight, float(loss.detach()), self._gradients_of(loss))
            self.state.num_tokens += packed.num_tokens
            values_M = original_log_probabilities(logits_MV.detach(), batch)
            if len(values_M):
                likelihood.add(len(values_M), float(values_M.mean()), {})
        if not mean.weight:
            raise ValueError(f"step {step}: the batch has nothing to average over ({unit})")
        return Measured(mean.loss, mean.gradients, likelihood.loss)

    def _gradients_of(self, loss: Tensor) -> Gradients:
        names = list(self.trainables.parameters)
        leaves = [self.trainables.parameters[name] for name in names]
        # A loss may leave parts of the model alone, such as an embedding that no token of the batch uses.
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return {name: gradient.float() for name, gradient in zip(names, gradients, strict=True)}

    def _combined(
        self, forget: Measured | None, retain: Measured | None, multiplier: float
    ) -> tuple[Gradients, dict[str, float]]:
        row: dict[str, float] = {}
        if forget is not None:
            row |= {"forget_loss": forget.loss, "forget_log_probability": forget.log_probability}
        if retain is not None:
            row |= {"retain_loss": retain.loss, "retain_log_probability": retain.log_probability}
        if forget is None or retain is None:
            return next(half.gradients for half in (forget, retain) if half is not None), row
        scaled = {name: multiplier * gradient for name, gradient in retain.gradients.items()}
        resolved = combine(forget.gradients, scaled, self.recipe.objective.conflict, self.layers)
        self._retain_retain = sum_gramians(resolved.gramians.values()).retain_retain
        return resolved.gradients, row | conflict_diagnostics(resolved)

    def _update(self, step: int, gradients: Gradients) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled_rate(self.recipe.train, self.learning_rate, step)
        for name, value in self.trainables.values.items():
            value.grad = gradients[name]
        self._updated = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        check_finite_tensors("parameter", self.trainables.values, step)
        check_finite_optimizer(self.optimizer, list(self.trainables.values), step)
        self.trainables.push()


@torch.no_grad()
def original_log_probabilities(logits_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return log p of the labels of original answers, in nats."""
    values_M = logits_MV.log_softmax(-1).gather(1, batch.labels_M[:, None])[:, 0]
    return values_M[~batch.is_alternative_B[batch.owners_M]]


def conflict_diagnostics(resolved: ResolvedGradients) -> dict[str, float]:
    """Return the share of conflicts and the mean cosine: hundreds of tensors are too many for a history."""
    cosines = [cosine for cosine in resolved.cosines.values() if cosine is not None]
    mean = sum(cosines) / len(cosines) if cosines else 0.0
    return {"conflict_share": resolved.conflict_share, "mean_cosine": mean}
