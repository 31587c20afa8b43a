from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from falcon_unlearn.objectives.outputs.base import TokenBatch

VOCABULARY = 7


def build(lengths, kinds, seed, dtype=torch.float64, scale=2.0):
    """Return random logits and a batch of ragged sequences that carries both kinds of reference."""
    chance = torch.Generator().manual_seed(seed)

    def draw():
        size = (sum(lengths), VOCABULARY)
        return (scale * torch.randn(size, generator=chance, dtype=torch.float64)).to(dtype)

    logits, frozen = draw(), draw()
    labels = torch.randint(VOCABULARY, (sum(lengths),), generator=chance)
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    reference = frozen.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    is_alternative = torch.tensor([kind == "a" for kind in kinds])
    batch = TokenBatch(labels, owners, len(lengths), is_alternative, 0, reference, frozen)
    return logits, batch


@pytest.fixture
def make_batch():
    """Build (logits, batch): `kinds` has o for each original and a for each alternative sequence."""

    def make(lengths=(3, 1, 5, 2), kinds=None, seed=0, **options):
        return build(lengths, kinds or "o" * len(lengths), seed, **options)

    return make


@pytest.fixture
def mixed(make_batch):
    """Three originals and three alternatives, interleaved, all of different lengths."""
    return make_batch((3, 1, 4, 2, 6, 5), "oaaoao", seed=5)


@pytest.fixture
def without():
    """Return a batch with some fields replaced, by default its references removed."""
    return lambda batch, *fields: replace(batch, **dict.fromkeys(fields))
