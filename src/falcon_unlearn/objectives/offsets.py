"""Principal offset vectors (POVs), the targets of the forget loss (paper eq. 8).

Legend: N tokens, D hidden, K principal directions.

`paper` mode never forms a D x D matrix: eq. 8 is r - w * sum_i (r . v_i) v_i, and the directions come from a
truncated singular value decomposition of the N x D states. `reference` mode computes what the released code
computes, which by definition needs the matrix.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError

OVERSAMPLING = 4
"""Directions carried along per direction asked for, while tall matrices are folded."""
REFERENCE_SCALE = 1000.0
REFERENCE_NOISE = 0.01
REFERENCE_ROUNDS = 6
REFERENCE_EPSILON = 1e-6


def seeded_generator(*parts: int | str) -> torch.Generator:
    """Return a processor generator whose stream depends on `parts` only, not on call order."""
    return torch.Generator().manual_seed(zlib.crc32("|".join(map(str, parts)).encode()))


def principal_directions(states_ND: Tensor, num_directions: int, *, centre_D: Tensor | None = None) -> Tensor:
    """Compute the leading right singular vectors of the states.

    Args:
        states_ND: States, N x D; the literal eq. 8 does not centre them.
        num_directions: K; fewer are returned when the rank is lower.
        centre_D: Vector to subtract first.

    Returns:
        Orthonormal rows, K' x D in float32, K' <= min(K, rank), strongest first.

    Raises:
        NumericalError: No states, non-finite states, or states that are all zero.
    """
    return _decompose(states_ND, num_directions, centre_D)[1]


def _decompose(states_ND: Tensor, num_directions: int, centre_D: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return up to K singular values and right vectors; tall matrices are folded in chunk by chunk."""
    states_ND = states_ND.float() if centre_D is None else states_ND.float() - centre_D.float()
    num_rows, num_hidden = states_ND.shape
    num_kept = OVERSAMPLING * num_directions
    if num_rows <= num_hidden or 2 * num_kept > num_hidden:
        return _truncated_svd(states_ND, num_directions)
    # Folding keeps every matrix below D/2 + kept rows, so that nothing of size D x D is formed.
    summary = states_ND[:0]
    for chunk in torch.split(states_ND, max(1, num_hidden // 2)):
        values, right = _truncated_svd(torch.cat([summary, chunk]), num_kept)
        summary = values[:, None] * right
    return _truncated_svd(summary, num_directions)


def _truncated_svd(states_ND: Tensor, num_directions: int) -> tuple[Tensor, Tensor]:
    if states_ND.numel() == 0 or not bool(torch.isfinite(states_ND).all()):
        raise NumericalError("principal directions need at least one state, all of them finite")
    _, singular_values, right = torch.linalg.svd(states_ND, full_matrices=False)
    rank = int((singular_values > singular_values[0] * 1e-6).sum()) if singular_values[0] > 0 else 0
    if rank == 0:
        raise NumericalError(
            "principal directions: all states are zero", hint="The layer's states are constant."
        )
    kept = min(num_directions, rank)
    return singular_values[:kept], right[:kept]


class StreamingDirections:
    """Accumulate principal directions over batches, holding OVERSAMPLING * K rows of D besides the batch.

    A merge of truncated decompositions: exact when the rank of all states is at most OVERSAMPLING * K.
    """

    def __init__(self, num_directions: int) -> None:
        self.num_directions = num_directions
        self._summary: Tensor | None = None

    def update(self, states_ND: Tensor) -> StreamingDirections:
        """Add states, N x D, centred as the caller wishes."""
        rows = states_ND.float() if self._summary is None else torch.cat([self._summary, states_ND.float()])
        values, right = _decompose(rows, OVERSAMPLING * self.num_directions, None)
        self._summary = values[:, None] * right
        return self

    def directions(self) -> Tensor:
        """Return the leading directions, K' x D.

        Raises:
            NumericalError: Nothing was added.
        """
        if self._summary is None:
            raise NumericalError("principal directions need at least one state")
        return principal_directions(self._summary, self.num_directions)


def remove_directions(vectors: Tensor, directions_KD: Tensor, weight: float = 1.0) -> Tensor:
    """Apply I - w * sum_i v_i v_i^T to vectors of shape ... x D without forming the matrix."""
    return vectors - weight * (vectors @ directions_KD.T) @ directions_KD


def principal_offset_vectors(
    directions_KD: Tensor,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    suppression: float = 1.0,
    perturbation: float = 0.0,
    operator: str = "identity",
) -> Tensor:
    """Compute unit targets f(r (I - w sum v v^T), eps) (eq. 8) for independent random r.

    With suppression 1, no perturbation and the identity, the result has no energy in the principal span.

    Args:
        directions_KD: Orthonormal principal directions, K x D.
        shape: Leading shape of the result; () gives one vector.
        generator: Seeded source of r and eps.
        suppression: w.
        perturbation: Standard deviation of eps relative to that of r.
        operator: f, `identity` or `tanh`.

    Returns:
        Unit vectors, shape x D in float32.

    Raises:
        NumericalError: The directions span the whole space, so nothing is left of r.
    """
    num_hidden = directions_KD.shape[1]
    draws = 2 if perturbation else 1
    # Drawn together, so that the first vectors are the same however many follow.
    random, *noise = torch.randn((*shape, draws, num_hidden), generator=generator).unbind(-2)
    directions_KD = directions_KD.float().cpu()
    offsets = remove_directions(random, directions_KD, suppression)
    if suppression == 1.0:
        # A second pass removes what rounding left: the guarantee is stated for the final vector.
        offsets = remove_directions(offsets, directions_KD)
    if noise:
        offsets = offsets + perturbation * noise[0]
    if operator == "tanh":
        offsets = torch.tanh(offsets)
    norms = offsets.norm(dim=-1, keepdim=True)
    if bool((norms < 1e-4 * random.norm(dim=-1, keepdim=True)).any()):
        raise NumericalError(
            f"{directions_KD.shape[0]} principal directions fill the {num_hidden}-dimensional space",
            hint="Lower objective.offset.directions.",
        )
    unit: Tensor = offsets / norms
    return unit


def reference_offset_vector(
    states_ND: Tensor, num_directions: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute the target of the released code, which amplifies the principal span (method.md B.3).

    Args:
        states_ND: Forget states of one batch, N x D.
        num_directions: K, 1000 in the released code, at most the rank.
        generator: Source of the matrix noise.
        dtype: Model dtype in which everything after the singular values is computed.

    Returns:
        A unit vector, D in float32.
    """
    singular_values_K, directions_KD = _decompose(states_ND, num_directions, None)
    weights_K = REFERENCE_SCALE * torch.sigmoid(singular_values_K / singular_values_K[0])
    num_hidden = states_ND.shape[1]
    directions_KD = directions_KD.to(dtype)
    matrix_DD = torch.eye(num_hidden, dtype=dtype) + (directions_KD.T * weights_K.to(dtype)) @ directions_KD
    noise_DD = torch.randn((num_hidden, num_hidden), generator=generator).to(dtype)
    matrix_DD = torch.tanh(matrix_DD + REFERENCE_NOISE * noise_DD)
    vector_D = torch.ones(num_hidden, dtype=dtype)
    vector_D = vector_D / vector_D.norm()
    for _ in range(REFERENCE_ROUNDS):
        vector_D = torch.tanh(vector_D @ matrix_DD)
        vector_D = vector_D / (vector_D.norm() + REFERENCE_EPSILON)
    unit_D: Tensor = vector_D.float() / vector_D.float().norm()
    return unit_D
