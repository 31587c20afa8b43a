"""Mean and covariance of samples that arrive in batches.

Shapes: N samples, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError, NumericalError


def require_finite(samples_ND: Tensor, name: str) -> None:
    """Raise `NumericalError` when `samples_ND` holds a NaN or an infinity."""
    if not bool(torch.isfinite(samples_ND).all()):
        num_bad = int((~torch.isfinite(samples_ND)).sum())
        raise NumericalError(
            f"{name} hold {num_bad} non-finite values (NaN or infinity) out of {samples_ND.numel()}.",
            hint="Load the model in float32 or bfloat16 and check that its logits are finite.",
        )


class StreamingCovariance:
    """Accumulate the mean and the covariance of batches, in float64.

    Only a mean (D) and a scatter matrix (D x D) are held. Batches are combined by the pairwise update of
    Chan, Golub and LeVeque, so a large common offset does not cost accuracy.
    """

    def __init__(self, num_dimensions: int) -> None:
        """Start empty with `num_dimensions` = D."""
        if num_dimensions < 1:
            raise DataError(f"num_dimensions must be at least 1, got {num_dimensions}.")
        self.num_samples = 0
        self.mean = torch.zeros(num_dimensions, dtype=torch.float64)
        self.scatter = torch.zeros(num_dimensions, num_dimensions, dtype=torch.float64)

    def update(self, batch_ND: Tensor) -> None:
        """Add the rows of `batch_ND` (N x D, any floating dtype).

        Raises:
            DataError: the width differs from D.
            NumericalError: a value is not finite.
        """
        if batch_ND.ndim != 2 or batch_ND.shape[1] != self.mean.shape[0]:
            raise DataError(
                f"a batch must have shape (N, {self.mean.shape[0]}), got {tuple(batch_ND.shape)}.",
                hint="All activations of one layer must have the hidden size of the model.",
            )
        if batch_ND.shape[0] == 0:
            return
        require_finite(batch_ND, "samples")
        batch_ND = batch_ND.detach().to(device=self.mean.device, dtype=torch.float64)
        mean_D = batch_ND.mean(dim=0)
        centred_ND = batch_ND - mean_D
        self._combine(batch_ND.shape[0], mean_D, centred_ND.T @ centred_ND)

    def merge(self, other: StreamingCovariance) -> None:
        """Add everything that `other` has seen, for example on another worker."""
        if other.mean.shape != self.mean.shape:
            raise DataError(
                f"cannot merge widths {other.mean.shape[0]} and {self.mean.shape[0]} into one covariance."
            )
        if other.num_samples:
            self._combine(other.num_samples, other.mean, other.scatter)

    def covariance(self) -> Tensor:
        """Return the unbiased covariance (D x D, division by N - 1)."""
        if self.num_samples < 2:
            raise DataError(f"a covariance needs at least 2 samples, got {self.num_samples}.")
        return self.scatter / (self.num_samples - 1)

    def _combine(self, num_samples: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        total = self.num_samples + num_samples
        difference_D = mean_D - self.mean
        self.scatter += scatter_DD
        self.scatter += torch.outer(difference_D, difference_D) * (self.num_samples * num_samples / total)
        self.mean += difference_D * (num_samples / total)
        self.num_samples = total
