"""Find and count the weight matrices inside the blocks, and the texts that say which weights matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.audit.base import AttackContext
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.errors import DataError
from falcon_unlearn.models.architectures import ModelStructure


def block_matrices(model: Any, structure: ModelStructure) -> dict[str, nn.Parameter]:
    """Return every weight of two or more dimensions inside the blocks, experts included, by full name.

    Embeddings, head and norms are left out, as weight-only quantisation and pruning leave them out.
    """
    stem = structure.block_prefix(0).removesuffix("0.")
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(stem) and parameter.ndim >= 2 and parameter.is_floating_point()
    }


def edited_matrices(
    matrices: dict[str, nn.Parameter], original: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (edited, original) of every matrix that differs from the model before unlearning."""
    pairs = {name: (matrices[name].detach(), original[name]) for name in matrices if name in original}
    return {
        name: (edited, before.to(edited.device))
        for name, (edited, before) in pairs.items()
        if not torch.equal(edited, before.to(edited))
    }


def count_changed(matrices: dict[str, nn.Parameter], replacements: dict[str, Tensor]) -> int:
    """Count the matrices that a set of replacements really changes."""
    return sum(not torch.equal(matrices[name].detach(), tensor) for name, tensor in replacements.items())


def calibration_texts(context: AttackContext, maximum: int) -> list[list[int]]:
    """Return token ids of retain texts, else of unrelated texts, and of retain facts with their answers.

    Raises:
        DataError: The attacker holds neither retain texts nor retain facts.
    """
    subject, data = context.subject, context.data
    texts = list(data.retain_texts or data.benign_texts)[: maximum // 2]
    prompting = Prompting(subject.tokenizer, context.chat_template)
    questions = [(prompting.text_question(fact), fact.answer_index) for fact in data.retain]
    texts += [question.prompt + question.completions[right] for question, right in questions]
    if not texts:
        raise DataError(
            "the attacker holds no retain data, which importance scores of weights need",
            hint="give retain facts or retain texts",
        )
    return [subject.encode(text)[: subject.maximum_tokens] for text in texts[:maximum]]
