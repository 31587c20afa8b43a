"""Attack by reading answers from inside through one affine map per block, learnt on unrelated text.

The raw lens is biased in early blocks, whose states are written in another basis. A map adds capacity, so it
never sees forget text, and the null model gets maps of its own in the same way.

Shapes: N states, P positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from falcon_unlearn.audit.attacks.inner_scores import InnerScores, Sequences
from falcon_unlearn.audit.attacks.states import block_outputs
from falcon_unlearn.audit.base import (
    Access,
    AttackContext,
    Attacked,
    Cost,
    ExtraDecoder,
    Knowledge,
    Tier,
)
from falcon_unlearn.events import Notice
from falcon_unlearn.linalg.affine import AffineMap, fit_affine
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.readout import HiddenReadout

_MAXIMUM_STATES = 8192
_MAXIMUM_TOKENS = 256
"""Tokens read of each text."""


@dataclass(frozen=True)
class TunedLens:
    """Score letters and option texts at every block but the last, mapped to what the last block would say.

    The maps minimise the squared distance to the last block's states on retain and unrelated texts, with a
    ridge penalty towards the identity chosen on held-out states: closed form, instead of the training by
    KL divergence of the source.
    """

    maximum_states: int = _MAXIMUM_STATES
    name: str = "tuned-lens"
    tier: Tier = "full"
    access: Access = "activations"
    knowledge: Knowledge = "retain data"
    needs_original: bool = False
    source: str = "Belrose et al. 2023, arXiv 2303.08112; fitted by least squares"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per block but the last."""
        texts = [ids for text in _texts(context) if len(ids := context.subject.encode(text)) > 1]
        if not texts:
            context.sink(Notice(message=f"{self.name}: no texts to learn from; left out", level="warning"))
            return
        engine = BlockEngine(context.subject.model, context.structure)
        maps = self._maps(engine, context, [ids[:_MAXIMUM_TOKENS] for ids in texts])
        readout = HiddenReadout(engine, seed=context.seed)
        inner = InnerScores(context.subject, partial(_read, engine, readout, maps), readout.num_words)
        for layer, one in enumerate(maps):
            yield Attacked(
                variant=f"layer-{layer}",
                decoder=ExtraDecoder(option_scores=inner.scorer(layer)),
                formats=("letter", "text"),
                cost=Cost(forwards=len(texts)),
                details=_details(one),
            )

    def _maps(
        self, engine: BlockEngine, context: AttackContext, texts: Sequence[Sequence[int]]
    ) -> list[AffineMap]:
        *inner, last_ND = block_outputs(
            engine,
            texts,
            maximum_states=self.maximum_states,
            batch_tokens=context.subject.batch_tokens,
            seed=context.seed,
        )
        return [fit_affine(states_ND, last_ND, seed=context.seed) for states_ND in inner]


def _details(one: AffineMap) -> dict[str, float | str]:
    size = one.weight_DD.numel() + one.bias_D.numel()
    details: dict[str, float | str] = {"states": one.num_rows, "penalty": one.penalty, "fitted_numbers": size}
    return details if one.explained is None else {**details, "explained_held_out": one.explained}


def _texts(context: AttackContext) -> tuple[str, ...]:
    data = context.data
    return (*data.retain_texts, *data.benign_texts) or tuple(f"{f.question} {f.answer}" for f in data.retain)


def _read(
    engine: BlockEngine, readout: HiddenReadout, maps: Sequence[AffineMap], batch: Sequences
) -> list[Tensor]:
    """Return the targets' log-probabilities, one tensor per mapped block."""
    scores: list[Tensor] = []

    def observe(layer: int, states_BLD: Tensor) -> None:
        if layer < len(maps):
            mapped_PD = maps[layer](batch.rows(states_BLD))
            scores.append(readout.log_probabilities(mapped_PD, batch.positions_T, batch.targets_T))

    with engine.observe(observe), torch.inference_mode():
        engine.base(input_ids=batch.ids_BL, use_cache=False)
    return scores
