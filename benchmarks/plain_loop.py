"""The cost structure of the published training loop, for comparison: two models, whole forward passes.

Written from the paper's description and its code's behaviour: per step four full forward passes (updated and
frozen model on forget and retain data), two backward passes to the trained tensors with all activations kept,
and one singular value decomposition for the target of the step with its Python loop over directions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def states(model: Any, ids_BL: Tensor, layer: int) -> Tensor:
    """Run the whole model, head included, and return the output of block `layer`."""
    kept: dict[str, Tensor] = {}
    hook = model.model.layers[layer].register_forward_hook(
        lambda _m, _i, out: kept.__setitem__("states", out)
    )
    model(input_ids=ids_BL, use_cache=False)
    hook.remove()
    return kept["states"]


def reference_target(states_ND: Tensor, maximum_directions: int = 1000) -> Tensor:
    """Build the D x D matrix direction by direction, as the released code does, and iterate on it."""
    _, values, right = torch.linalg.svd(states_ND.float(), full_matrices=False)
    matrix = torch.eye(states_ND.shape[1])
    for index in range(min(maximum_directions, len(values))):
        weight = -1000.0 * torch.sigmoid(values[index] / values[0])
        matrix = matrix - weight * torch.outer(right[index], right[index])
    matrix = torch.tanh(matrix + 0.01 * torch.randn_like(matrix))
    vector = torch.ones(states_ND.shape[1])
    vector = vector / vector.norm()
    for _ in range(6):
        vector = torch.tanh(matrix @ vector)
        vector = vector / (vector.norm() + 1e-6)
    return vector


def run_plain_loop(
    model: Any, forget: list[Tensor], retain: list[Tensor], layer: int, trained_layers: list[int], rate: float
) -> list[float]:
    """Train with the plain loop and return the forget loss of every step.

    Args:
        model: A Llama-shaped model; a frozen copy is made.
        forget: Token ids of each step's forget batch, B x L.
        retain: Likewise.
        layer: Loss layer.
        trained_layers: Blocks whose down projections train.
        rate: Learning rate.
    """
    frozen = copy.deepcopy(model).requires_grad_(False)
    trained = [model.model.layers[i].mlp.down_proj.weight for i in trained_layers]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=rate)
    with torch.no_grad():
        targets = [reference_target(states(model, ids, layer).flatten(0, 1)) for ids in forget]
    losses = []
    for forget_ids, retain_ids, target in zip(forget, retain, targets, strict=True):
        updated = states(model, forget_ids, layer).float()
        with torch.no_grad():
            old = states(frozen, forget_ids, layer).float()
        similarity = torch.nn.functional.cosine_similarity
        positive = similarity(updated, target.expand_as(updated), dim=-1) / 0.7
        negative = similarity(updated, old, dim=-1) / 0.7
        forget_loss = torch.nn.functional.softplus(negative - positive).mean()
        forget_gradients = torch.autograd.grad(forget_loss, trained, retain_graph=True)
        updated_retain = states(model, retain_ids, layer).float()
        with torch.no_grad():
            old_retain = states(frozen, retain_ids, layer).float()
        retain_loss = 100.0 * (1 - similarity(updated_retain, old_retain, dim=-1).mean())
        retain_gradients = torch.autograd.grad(retain_loss, trained, retain_graph=True)
        for parameter, u, q in zip(trained, forget_gradients, retain_gradients, strict=True):
            product = (u.float() * q.float()).sum()
            if product < 0:
                u = u - (product / q.float().square().sum()).to(u.dtype) * q
            parameter.grad = u + q
        optimizer.step()
        losses.append(float(forget_loss.detach()))
    return losses
