"""Hold a run inside its utility budget: the perplexity of held-out retain text may rise by a given share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from falcon_unlearn.activations.collect import batches_by_length
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.errors import NumericalError, UsageError
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states
from falcon_unlearn.runs import sync_file, write_failure


class UtilityMeter:
    """Measure how much worse the model predicts held-out retain text than at the start."""

    def __init__(self, engine: BlockEngine, texts: Sequence[EncodedExample], batch_tokens: int) -> None:
        """Measure the start: the model holds its original tensors now.

        Args:
            engine: Engine over the whole model.
            texts: Held-out retain text.
            batch_tokens: Tokens per forward pass.

        Raises:
            UsageError: There is no text.
        """
        if not texts:
            raise UsageError(
                "train.maximum_utility_loss: needs held-out retain text, and there is none",
                hint="Set data.holdout_share above 0, or leave the budget out.",
            )
        self._engine, self._texts, self._batch_tokens = engine, texts, batch_tokens
        self._start = self.log_perplexity()

    def loss(self) -> float:
        """Return the relative rise of the perplexity; infinite where the model predicts nothing any more."""
        difference = self.log_perplexity() - self._start
        return math.expm1(difference) if difference < 700 else math.inf

    @torch.no_grad()
    def log_perplexity(self) -> float:
        """Return the mean negative log-likelihood in nats per token.

        Raises:
            NumericalError: The model was not finite to begin with.
        """
        total, count = 0.0, 0
        for chosen in batches_by_length([len(text.input_ids) for text in self._texts], self._batch_tokens):
            batch = pack_examples([self._texts[i] for i in chosen], self._engine.device, everything=True)
            logits_MV = head_logits(self._engine.model, supervised_states(self._engine, batch))
            values_M = logits_MV.log_softmax(-1).gather(1, batch.labels_M[:, None])
            total, count = total - float(values_M.double().sum()), count + len(batch.labels_M)
        mean = total / count
        if not math.isfinite(mean):
            if not hasattr(self, "_start"):
                raise NumericalError("the model's predictions of held-out retain text are not finite")
            return math.inf
        return mean


def utility_meter(engine: BlockEngine, data: PreparedData, batch_tokens: int) -> UtilityMeter:
    """Return a meter over what the retain sets hold out.

    Raises:
        UsageError: They hold nothing out.
    """
    held_out = [text for corpus in data.retain for text in corpus.held_out if len(text.input_ids) > 1]
    return UtilityMeter(engine, held_out, batch_tokens)


class UtilityTrail:
    """Keep the trained values every few steps on disk, to go back to one of them."""

    def __init__(self, folder: Path, every: int) -> None:
        """Use an existing folder."""
        self._folder, self._every = folder, every

    def keep(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Write the values after `step` steps, if it is their turn; a kill leaves no half file.

        Raises:
            PrerequisiteError: The disk refused.
        """
        if step % self._every:
            return
        path = self._path(step)
        temporary = path.with_suffix(".part")
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, temporary)
            sync_file(temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise write_failure(path, error) from error

    def read(self, step: int) -> dict[str, Tensor]:
        """Return the values after `step` steps."""
        values: dict[str, Tensor] = load_file(self._path(step))
        return values

    def steps(self, last: int) -> list[int]:
        """Return the kept steps below `last`."""
        return [step for step in range(self._every, last, self._every) if self._path(step).is_file()]

    def _path(self, step: int) -> Path:
        return self._folder / f"after-{step:08d}.values"


def last_inside(steps: Sequence[int], loss_at: Callable[[int], float], limit: float) -> tuple[int, float]:
    """Return the last of rising `steps` whose loss is within `limit`, by bisection, and its loss.

    The loss is taken to rise with the steps; whatever it does, the step returned was measured inside. Step 0
    is the original model and always inside.
    """
    kept, kept_loss = 0, 0.0
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        loss = loss_at(steps[middle])
        if loss <= limit:
            kept, kept_loss, low = steps[middle], loss, middle + 1
        else:
            high = middle
    return kept, kept_loss
