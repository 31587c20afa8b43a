"""FALCON as a plain loop: two whole models, full forward passes, separate backward passes, nothing cached.

It shares no code with the package but the seeded draws of r and the order of batches, which are inputs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PlainSettings:
    layer: int
    trained: list[str]
    directions: int
    temperature: float
    retain_multiplier: float
    learning_rate: float
    steps: int
    seed: int
    sink_factor: float


def hidden_states(model, ids, mask, layer) -> Tensor:
    """Return the output of block `layer` from a full forward pass of the whole model, head included."""
    kept = {}
    decoder = model.get_decoder()
    handle = decoder.layers[layer].register_forward_hook(
        lambda _m, _i, out: kept.__setitem__("states", out[0] if isinstance(out, tuple) else out)
    )
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    handle.remove()
    return kept["states"]


def pad(rows: list[tuple[int, ...]], extra: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return ids, mask


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def not_sinks(states: Tensor, mask: Tensor, factor: float) -> Tensor:
    keep = torch.zeros_like(mask, dtype=torch.bool)
    for b in range(len(states)):
        norms = states[b, mask[b].bool()].norm(dim=-1)
        # The lower median, as torch defines it for an even count.
        limit = factor * norms.sort().values[(len(norms) - 1) // 2]
        keep[b, mask[b].bool()] = norms <= limit
    return keep


def domain_directions(frozen, samples, settings) -> Tensor:
    rows = []
    for sample in samples:
        ids, mask = pad([sample], 0)
        states = hidden_states(frozen, ids, mask, settings.layer)
        rows.append(states[not_sinks(states, mask, settings.sink_factor)])
    return torch.linalg.svd(torch.cat(rows).double(), full_matrices=False)[2][: settings.directions]


def run_plain(model, forget, retain, plan, draw_random, settings: PlainSettings, extra_padding: int = 0):
    """Train a copy of `model` and return its trained parameters.

    Args:
        forget: per domain, a list of token tuples. retain: likewise per set.
        plan: step -> (domain, forget indices, [(set, index)]).
        draw_random: (domain, sample) -> r of eq. 8.
    """
    frozen, updated = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model).requires_grad_(False)
    parameters = dict(updated.named_parameters())
    trained = [parameters[name].requires_grad_(True) for name in settings.trained]
    with torch.no_grad():
        spans = [domain_directions(frozen, samples, settings) for samples in forget]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    for step in range(settings.steps):
        domain, forget_rows, retain_rows = plan(step)
        ids, mask = pad([forget[domain][i] for i in forget_rows], extra_padding)
        with torch.no_grad():
            old = hidden_states(frozen, ids, mask, settings.layer)
        new = hidden_states(updated, ids, mask, settings.layer)
        targets = []
        for i in forget_rows:
            r = draw_random(domain, i).double()
            projected = r - spans[domain].T @ (spans[domain] @ r)
            targets.append((projected / projected.norm()).float())
        positive = cosine(new, torch.stack(targets)[:, None, :].expand_as(new)) / settings.temperature
        negative = cosine(new, old) / settings.temperature
        losses = -torch.log(positive.exp() / (positive.exp() + negative.exp()))
        forget_gradients = torch.autograd.grad(
            losses[not_sinks(old, mask, settings.sink_factor)].mean(), trained
        )

        ids, mask = pad([retain[c][i] for c, i in retain_rows], extra_padding)
        with torch.no_grad():
            old = hidden_states(frozen, ids, mask, settings.layer)
        new = hidden_states(updated, ids, mask, settings.layer)
        loss = settings.retain_multiplier * (1 - cosine(new, old)[mask.bool()].mean())
        retain_gradients = torch.autograd.grad(loss, trained)

        for parameter, u, q in zip(trained, forget_gradients, retain_gradients, strict=True):
            if q.norm() <= 1e-5 * settings.retain_multiplier * u.norm():
                q = torch.zeros_like(q)  # rounding noise: the exact gradient at step 0 is zero
            product = (u * q).sum()
            if product < 0:
                u = u - product / (q * q).sum() * q
            parameter.grad = u + q
        optimizer.step()
    return {name: parameters[name].detach() for name in settings.trained}
