from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from falcon_unlearn.errors import UsageError
from falcon_unlearn.linalg.pruning import (
    random_mask,
    set_difference,
    smallest,
    smallest_per_output,
    wanda_scores,
)


def weights(rows=6, inputs=20, seed=0):
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 1.0])
def test_magnitude_equals_torch(share):
    layer = torch.nn.Linear(20, 6, bias=False)
    layer.weight.data = weights()
    prune.l1_unstructured(layer, "weight", amount=share)
    assert torch.equal(~smallest(weights().abs(), share), layer.weight_mask.bool())


def test_wanda_equals_a_loop_over_outputs():
    weight, norms = weights(), torch.linspace(0.1, 4.0, 20)
    mask = smallest_per_output(wanda_scores(weight, norms), 0.3)
    for row, marked in zip(weight.numpy(), mask.numpy(), strict=True):
        order = np.argsort(np.abs(row) * norms.numpy())
        assert sorted(np.flatnonzero(marked)) == sorted(order[:6])


def test_set_difference_by_hand():
    wanted = torch.tensor([[9.0, 8.0, 1.0, 7.0], [2.0, 6.0, 0.0, 3.0]])
    protected = torch.tensor([[5.0, 0.0, 0.0, 9.0], [8.0, 0.0, 0.0, 0.0]])
    found = set_difference(wanted, protected, 0.5, 0.25)
    # Top half of the first: 9, 8, 7, 6. Top quarter of the second: places of 9 and 8, of which 7 is one.
    assert found.tolist() == [[True, True, False, False], [False, True, False, False]]
    assert torch.equal(set_difference(wanted, protected, 0.5, 0.0), smallest(-wanted, 0.5))
    assert not set_difference(wanted, wanted, 0.25, 0.5).any()


def test_random_mask_has_the_size_and_follows_its_generator():
    drawn = [random_mask(weights(), 17, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert [int(mask.sum()) for mask in drawn] == [17, 17, 17]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_impossible_share_is_refused():
    with pytest.raises(UsageError, match="between 0 and 1"):
        smallest(weights(), 1.5)
