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

from falcon_unlearn.activations.collect import CachedStates, sink_tokens
from falcon_unlearn.config.objective import ConflictSettings, ObjectiveSettings
from falcon_unlearn.config.train import TrainSettings
from falcon_unlearn.conflict import Gramian, ResolvedGradients, resolve_conflict
from falcon_unlearn.conflict.gramian import sum_gramians
from falcon_unlearn.data.batches import BatchPlan, StepBatch
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import EventSink, TrainingStepped
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.objectives.base import RepresentationObjective, StateBatch
from falcon_unlearn.objectives.losses import retention_loss
from falcon_unlearn.optimizers import build_optimizer
from falcon_unlearn.stopping import current_stop
from falcon_unlearn.training.guards import NormGuard, check_finite_loss, check_finite_tensors
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.schedule import scheduled_rate
from falcon_unlearn.training.states import LoopState, TrainingStates

NEGLIGIBLE_GRADIENT = 1e-5
"""Norm of a retain gradient, relative to the forget gradient, below which it is rounding noise."""


@dataclass(frozen=True)
class CachedCorpus:
    """Hold one corpus as training sees it."""

    name: str
    states: CachedStates
    answer_masks: tuple[Tensor, ...]
    """Per sample, boolean L: tokens that the forget loss may count."""


