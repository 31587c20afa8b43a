"""The models of an audit: opened one at a time, identified by their weights, proved unchanged by attacks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.errors import ModelError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.models.architectures import ModelStructure
from falcon_unlearn.models.head import contiguous_head_input
from falcon_unlearn.results_audit import AuditedModelRecord, ModelRole

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class AuditedModel:
    """Say how one model of the audit is opened; it is in memory only while the context is open."""

    role: ModelRole
    name: str
    """For the record, never a local path."""
    load: Callable[[], AbstractContextManager[LoadedModel]]


@dataclass(frozen=True)
class OpenModel:
    """Hold a model that is in memory and ready to be asked."""

    role: ModelRole
    subject: Subject
    structure: ModelStructure
    record: AuditedModelRecord
    """Its hash is that of the tensors as computed with."""


@contextmanager
def opened(model: AuditedModel, *, batch_tokens: int) -> Iterator[OpenModel]:
    """Load a model, in evaluation mode and in the dtype that is fast here, and identify it."""
    with (
        model.load() as loaded,
        evaluation_mode(loaded.model) as dtype,
        contiguous_head_input(loaded.model),
    ):
        record = AuditedModelRecord(
            role=model.role,
            name=model.name,
            weights_sha256=weights_sha256(loaded.model),
            tokenizer_sha256=tokenizer_sha256(loaded.tokenizer),
            parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
            compute_dtype=str(dtype).removeprefix("torch."),
        )
        subject = Subject(loaded.model, loaded.tokenizer, batch_tokens)
        yield OpenModel(model.role, subject, loaded.structure, record)


def weights_sha256(model: nn.Module) -> str:
    """Hash names, types and values of all parameters and buffers."""
    digest = hashlib.sha256()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{data.dtype}:{tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash the vocabulary, the special tokens and the chat template."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    template = getattr(tokenizer, "chat_template", None)
    text = repr((vocabulary, sorted(tokenizer.special_tokens_map.items(), key=str), template))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def differing_tensors(original: AuditedModel, unlearned: AuditedModel) -> dict[str, Tensor]:
    """Return the original's tensors by parameter name, where the unlearned model's differ.

    Raises:
        ModelError: The two models have different tensors.
    """
    with original.load() as loaded:
        before = {name: p.detach().cpu().clone() for name, p in loaded.model.named_parameters()}
    with unlearned.load() as loaded:
        after = dict(loaded.model.named_parameters())
        if {n: t.shape for n, t in before.items()} != {n: t.shape for n, t in after.items()}:
            raise ModelError(
                f"the models {original.name!r} and {unlearned.name!r} have different tensors",
                hint="give the model before unlearning as ORIGINAL",
            )
        return {
            name: tensor
            for name, tensor in before.items()
            if not tensor.to(after[name].dtype).equal(after[name].detach().cpu())
        }


@dataclass(frozen=True)
class ModelState:
    """Remember everything that an attack must leave as it was."""

    weights: str
    hooks: Mapping[str, tuple[int, ...]]
    gradients: Mapping[str, tuple[bool, bool]]
    """Per parameter: requires a gradient, has one."""
    training: frozenset[str]
    modules: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, model: nn.Module) -> ModelState:
        """Capture the present state."""
        return cls(
            weights=weights_sha256(model),
            hooks={
                f"{name}.{kind}": tuple(getattr(module, kind))
                for name, module in model.named_modules()
                for kind in _HOOKS
                if getattr(module, kind)
            },
            gradients={n: (p.requires_grad, p.grad is not None) for n, p in model.named_parameters()},
            training=frozenset(name for name, module in model.named_modules() if module.training),
            modules=tuple((name, id(module)) for name, module in model.named_modules()),
        )

    def prove_unchanged(self, model: nn.Module, culprit: str) -> None:
        """Compare with the present state.

        Raises:
            ModelError: Something differs; says what.
        """
        now = ModelState.of(model)
        parts = ("weights", "hooks", "gradients", "training", "modules")
        changed = [part for part in parts if getattr(self, part) != getattr(now, part)]
        if changed:
            raise ModelError(
                f"the attack {culprit!r} left the model changed: {', '.join(changed)}",
                hint="this is a fault of the attack; leave it out with --attack and report it",
            )


def probe_logits(subject: Subject, texts: list[str]) -> Tensor:
    """Return the logits after each text, to see whether a model computes something else than before."""
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([subject.encode(text)], device=subject.model.device)
            rows.append(subject.model(input_ids=ids, use_cache=False).logits[0, -1].float().cpu())
    return torch.stack(rows)
