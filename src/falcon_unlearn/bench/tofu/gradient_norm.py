"""Size of the gradient of one answer's loss, a membership score that needs the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from falcon_unlearn.bench.tofu.encoding import EncodedQuestion
from falcon_unlearn.errors import NumericalError


def gradient_norms(
    model: Any, questions: Sequence[EncodedQuestion], done: Callable[[int], None]
) -> list[float]:
    """Return per question the 2-norm of the gradient, averaged over parameter tensors (batch of one).

    The loss is the mean negative log-probability of the right answer's tokens. Parameters and their gradient
    flags are as before afterwards.

    Raises:
        NumericalError: a norm is not finite.
    """
    parameters = list(model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        return [_gradient_norm(model, parameters, question, done) for question in questions]
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def _gradient_norm(
    model: Any, parameters: list[torch.Tensor], question: EncodedQuestion, done: Callable[[int], None]
) -> float:
    fed = [*question.prompt, *question.answer][:-1]
    with torch.enable_grad():
        output = model(
            input_ids=torch.tensor([fed], device=model.device),
            use_cache=False,
            logits_to_keep=len(question.answer),
        )
        targets = torch.tensor(question.answer, device=model.device)
        loss = torch.nn.functional.cross_entropy(output.logits[0].float(), targets)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    value = float(torch.stack(norms).mean())
    if value != value or value == float("inf"):
        raise NumericalError(
            "the gradient of an answer is not finite", hint="the weights are damaged; try float32"
        )
    done(1)
    return value
