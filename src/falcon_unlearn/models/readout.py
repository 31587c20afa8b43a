"""Read token log-probabilities from hidden states of any layer, through the model's own norm and head.

Shapes: P positions, T targets, V vocabulary, S drawn words, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import adjust_logits


class HiddenReadout:
    """Score targets at hidden states; everything behind the norm is computed in float32.

    With `vocabulary` words drawn, the softmax runs over those and the target, not over all words. Order among
    targets at one position is exact then; only the normaliser is another one.
    """

    def __init__(self, engine: BlockEngine, *, vocabulary: int | None = None, seed: int = 0) -> None:
        """Copy the head's rows.

        Args:
            engine: Engine over the model.
            vocabulary: Words in the softmax; None, or more than there are: all.
            seed: Decides which words are drawn.
        """
        model: Any = engine.model
        head = model.get_output_embeddings()
        self._norm = getattr(engine.base, engine.structure.norm_name)
        self._config = model.config
        self._weight, self._bias = head.weight.detach(), getattr(head, "bias", None)
        size = len(self._weight)
        drawn = torch.arange(size)
        if vocabulary is not None and vocabulary < size:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(size, generator=generator)[:vocabulary].sort().values
        self._drawn = torch.zeros(size, dtype=torch.bool)
        self._drawn[drawn] = True
        self._drawn = self._drawn.to(self._weight.device)
        self._rows = self._weight[self._drawn].float()
        self._row_bias = None if self._bias is None else self._bias.detach()[self._drawn].float()

    @property
    def num_words(self) -> int:
        """Return S."""
        return len(self._rows)

    def log_probabilities(self, states_PD: Tensor, positions_T: Tensor, targets_T: Tensor) -> Tensor:
        """Return log p of `targets_T`, each read at state number `positions_T`: T float32, in nats."""
        normed_PD = self._norm(states_PD).float()
        words_PS = adjust_logits(self._config, linear(normed_PD, self._rows, self._row_bias))
        normaliser_T = words_PS.logsumexp(dim=-1)[positions_T]
        logits_T = (normed_PD[positions_T] * self._weight[targets_T].float()).sum(dim=-1)
        if self._bias is not None:
            logits_T = logits_T + self._bias.detach()[targets_T].float()
        logits_T = adjust_logits(self._config, logits_T)
        # A target that was not drawn joins the softmax.
        joined_T = torch.where(self._drawn[targets_T], normaliser_T, torch.logaddexp(normaliser_T, logits_T))
        return logits_T - joined_T