@dataclass(frozen=True)
class TrainingOutcome:
    """Report what the loop did; the masters hold the parameters of `kept_step`."""

    status: str
    steps_done: int
    kept_step: int
    history: list[dict[str, float]]
    num_tokens: int
    """Real tokens processed, forget and retain."""


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
    ) -> None:
        self.engine, self.masters, self.layers = engine, masters, layers
        self.forget, self.retain = forget, retain
        self.objective, self.objective_settings, self.settings = objective, objective_settings, settings
        self.optimizer = build_optimizer(
            settings.optimizer,
            list(masters.values.values()),
            learning_rate=learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.learning_rate = learning_rate
        self.norm_guard = NormGuard(settings.divergence_factor)
        self.state = LoopState()
        self.gramians: list[Gramian] = []
        self._before_step: dict[str, Tensor] = {}

    def run(self, plan: BatchPlan, sink: EventSink, states: TrainingStates | None = None) -> TrainingOutcome:
        """Take all steps that are missing, or stop where the utility budget ends.

        Args:
            plan: The batches of all steps.
            sink: Receives one event per step.
            states: Where the loop is saved and taken up; nowhere if None.

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
                row = self.step(step, plan.batch(step))
                if self._leaves_budget(row["retain_cosine_distance"]):
                    # This distance belongs to the parameters before the step: those are the ones to leave.
                    return self._back_inside(step + 1, max(0, step - 1))
                self._advance(step, row, started)
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
        self.masters.restore(self.state.tensors.get("inside", original))
        self.masters.push()
        return TrainingOutcome(
            "stopped_on_budget", steps_done, kept_step, self.state.history, self.state.num_tokens
        )

    def step(self, step: int, indices: StepBatch) -> dict[str, float]:
        """Take one step and return its diagnostics."""
        started = time.perf_counter()
        forget_inputs, forget_batch = self._forget_batch(step, indices)
        forget_loss, forget_gradients, forget_states = self._gradients(
            forget_inputs, forget_batch, forget=True
        )
        retain_inputs, retain_batch = self._retain_batch(step, indices)
        retain_loss, retain_gradients, retain_states = self._gradients(
            retain_inputs, retain_batch, forget=False
        )
        check_finite_loss("forget", forget_loss, step)
        check_finite_loss("retain", retain_loss, step)
        multiplier = self.objective_settings.retain_multiplier
        # Nothing has moved before the first update, so all of the first retain gradient is rounding.
        negligible = NEGLIGIBLE_GRADIENT if step else math.inf
        retain_gradients = silence_rounding_noise(forget_gradients, retain_gradients, negligible)
        retain_gradients = {name: multiplier * gradient for name, gradient in retain_gradients.items()}
        resolved = combine(forget_gradients, retain_gradients, self.objective_settings.conflict, self.layers)
        check_finite_tensors("gradient", resolved.gradients, step)
        self.gramians.append(sum_gramians(resolved.gramians.values()))
        self._before_step = self.masters.snapshot() if self.settings.maximum_retain_drift is not None else {}
        self._update(step, resolved)
        row = {"step": float(step), "domain": float(indices.domain), "forget_loss": forget_loss}
        row |= {"retain_loss": retain_loss, "conflict_share": resolved.conflict_share}
        row |= {f"cosine:{name}": cosine or 0.0 for name, cosine in resolved.cosines.items()}
        row |= state_diagnostics(forget_states, forget_batch, retain_states, retain_batch)
        self.norm_guard.check(row["forget_norm"], row["forget_norm_frozen"], step)
        row |= {"learning_rate": self._rate(step), "seconds": time.perf_counter() - started}
        return row

    def _update(self, step: int, resolved: ResolvedGradients) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        for name, value in self.masters.values.items():
            value.grad = resolved.gradients[name]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        check_finite_tensors("parameter", self.masters.values, step)
        self.masters.push()

    def _rate(self, step: int) -> float:
        return scheduled_rate(self.settings, self.learning_rate, step)

    def _gradients(
        self, inputs_BLD: Tensor, batch: StateBatch, *, forget: bool
    ) -> tuple[float, dict[str, Tensor], Tensor]:
        states_BLD = self.engine.forward(inputs_BLD)
        loss = (self.objective.forget_loss if forget else self.objective.retain_loss)(states_BLD, batch)
        names = list(self.masters.parameters)
        gradients = torch.autograd.grad(loss, [self.masters.parameters[name] for name in names])
        self.state.num_tokens += int(batch.mask_BL.sum())
        return (
            float(loss.detach()),
            {n: g.float() for n, g in zip(names, gradients, strict=True)},
            states_BLD.detach(),
        )

    @torch.no_grad()
    def _retain_distance(self, indices: StepBatch) -> float:
        inputs_BLD, batch = self._retain_batch(self.settings.steps, indices)
        return float(retention_loss(self.engine.forward(inputs_BLD), batch.frozen_BLD, batch.mask_BL))

    def _forget_batch(self, step: int, indices: StepBatch) -> tuple[Tensor, StateBatch]:
        corpus = self.forget[indices.domain]
        return self._state_batch([(corpus, i) for i in indices.forget], step, indices.domain)

    def _retain_batch(self, step: int, indices: StepBatch) -> tuple[Tensor, StateBatch]:
        return self._state_batch([(self.retain[c], i) for c, i in indices.retain], step, -1)

    def _state_batch(
        self, rows: Sequence[tuple[CachedCorpus, int]], step: int, domain: int
    ) -> tuple[Tensor, StateBatch]:
        device = self.engine.device
        inputs_BLD, mask_BL = stack_rows([corpus.states.inputs.read(i) for corpus, i in rows])
        frozen_BLD, _ = stack_rows([corpus.states.outputs.read(i) for corpus, i in rows])
        answers_BL, _ = stack_rows([corpus.answer_masks[i] for corpus, i in rows])
        dtype = next(iter(self.masters.parameters.values())).dtype
        frozen_BLD, mask_BL = frozen_BLD.to(device), mask_BL.to(device)
        offset = self.objective_settings.offset
        sinks_BL = sink_tokens(frozen_BLD, mask_BL, offset.sink_factor)
        counted_BL = answers_BL.to(device) & mask_BL
        if offset.exclude_sinks:
            counted_BL = counted_BL & ~sinks_BL
        samples = tuple(i for _, i in rows)
        batch = StateBatch(frozen_BLD, mask_BL, counted_BL, sinks_BL, samples, domain, step)
        return inputs_BLD.to(device=device, dtype=dtype), batch


def stack_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Right-pad tensors of shape L or L x D with zeros; return them with their boolean mask B x L."""
    length = max(len(row) for row in rows)
    stacked = rows[0].new_zeros((len(rows), length, *rows[0].shape[1:]))
    mask_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
        mask_BL[index, : len(row)] = True
    return stacked, mask_BL


def silence_rounding_noise(
    forget: dict[str, Tensor], retain: dict[str, Tensor], negligible: float = NEGLIGIBLE_GRADIENT
) -> dict[str, Tensor]:
    """Set retain gradients to zero where they are rounding noise: below `negligible` times the forget norm.

    Every retain loss has its minimum where nothing has moved, so before the first update its gradient is zero
    in exact arithmetic. What is left of it has a random direction, and a projection cares about direction
    only, not about size. In bfloat16 that is up to a hundredth of the forget gradient.
    """
    return {
        # Negligible only if it compares so: a NaN must stay visible.
        name: torch.zeros_like(gradient) if gradient.norm() <= negligible * forget[name].norm() else gradient
        for name, gradient in retain.items()
    }


def combine(
    forget_gradients: dict[str, Tensor],
    retain_gradients: dict[str, Tensor],
    settings: ConflictSettings,
    layers: dict[str, int],
) -> ResolvedGradients:
    """Apply the recipe's conflict rule to two sets of gradients."""
    return resolve_conflict(
        forget_gradients,
        retain_gradients,
        rule=settings.rule,
        scope=settings.scope,
        layers=layers,
        conflict_weights=settings.conflict_weights,
        aligned_weights=settings.aligned_weights,
        # Blocked float32 sums of float32 gradients: float64 would cost an eighth of the step for its copies.
        accumulation_dtype=torch.float32,
    )


@torch.no_grad()
def state_diagnostics(
    forget_BLD: Tensor, forget: StateBatch, retain_BLD: Tensor, retain: StateBatch
) -> dict[str, float]:
    """Measure norms of updated states by token class, and how far retain states moved.

    Returns:
        forget_norm, forget_norm_frozen (counted tokens), retain_norm (real tokens but sinks), sink_norm
        (sinks of both batches, 0 when there are none), retain_drift, the mean of
        norm(change) / norm(frozen), and retain_cosine_distance, the mean of 1 - cosine that
        train.maximum_retain_drift bounds, both over all real retain tokens.

    Raises:
        NumericalError: A state is not finite.
    """
    if not bool(torch.isfinite(forget_BLD).all()) or not bool(torch.isfinite(retain_BLD).all()):
        raise NumericalError(
            f"step {forget.step}: a hidden state is not finite; the run has diverged and nothing was written",
            hint="Lower train.learning_rate.",
        )
    ordinary_BL = retain.mask_BL.bool() & ~retain.sinks_BL
    change_BL = (retain_BLD.float() - retain.frozen_BLD.float()).norm(dim=-1)
    relative_BL = change_BL / retain.frozen_BLD.float().norm(dim=-1).clamp_min(1e-12)
    sinks = torch.cat([_norms(forget_BLD, forget.sinks_BL), _norms(retain_BLD, retain.sinks_BL)])
    return {
        "forget_norm": _mean(_norms(forget_BLD, forget.counted_BL)),
        "forget_norm_frozen": _mean(_norms(forget.frozen_BLD, forget.counted_BL)),
        "retain_norm": _mean(_norms(retain_BLD, ordinary_BL)),
        "sink_norm": _mean(sinks),
        "retain_drift": _mean(relative_BL[retain.mask_BL.bool()]),
        "retain_cosine_distance": float(retention_loss(retain_BLD, retain.frozen_BLD, retain.mask_BL)),
    }


def _norms(states_BLD: Tensor, chosen_BL: Tensor) -> Tensor:
    norms: Tensor = states_BLD[chosen_BL.bool()].float().norm(dim=-1)
    return norms


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0
