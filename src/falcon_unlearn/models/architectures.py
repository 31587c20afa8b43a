"""Recognise the parts of a decoder-only model by structure, and report what was found.

A family needs no code here when its block list, final norm and linear layers can be found by the rules below.
A part that looks like a container of experts is an error rather than a silent skip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.results import CoverageRow

ROLE_SUFFIXES: dict[str, tuple[str, ...]] = {
    "mlp.down": ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.c_proj"),
    "mlp.up": ("mlp.up_proj", "mlp.dense_h_to_4h", "mlp.fc1", "mlp.c_fc"),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.gate_up": ("mlp.gate_up_proj",),
    "attention.query": ("self_attn.q_proj",),
    "attention.key": ("self_attn.k_proj",),
    "attention.value": ("self_attn.v_proj",),
    "attention.query_key_value": ("self_attn.qkv_proj", "attention.query_key_value"),
    "attention.output": ("self_attn.o_proj", "self_attn.dense", "attention.dense", "self_attn.out_proj"),
}
"""Role to the dotted names, inside one block, that play it."""

TESTED_FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
    "gpt_neox",
)
"""Model types that the test suite runs through the engine; others work by structure, unproved."""

_EXPERT = re.compile(r"(^|\.)(experts?|local_experts|block_sparse_moe|moe)(\.|$)")


@dataclass(frozen=True)
class ModelStructure:
    """Locate the parts of one model. Paths are relative to the causal language model."""

    model_type: str
    base_path: str
    """Dotted path of the decoder whose forward runs embeddings, blocks and final norm."""
    blocks_name: str
    """Name of the block list inside the decoder."""
    norm_name: str
    """Name of the final norm inside the decoder."""
    num_blocks: int
    hidden_size: int
    expert_containers: tuple[str, ...]
    """Parameter-name stems, inside a block, that hold experts."""

    def block_prefix(self, layer: int | str) -> str:
        """Return the parameter-name prefix of block `layer`, with its trailing dot."""
        return ".".join(part for part in (self.base_path, self.blocks_name, str(layer)) if part) + "."


def find_structure(model: nn.Module) -> ModelStructure:
    """Locate decoder, blocks and final norm of a causal language model.

    Raises:
        ModelError: No unambiguous list of blocks or no final norm was found.
    """
    base_path, base = _find_decoder(model)
    config: Any = base.config
    num_blocks = int(config.num_hidden_layers)
    lists = [
        name
        for name, child in base.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_blocks
    ]
    if len(lists) != 1:
        raise ModelError(
            f"model type {config.model_type!r}: found {len(lists)} lists of {num_blocks} blocks in the "
            "decoder, 1 is needed",
            hint=f"Families known to work: {', '.join(TESTED_FAMILIES)}.",
        )
    norms = [
        name
        for name, child in base.named_children()
        if "norm" in type(child).__name__.lower() and not isinstance(child, nn.ModuleList)
    ]
    if len(norms) != 1:
        raise ModelError(
            f"model type {config.model_type!r}: found final norms {norms} in the decoder, 1 is needed",
            hint=f"Families known to work: {', '.join(TESTED_FAMILIES)}.",
        )
    blocks = getattr(base, lists[0])
    return ModelStructure(
        model_type=str(config.model_type),
        base_path=base_path,
        blocks_name=lists[0],
        norm_name=norms[0],
        num_blocks=num_blocks,
        hidden_size=int(config.hidden_size),
        expert_containers=_expert_containers(blocks),
    )


def _find_decoder(model: nn.Module) -> tuple[str, nn.Module]:
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder = getattr(model, "base_model", model) if get_decoder is None else get_decoder()
    for name, module in model.named_modules():
        if module is decoder:
            return name, module
    raise ModelError(
        f"{type(model).__name__} has no decoder that can be addressed",
        hint="Give a decoder-only causal language model.",
    )


def _expert_containers(blocks: Iterable[nn.Module]) -> tuple[str, ...]:
    found = {
        name[: match.end(2)]
        for block in blocks
        for name, _ in block.named_parameters()
        if (match := _EXPERT.search(name))
    }
    return tuple(sorted(found))


def parameter_of_role(model: nn.Module, structure: ModelStructure, role: str, layer: int) -> str | None:
    """Return the full name of the weight that plays `role` in block `layer`, or None."""
    prefix = structure.block_prefix(layer)
    names = _parameter_names(model)
    candidates = [f"{prefix}{suffix}.weight" for suffix in ROLE_SUFFIXES.get(role, ())]
    found = [name for name in candidates if name in names]
    if not found and role not in ROLE_SUFFIXES:
        exact = f"{prefix}{role}" if role.endswith(".weight") else f"{prefix}{role}.weight"
        found = [exact] if exact in names else []
    return found[0] if found else None


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def resolve_trained_parameters(
    model: nn.Module, structure: ModelStructure, roles: Iterable[str], layers: Iterable[int]
) -> dict[str, int]:
    """Name the weights to train, with their block index.

    Args:
        model: The causal language model.
        structure: Its structure.
        roles: Roles such as `mlp.down`, or dotted module names inside a block.
        layers: Block indices.

    Returns:
        Full parameter name to block index, lowest block first.

    Raises:
        UsageError: A role is unknown or absent, or a layer is out of range.
        ModelError: The role lies in a container of experts, which is not covered.
    """
    resolved: dict[str, int] = {}
    for layer in sorted(layers):
        if not 0 <= layer < structure.num_blocks:
            raise UsageError(
                f"layer {layer} does not exist: the model has blocks 0 to {structure.num_blocks - 1}",
                hint="Set selection.layer inside that range, or leave it out to let the selection choose.",
            )
        for role in roles:
            name = parameter_of_role(model, structure, role, layer)
            if name is None:
                raise _missing_role(model, structure, role, layer)
            resolved[name] = layer
    return resolved


def _missing_role(
    model: nn.Module, structure: ModelStructure, role: str, layer: int
) -> ModelError | UsageError:
    if structure.expert_containers and role.startswith("mlp"):
        return ModelError(
            f"block {layer} holds experts ({', '.join(structure.expert_containers)}), and role {role!r} "
            "matches none of its matrices: editing only what lies beside the experts would leave the "
            "knowledge in them",
            hint="Mixture-of-experts models are not covered; choose an attention role such as "
            "train.modules=[attention.output] if that is what you want.",
        )
    available = [row.role for row in coverage(model, structure) if row.role != "other"]
    return UsageError(
        f"train.modules: role {role!r} was not found in block {layer} of this {structure.model_type} model",
        hint=f"Roles found: {', '.join(available) or 'none'}.",
    )


def coverage(model: nn.Module, structure: ModelStructure) -> list[CoverageRow]:
    """List every role with the number of blocks in which it was found, and unmatched matrices as `other`."""
    shapes = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    found: dict[tuple[str, str], tuple[int, list[int]]] = {}
    for layer in range(structure.num_blocks):
        prefix = structure.block_prefix(layer)
        roles = {f"{s}.weight": role for role, suffixes in ROLE_SUFFIXES.items() for s in suffixes}
        for name, shape in shapes.items():
            if name.startswith(prefix) and len(shape) >= 2:
                inside = name[len(prefix) :]
                key = (roles.get(inside, "other"), structure.block_prefix("{layer}") + inside)
                count, _ = found.get(key, (0, shape))
                found[key] = (count + 1, shape)
    order = [*ROLE_SUFFIXES, "other"]
    rows = [
        CoverageRow(role=role, pattern=pattern, blocks=count, shape=shape)
        for (role, pattern), (count, shape) in found.items()
    ]
    return sorted(rows, key=lambda row: (order.index(row.role), row.pattern))
