"""The training loop: two gradients per step on the window, combined, applied to float32 masters.

Legend: B batch, L tokens, D hidden.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.config.objective import ConflictSettings, ObjectiveSettings
from falcon_unlearn.config.train import TrainSettings
from falcon_unlearn.conflict import Gramian, ResolvedGradients, resolve_conflict
from falcon_unlearn.conflict.gramian import Reduce, sum_gramians
from falcon_unlearn.data.batches import BatchPlan, StepBatch
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import EventSink, TrainingStepped
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import window_states
from falcon_unlearn.objectives.base import RepresentationObjective
from falcon_unlearn.optimizers import build_optimizer
from falcon_unlearn.runs.memory import return_freed_pages
from falcon_unlearn.stopping import current_stop
from falcon_unlearn.training.batches import BatchReader, CachedCorpus, WindowBatch
from falcon_unlearn.training.diagnostics import retain_distance, state_diagnostics
from falcon_unlearn.training.guards import (
    NormGuard,
    RetainGuard,
    check_finite_loss,
    check_finite_optimizer,
    check_finite_tensors,
    check_loss_growth,
)
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.micro_batches import MeanOfParts
from falcon_unlearn.training.schedule import scheduled_rate
from falcon_unlearn.training.states import LoopState, TrainingStates
from falcon_unlearn.training.utility import UtilityTrail

NEGLIGIBLE_GRADIENT = 1e-5
"""Norm of a retain gradient, relative to the forget gradient, below which it is rounding noise."""


@dataclass(frozen=True)
class TrainingOutcome:
    """Report what the loop did; the masters hold the parameters of `kept_step`."""

    status: str
    steps_done: int
    kept_step: int
    history: list[dict[str, float]]
    num_tokens: int
    """Real tokens processed, forget and retain."""
    utility_loss: float | None = None
    """Relative rise of the perplexity of held-out retain text at `kept_step`, where a budget asks for it."""


class UnlearningLoop:
    """Run the steps. The window of the engine must be open, and the masters trainable."""

    def __init__(
        self,
        engine: BlockEngine,
        masters: Masters,
        layers: dict[str, int],
        forget: Sequence[CachedCorpus],
        retain: Sequence[CachedCorpus],
        objective: RepresentationObjective,
        objective_settings: ObjectiveSettings,
        settings: TrainSettings,
        learning_rate: float,
        team: Team | None = None,
    ) -> None:
        self.team = team or Team()
        self.engine, self.masters, self.layers = engine, masters, layers
        self.batches = BatchReader(
            forget,
            retain,
            objective_settings.offset,
            engine.device,
            next(iter(masters.parameters.values())).dtype,
            self.team,
            needs_whole_batch=objective.needs_whole_batch,
        )
        self.objective, self.objective_settings, self.settings = objective, objective_settings, settings
        self.optimizer = build_optimizer(
            settings.optimizer,
            list(masters.values.values()),
            learning_rate=learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.learning_rate = learning_rate
        self.norm_guard = NormGuard(settings.divergence_factor)
        self.retain_guard = RetainGuard(objective_settings.retain_multiplier)
        self.state = LoopState()
        self.gramians: list[Gramian] = []
        self._before_step: dict[str, Tensor] = {}
        self._updated = False

    def run(
        self,
        plan: BatchPlan,
        sink: EventSink,
        states: TrainingStates | None = None,
        trail: UtilityTrail | None = None,
    ) -> TrainingOutcome:
        """Take all steps that are missing, or stop where the utility budget ends.

        Args:
            plan: The batches of all steps.
            sink: Receives one event per step.
            states: Where the loop is saved and taken up; nowhere if None.
            trail: Keeps parameters to go back to, where a utility budget is measured afterwards.

        Raises:
            NumericalError: A loss, gradient, state or parameter is not finite, or the states blew up.
            KeyboardInterrupt, Terminated: A signal came; the step was finished and the state saved.
        """
        states = states or TrainingStates()
        self.state = states.restore(self.masters.values, self.optimizer)
        self.masters.push()
        started = time.perf_counter() - self.state.seconds
        stop = current_stop()
        for step in range(self.state.step, self.settings.steps):
            with stop.postponed():
                row = self._guarded_step(step, plan.batch(step), states, sink)
                if self._leaves_budget(row["retain_cosine_distance"]):
                    # This distance belongs to the parameters before the step: those are the ones to leave.
                    return self._back_inside(step + 1, max(0, step - 1))
                self._advance(step, row, started)
                if trail is not None:
                    trail.keep(step + 1, self.masters.values)
                sink(TrainingStepped(step=step + 1, total=self.settings.steps, metrics=row))
                if states.due or stop.number is not None or step + 1 == self.settings.steps:
                    states.save(self.state, self.masters.values, self.optimizer)
            stop.check()
        total = self.settings.steps
        if self.settings.maximum_retain_drift is not None and self._leaves_budget(
            self._retain_distance(plan.batch(total - 1))
        ):
            return self._back_inside(total, total - 1)
        return TrainingOutcome("completed", total, total, self.state.history, self.state.num_tokens)

    def _guarded_step(
        self, step: int, indices: StepBatch, states: TrainingStates, sink: EventSink
    ) -> dict[str, float]:
        """Take a step; before one that goes wrong, the parameters are good, and kept."""
        self._updated = False
        try:
            row = self.step(step, indices)
            losses = [entry["forget_loss"] for entry in self.state.history]
            check_loss_growth([*losses, row["forget_loss"]], self.settings.loss_factor)
        except NumericalError:
            # Several processes save together, and the others may not have failed.
            if not self._updated and self.team.size == 1:
                states.save(self.state, self.masters.values, self.optimizer)
            raise
        self.retain_guard.note(self.gramians[-1].retain_retain, step, sink)
        return row

    def _advance(self, step: int, row: dict[str, float], started: float) -> None:
        self.state.history.append(row)
        self.state.step = step + 1
        self.state.seconds = time.perf_counter() - started
        if self.settings.maximum_retain_drift is not None:
            self.state.tensors["inside"] = self._before_step

    def _leaves_budget(self, distance: float) -> bool:
        budget = self.settings.maximum_retain_drift
        return budget is not None and distance > budget

    def _back_inside(self, steps_done: int, kept_step: int) -> TrainingOutcome:
        """Go back to the last parameters inside the budget: those at the start if no step was inside."""
        original = {name: value.float() for name, value in self.masters.original.items()}
        self.masters.restore(self.state.tensors.get("inside") or self.masters.own_values(original))
        self.masters.push()
        return TrainingOutcome(
            "stopped_on_budget", steps_done, kept_step, self.state.history, self.state.num_tokens
        )

    def step(self, step: int, indices: StepBatch) -> dict[str, float]:
        """Take one step and return its diagnostics."""
        started = time.perf_counter()
        forget_batch = self.batches.forget(step, indices)
        forget_loss, forget_gradients, forget_states = self._gradients(forget_batch, forget=True)
        retain_batch = self.batches.retain(step, indices)
        retain_loss, retain_gradients, retain_states = self._gradients(retain_batch, forget=False)
        check_finite_loss("forget", forget_loss, step)
        check_finite_loss("retain", retain_loss, step)
        multiplier = self.objective_settings.retain_multiplier
        # Nothing has moved before the first update, so all of the first retain gradient is rounding.
        negligible = NEGLIGIBLE_GRADIENT if step else math.inf
        retain_gradients = silence_rounding_noise(
            forget_gradients, retain_gradients, negligible, self._sum_scalars
        )
        for gradient in retain_gradients.values():
            gradient.mul_(multiplier)
        resolved = combine(
            forget_gradients,
            retain_gradients,
            self.objective_settings.conflict,
            self.layers,
            self._sum_scalars,
            overwrite=True,
        )
        # Both are of the size of the trained tensors; the result lies in the memory of the first.
        del forget_gradients, retain_gradients
        check_finite_tensors("gradient", resolved.gradients, step)
        self.gramians.append(sum_gramians(resolved.gramians.values()))
        states = state_diagnostics(
            forget_states, forget_batch.states, retain_states, retain_batch.states, self.team.sum_values
        )
        self.norm_guard.check(states["forget_norm"], states["forget_norm_frozen"], step)
        self._before_step = self.masters.snapshot() if self.settings.maximum_retain_drift is not None else {}
        self._update(step, resolved)
        row = {"step": float(step), "domain": float(indices.domain), "forget_loss": forget_loss}
        row |= {"retain_loss": retain_loss, "conflict_share": resolved.conflict_share}
        row |= {f"cosine:{name}": cosine or 0.0 for name, cosine in resolved.cosines.items()}
        row |= states
        row |= {"learning_rate": self._rate(step), "seconds": time.perf_counter() - started}
        return row

    def _update(self, step: int, resolved: ResolvedGradients) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        for name, value in self.masters.values.items():
            value.grad = resolved.gradients[name]
        self._updated = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        check_finite_tensors("parameter", self.masters.values, step)
        check_finite_optimizer(self.optimizer, list(self.masters.values), step)
        self.masters.push()

    def _rate(self, step: int) -> float:
        return scheduled_rate(self.settings, self.learning_rate, step)

    def _gradients(self, batch: WindowBatch, *, forget: bool) -> tuple[float, dict[str, Tensor], Tensor]:
        with self.team.peers_may_fail():
            return self._own_gradients(batch, forget=forget)

    def _own_gradients(self, batch: WindowBatch, *, forget: bool) -> tuple[float, dict[str, Tensor], Tensor]:
        loss_of = self.objective.forget_loss if forget else self.objective.retain_loss
        mean, states = MeanOfParts(), []
        for part in batch.parts(self.settings.micro_batch_tokens):
            states_BLD = window_states(self.engine, part.inputs_BLD, part.lengths)
            counted = int((part.states.counted_BL if forget else part.states.mask_BL).sum())
            loss = loss_of(states_BLD, part.states) * self.team.weight(counted)
            mean.add(counted, float(loss.detach()), self.masters.gradients(loss, self.team))
            states.append(states_BLD.detach())
            if self.engine.is_streamed:
                # A memory limit is being kept.
                del states_BLD, loss
                return_freed_pages()
        self.state.num_tokens += batch.num_tokens
        return self.team.sum_values([mean.loss])[0], mean.gradients, torch.cat(states)

    def _sum_scalars(self, scalars: Tensor) -> Tensor:
        return self.masters.sum_scalars(scalars, self.team)

    @torch.no_grad()
    def _retain_distance(self, indices: StepBatch) -> float:
        batch = self.batches.retain(self.settings.steps, indices)
        states_BLD = window_states(self.engine, batch.inputs_BLD, batch.lengths)
        return retain_distance(states_BLD, batch.states, self.team.sum_values)


def silence_rounding_noise(
    forget: dict[str, Tensor],
    retain: dict[str, Tensor],
    negligible: float = NEGLIGIBLE_GRADIENT,
    reduce: Reduce | None = None,
) -> dict[str, Tensor]:
    """Set retain gradients to zero where they are rounding noise: below `negligible` times the forget norm.

    Every retain loss has its minimum where nothing has moved, so before the first update its gradient is zero
    in exact arithmetic. What is left of it has a random direction, and a projection cares about direction
    only, not about size. In bfloat16 that is up to a hundredth of the forget gradient. `reduce` sums squared
    norms over shards.
    """
    forget_norms, retain_norms = tensor_norms(forget, reduce), tensor_norms(retain, reduce)
    return {
        # Negligible only if it compares so: a NaN must stay visible.
        name: torch.zeros_like(gradient)
        if retain_norms[name] <= negligible * forget_norms[name]
        else gradient
        for name, gradient in retain.items()
    }


def tensor_norms(tensors: dict[str, Tensor], reduce: Reduce | None = None) -> dict[str, float]:
    """Return the norm of every tensor; `reduce` sums squared norms over shards."""
    # Squared on the processor in float64: a square of float32 would lose what is tiny.
    squares_S = torch.stack([tensor.norm() for tensor in tensors.values()]).cpu().double().square()
    if reduce is not None:
        squares_S = reduce(squares_S)
    return dict(zip(tensors, squares_S.sqrt().tolist(), strict=True))


def combine(
    forget_gradients: dict[str, Tensor],
    retain_gradients: dict[str, Tensor],
    settings: ConflictSettings,
    layers: dict[str, int],
    reduce: Reduce | None = None,
    *,
    overwrite: bool = False,
) -> ResolvedGradients:
    """Apply the recipe's conflict rule to two sets of gradients.

    `reduce` sums inner products over shards; `overwrite` reuses the memory of the first gradients.
    """
    return resolve_conflict(
        forget_gradients,
        retain_gradients,
        rule=settings.rule,
        scope=settings.scope,
        layers=layers,
        conflict_weights=settings.conflict_weights,
        aligned_weights=settings.aligned_weights,
        reduce=reduce,
        # Blocked float32 sums of float32 gradients: float64 would cost an eighth of the step for its copies.
        accumulation_dtype=torch.float32,
        overwrite=overwrite,
    )
