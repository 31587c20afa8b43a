"""Attack by setting small weights to zero: an edit spread over many of them goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.activations.collect import batches_by_length, pad_token_ids
from falcon_unlearn.audit.attacks.matrices import block_matrices, calibration_texts
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.linalg.pruning import (
    random_mask,
    smallest,
    smallest_per_output,
    wanda_scores,
)
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced

QUICK_SHARES = (0.1, 0.3)
FULL_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
_MAXIMUM_TEXTS = 64

Masks = dict[str, Tensor]
"""Parameter name to the entries that become zero."""


@dataclass(frozen=True)
class Pruning:
    """Zero a share of every matrix inside the blocks: smallest magnitude, or smallest Wanda score.

    Magnitude compares within a matrix, Wanda within an output, on retain texts. A random mask of the same
    sparsity is the control of both.
    """

    shares: tuple[float, ...] | None = None
    """Sparsities; None: two in the quick tier, five in the full one."""
    name: str = "pruning"
    tier: Tier = "quick"
    access: Access = "weights"
    knowledge: Knowledge = "retain data"
    needs_original: bool = False
    source: str = "Han et al. 2015; Sun et al. 2023, arXiv 2306.11695"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield magnitude and Wanda at every sparsity, then a random mask at each."""
        shares = self.shares or (FULL_SHARES if context.tier == "full" else QUICK_SHARES)
        matrices = block_matrices(context.subject.model, context.structure)
        norms, num_texts = input_norms(context)
        plans: list[tuple[str, Cost, Callable[[float], Masks]]] = [
            ("magnitude", Cost(), lambda share: {n: smallest(w.abs(), share) for n, w in matrices.items()}),
            ("wanda", Cost(num_texts), lambda share: _wanda(matrices, norms, share)),
        ]
        for kind, cost, plan in plans:
            for share in shares:
                # Masks are as large as the model: they are found anew where they are needed again.
                again = partial(_pruned_by, context.subject.model, matrices, plan, share)
                with again() as details:
                    yield Attacked(f"{kind}-{percent(share)}", cost=cost, details=details, again=again)
        for share in shares:
            generator = torch.Generator().manual_seed(context.seed)
            masks = {n: random_mask(w, round(share * w.numel()), generator) for n, w in matrices.items()}
            with pruned(context.subject.model, matrices, masks) as details:
                yield Attacked(
                    variant=f"random-{percent(share)}",
                    control=f"magnitude-{percent(share)}",
                    details=details,
                )


def percent(share: float) -> str:
    """Write a share as a percentage without unit: `10`, `2.5`."""
    return f"{100 * share:g}"


@contextmanager
def pruned(model: Any, matrices: dict[str, nn.Parameter], masks: Masks) -> Iterator[dict[str, float | str]]:
    """Zero the masked entries while the context is open, and tell how many entries and matrices change."""
    replacements = {n: matrices[n].detach().masked_fill(mask, 0.0) for n, mask in masks.items()}
    zeroed = {n: int((mask & (matrices[n] != 0)).sum()) for n, mask in masks.items()}
    total = sum(matrix.numel() for matrix in matrices.values())
    details: dict[str, float | str] = {
        "matrices": len(masks),
        "changed_matrices": sum(count > 0 for count in zeroed.values()),
        "zeroed_share": sum(zeroed.values()) / total,
    }
    with tensors_replaced(model, replacements):
        yield details


def _pruned_by(
    model: Any, matrices: dict[str, nn.Parameter], plan: Callable[[float], Masks], share: float
) -> AbstractContextManager[dict[str, float | str]]:
    return pruned(model, matrices, plan(share))


def _wanda(matrices: dict[str, nn.Parameter], norms: dict[str, Tensor], share: float) -> Masks:
    """Return Wanda's masks; a matrix that is not a linear layer's weight falls back to magnitude."""
    return {
        name: smallest_per_output(wanda_scores(weight, norms[name]), share)
        if name in norms
        else smallest(weight.abs(), share)
        for name, weight in matrices.items()
    }


def input_norms(context: AttackContext) -> tuple[dict[str, Tensor], int]:
    """Return ||x_j||_2 of what enters every linear layer of the blocks, by weight name, and the texts run.

    Texts are padded on the right; padding is not counted.
    """
    texts = calibration_texts(context, _MAXIMUM_TEXTS)
    engine = BlockEngine(context.subject.model, context.structure)
    squares: dict[str, Tensor] = {}
    stem = context.structure.block_prefix(0).removesuffix("0.")
    masks: list[Tensor] = []

    def attach(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            real_NI = inputs[0][masks[-1]].float()
            squares[name] = squares.get(name, torch.zeros(real_NI.shape[1])) + real_NI.square().sum(0).cpu()

        return hook

    handles = [
        module.register_forward_pre_hook(attach(f"{name}.weight"))
        for name, module in context.subject.model.named_modules()
        if name.startswith(stem) and isinstance(module, nn.Linear)
    ]
    try:
        with torch.inference_mode():
            for batch in batches_by_length([len(text) for text in texts], context.subject.batch_tokens):
                ids_BL, mask_BL = pad_token_ids(texts, batch, engine.device)
                masks.append(mask_BL.bool())
                engine.base(input_ids=ids_BL, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}, len(texts)
