"""States like those of a language model, and how much of a vector lies in a span."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed):
    return torch.Generator().manual_seed(seed)


def decaying_states(num_rows, num_hidden, seed, *, rate=1.0, mean=3.0):
    """Return states with singular values falling like a power, plus a shared mean: as hidden states are."""
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((num_hidden, num_hidden)))[0]
    scales = np.arange(1, num_hidden + 1.0) ** -rate
    states = draw.standard_normal((num_rows, num_hidden)) * scales @ basis.T
    return torch.tensor(states + mean * basis[:, 0] * scales[0]).float()


def energy_inside(vectors, directions):
    """Return the share of squared norm inside the span of orthonormal rows, in float64."""
    vectors, directions = np.asarray(vectors, np.float64), np.asarray(directions, np.float64)
    return ((vectors @ directions.T) ** 2).sum(-1) / (vectors**2).sum(-1)
