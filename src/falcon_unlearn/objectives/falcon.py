"""FALCON's objective: contrastive unalignment towards principal offset vectors, and cosine retention.

Read this file first: it is the method. Formulas live in `losses.py` (eq. 9-11) and `offsets.py` (eq. 8).

Legend: B batch, L tokens, D hidden, K directions, N tokens of many samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.config.objective import ObjectiveSettings, OffsetSettings
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.losses import draw_negatives, info_nce_loss, retention_loss
from falcon_unlearn.objectives.offsets import (
    StreamingDirections,
    principal_directions,
    principal_offset_vectors,
    reference_offset_vector,
    remove_directions,
    seeded_generator,
)


@dataclass(frozen=True)
class RetainStatistics:
    """Summarise the retain states at the loss layer: what forget and retain data share."""

    mean_D: Tensor
    directions_KD: Tensor
    """Leading directions around the mean."""


def fit_retain_statistics(states: Iterable[Tensor], num_directions: int) -> RetainStatistics:
    """Fit mean and leading directions of retain states given as N x D chunks; reads the chunks twice."""
    chunks = list(states)
    total = sum(len(chunk) for chunk in chunks)
    mean_D = sum((chunk.float().sum(0) for chunk in chunks), torch.zeros(())) / total
    streaming = StreamingDirections(num_directions)
    for chunk in chunks:
        streaming.update(chunk.float() - mean_D)
    return RetainStatistics(mean_D, streaming.directions())


def select_principal_states(states_ND: Tensor, principal: str, retain: RetainStatistics | None) -> Tensor:
    """Return the states whose leading directions count as the knowledge.

    Args:
        states_ND: Forget states, N x D.
        principal: `literal` (as eq. 8 says), `centred` (minus the retain mean) or `contrast` (that, minus the
            leading retain directions).
        retain: Needed for all but `literal`.
    """
    states_ND = states_ND.float()
    if principal == "literal" or retain is None:
        return states_ND
    centred_ND = states_ND - retain.mean_D
    return centred_ND if principal == "centred" else remove_directions(centred_ND, retain.directions_KD)


def fit_domain_directions(
    states: Iterable[Tensor], settings: OffsetSettings, retain: RetainStatistics | None
) -> Tensor:
    """Fit the principal directions of one forget domain from chunks N x D of its frozen states; K x D."""
    streaming = StreamingDirections(settings.directions)
    for chunk in states:
        if len(chunk):
            streaming.update(select_principal_states(chunk, settings.principal, retain))
    return streaming.directions()


class FalconObjective:
    """Compute the forget and the retain loss of one step from window states."""

    def __init__(
        self,
        settings: ObjectiveSettings,
        domain_directions: list[Tensor],
        *,
        seed: int,
        retain: RetainStatistics | None = None,
        model_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Keep the fitted directions.

        Args:
            settings: The recipe's objective.
            domain_directions: K x D for each forget domain; unused in `reference` mode.
            seed: Seed of all targets and negatives.
            retain: Retain statistics, for `centred` and `contrast` directions per batch.
            model_dtype: Dtype in which `reference` mode builds its matrix.
        """
        self.settings = settings
        self.domain_directions = domain_directions
        self.seed = seed
        self.retain = retain
        self.model_dtype = model_dtype

    @property
    def needs_whole_batch(self) -> bool:
        """Tell whether targets or negatives depend on rows of other ranks."""
        offset = self.settings.offset
        per_batch = offset.mode == "reference" or offset.resolved_granularity == "batch"
        return per_batch or self.settings.negatives > 1

    def forget_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Compute eq. 9-10 against the batch's targets and frozen negatives."""
        generator = seeded_generator(self.seed, "negatives", batch.step)
        entire = batch.entire
        negatives_ZBLD = batch.own_rows(
            draw_negatives(entire.frozen_BLD, entire.counted_BL, self.settings.negatives, generator), 1
        )
        targets = self.targets(batch).to(updated_BLD.device)
        return info_nce_loss(
            updated_BLD, targets, negatives_ZBLD, batch.counted_BL, self.settings.temperature
        )

    def retain_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Compute eq. 11 over all real tokens: a moved sink would damage the whole model."""
        return retention_loss(updated_BLD, batch.frozen_BLD, batch.mask_BL)

    def targets(self, batch: StateBatch) -> Tensor:
        """Return the POVs of a batch, broadcastable to B x L x D, by seed, domain and sample only.

        `batch` granularity takes the directions from the batch at hand, the others from the whole domain.
        """
        offset = self.settings.offset
        granularity = offset.resolved_granularity
        if offset.mode == "reference":
            return self._reference_target(batch)
        if granularity == "batch":
            states_ND = counted_states(batch)
            chosen_ND = select_principal_states(states_ND, offset.principal, self.retain)
            return self._draw(principal_directions(chosen_ND, offset.directions), (), ("batch", batch.step))
        directions_KD = self.domain_directions[batch.domain]
        if granularity == "domain":
            return self._draw(directions_KD, (), ("domain", batch.domain))
        length = batch.frozen_BLD.shape[1] if granularity == "token" else 1
        rows = [
            self._draw(directions_KD, (length,), (granularity, batch.domain, sample))
            for sample in batch.samples
        ]
        return torch.stack(rows)

    def _draw(self, directions_KD: Tensor, shape: tuple[int, ...], key: tuple[int | str, ...]) -> Tensor:
        offset = self.settings.offset
        return principal_offset_vectors(
            directions_KD,
            shape,
            seeded_generator(self.seed, *key),
            suppression=offset.suppression,
            perturbation=offset.perturbation,
            operator=offset.operator,
        )

    def _reference_target(self, batch: StateBatch) -> Tensor:
        states_ND = counted_states(batch)
        generator = seeded_generator(self.seed, "reference", batch.step)
        return reference_offset_vector(
            states_ND, self.settings.offset.directions, generator, self.model_dtype
        )


def counted_states(batch: StateBatch) -> Tensor:
    """Return the frozen states of the counted tokens of all ranks, N x D on the processor."""
    return batch.entire.frozen_BLD[batch.entire.counted_BL.bool()].cpu()
