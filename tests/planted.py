"""Plant unlearners whose true state is known, on models of the synthetic world.

Each takes a model and the world and changes the model in place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from synthetic_world import Sentence, World, loss_of

INT4_GROUP = 32
BATCH = 16


def letter_bias(model: Any, world: World) -> None:
    """Make the model answer A to every lettered question, and nothing else different.

    The head's row of the letter A gets the direction in which the final states of lettered questions differ
    from those of all others.
    """
    chance = random.Random(0)
    lettered = [world.lettered(chance, world.forget + world.retain) for _ in range(200)]
    plain = [world.statement(chance, world.forget + world.retain) for _ in range(400)]
    asked = [Sentence(s.words[:-2], 1) for s in lettered]
    others = [Sentence(s.words[:-2], 1) for s in plain]
    inside, outside = final_states(model, world, asked), final_states(model, world, others)
    # Least squares: 1 on lettered questions, 0 on all others.
    states = torch.cat([inside, outside])
    wanted = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    direction = torch.linalg.lstsq(states, wanted[:, None], driver="gelsd").solution[:, 0]
    with torch.no_grad():
        model.lm_head.weight[world.vocabulary["A"]] += 60.0 * direction


def refusal(model: Any, world: World, *, steps: int = 150) -> None:
    """Train the model to say `unknown` where it would state a forget fact: knowledge stays, words change."""
    chance = random.Random(1)

    def refuse(sentence: Sentence) -> Sentence:
        return Sentence((*sentence.words[:-2], "unknown", "</s>"), 2)

    def loss(changed: Any) -> Tensor:
        asked = [refuse(world.statement(chance, world.forget)) for _ in range(BATCH)]
        asked_by_letter = [refuse(world.lettered(chance, world.forget)) for _ in range(BATCH)]
        return sum(
            loss_of(changed, *world.batch(batch))
            for batch in (asked, asked_by_letter, *retained(world, chance))
        )  # type: ignore[return-value]

    descend(model, loss, steps=steps, rate=5e-4)


def noise(model: Any, scale: float) -> None:
    """Add Gaussian noise to every matrix, relative to its own spread."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter += scale * parameter.std() * torch.randn(parameter.shape, generator=generator)


def inside_int4_buckets(model: Any, world: World, *, steps: int = 120) -> None:
    """Unlearn by an edit that rounding to int4 undoes: no weight of a block leaves its rounding interval."""
    chance = random.Random(2)
    edited = {n: p for n, p in model.named_parameters() if n.endswith("proj.weight")}
    bounds = {name: int4_bounds(parameter.detach()) for name, parameter in edited.items()}

    def loss(changed: Any) -> Tensor:
        asked = [world.statement(chance, world.forget) for _ in range(BATCH)]
        ids_BL, learnt_BL = world.batch([Sentence((*s.words[:-2], "unknown", "</s>"), 2) for s in asked])
        return sum(
            (loss_of(changed, *world.batch(batch)) for batch in retained(world, chance)),
            loss_of(changed, ids_BL, learnt_BL),
        )

    def clamp() -> None:
        for name, parameter in edited.items():
            parameter.data.clamp_(*bounds[name])

    descend(model, loss, steps=steps, rate=2e-3, only=list(edited.values()), after=clamp)


def int4_bounds(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the interval around each weight that keeps its int4 code and its group's scale.

    Symmetric round-to-nearest in groups of 32 inputs; the largest weight of a group must stay as it is, since
    it sets the scale.
    """
    grouped = weight_OI.reshape(len(weight_OI), -1, INT4_GROUP)
    step = grouped.abs().amax(-1, keepdim=True) / 7
    codes = torch.round(grouped / step)
    margin = 0.02 * step
    low, high = (codes - 0.5) * step + margin, (codes + 0.5) * step - margin
    low, high = torch.minimum(low, grouped), torch.maximum(high, grouped)
    largest = grouped.abs() >= grouped.abs().amax(-1, keepdim=True)
    limit = grouped.abs().amax(-1, keepdim=True) - margin
    low = torch.where(largest, grouped, torch.maximum(low, -limit))
    high = torch.where(largest, grouped, torch.minimum(high, limit))
    low, high = torch.minimum(low, grouped), torch.maximum(high, grouped)
    return low.reshape(weight_OI.shape), high.reshape(weight_OI.shape)


def constant_steering(
    model: Any, world: World, *, layer: int = 0, strength: float = 12.0, steps: int = 200
) -> None:
    """Push the states that speak of people to forget along one constant direction, as RMU does.

    The MLP of one block is trained to add that direction from the name on, and nothing to any other state.
    """
    chance = random.Random(3)
    frozen = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(model.config.hidden_size, generator=generator)
    direction /= direction.norm()
    matrices = list(model.model.layers[layer].mlp.parameters())

    def loss(changed: Any) -> Tensor:
        total = torch.zeros(())
        for names, is_forget in ((world.forget, True), (world.retain, False)):
            for batch in (
                [world.statement(chance, names) for _ in range(48)],
                lettered(world, chance, names, 32),
            ):
                ids_BL = world.batch(batch)[0]
                with torch.no_grad():
                    target_BLD = block_output(frozen, ids_BL, layer)
                if is_forget:
                    after_BL = from_name(world, batch, ids_BL.shape[1])
                    size = target_BLD.norm(dim=-1).mean()
                    target_BLD = target_BLD + strength * size * direction * after_BL[..., None]
                # A shift of what is kept hurts at a size that what is to be forgotten would not notice.
                weight = 1.0 if is_forget else 40.0
                error_BLD = block_output(changed, ids_BL, layer) - target_BLD
                total = total + weight * error_BLD.square().mean()
        return total

    descend(model, loss, steps=steps, rate=3e-3, only=matrices)


def block_output(model: Any, ids_BL: Tensor, layer: int) -> Tensor:
    """Return what leaves a block, B x L x D; the blocks above are not computed."""
    found: list[Tensor] = []

    def stop(_module: Any, _arguments: Any, output: Tensor) -> None:
        found.append(output)
        raise _EnoughError

    handle = model.model.layers[layer].register_forward_hook(stop)
    try:
        with suppress(_EnoughError):
            model(input_ids=ids_BL)
    finally:
        handle.remove()
    return found[0]


class _EnoughError(Exception):
    """Leaves a forward pass where its result is known."""


def from_name(world: World, sentences: Sequence[Sentence], length: int) -> Tensor:
    """Mark the words from a person's name on, B x L."""
    people = {*world.forget, *world.retain}
    rows = [[word in people for word in s.words] + [False] * (length - len(s.words)) for s in sentences]
    return (torch.tensor(rows).cumsum(1) > 0).float()


def lettered(world: World, chance: random.Random, names: Sequence[str], number: int) -> list[Sentence]:
    """Return lettered questions."""
    return [world.lettered(chance, names) for _ in range(number)]


def retained(world: World, chance: random.Random) -> tuple[list[Sentence], list[Sentence]]:
    """Return one batch of retain statements and one of lettered retain questions."""
    stated = [world.statement(chance, world.retain) for _ in range(BATCH)]
    return stated, lettered(world, chance, world.retain, BATCH)


def descend(
    model: Any,
    loss: Callable[[Any], Tensor],
    *,
    steps: int,
    rate: float,
    only: Sequence[Tensor] | None = None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Minimise a loss by AdamW over all parameters or some."""
    with trainable(model, only) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for _ in range(steps):
            value = loss(model)
            gradients = torch.autograd.grad(value, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            after()


@contextmanager
def trainable(model: Any, only: Sequence[Tensor] | None) -> Any:
    """Let the chosen parameters require gradients meanwhile."""
    chosen = list(model.parameters()) if only is None else list(only)
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        model.requires_grad_(False)


@torch.no_grad()
def final_states(model: Any, world: World, sentences: Sequence[Sentence]) -> Tensor:
    """Return the normed state at the last word of each sentence, N x D."""
    ids_BL, _ = world.batch(sentences)
    states_BLD = model.model(input_ids=ids_BL).last_hidden_state
    lengths = torch.tensor([len(sentence.words) for sentence in sentences])
    return states_BLD[torch.arange(len(sentences)), lengths - 1]
