"""Parts of a batch: complete, small enough, and averaged to the mean of the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.training.micro_batches import MeanOfParts, split_by_tokens

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=20)


@given(LENGTHS, st.integers(1, 80))
def test_parts_hold_every_row_once_and_no_more_tokens_than_allowed(lengths, maximum):
    parts = split_by_tokens(lengths, maximum)
    assert [row for part in parts for row in part] == list(range(len(lengths)))
    for part in parts:
        assert part and (len(part) == 1 or sum(lengths[row] for row in part) <= maximum)


@given(LENGTHS)
def test_without_a_limit_there_is_one_part(lengths):
    assert split_by_tokens(lengths, None) == [list(range(len(lengths)))]


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 5, 1), (2, 2, 2, 1)])
def test_the_mean_of_parts_is_the_mean_of_the_whole(sizes):
    weights = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = (rows @ weights).square().mean()
    (expected,) = torch.autograd.grad(whole, weights)
    mean = MeanOfParts()
    for part in torch.split(rows, list(sizes)):
        loss = (part @ weights).square().mean()
        mean.add(len(part), float(loss.detach()), {"w": torch.autograd.grad(loss, weights)[0]})
    assert mean.weight == 7
    assert mean.loss == pytest.approx(float(whole.detach()), rel=1e-12)
    torch.testing.assert_close(mean.gradients["w"], expected, rtol=1e-12, atol=1e-12)


def test_a_part_without_weight_changes_nothing_wherever_it_stands():
    empty, full = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}
    for order in ((0, 3), (3, 0)):
        mean = MeanOfParts()
        for weight in order:
            mean.add(weight, 0.5 * bool(weight), full if weight else empty)
        assert mean.weight == 3 and mean.loss == 0.5
        assert mean.gradients["w"].tolist() == [1.0, 2.0]


def test_one_part_is_kept_bit_by_bit():
    gradient = torch.tensor([0.1, 0.3])
    mean = MeanOfParts()
    mean.add(3, 0.7, {"w": gradient})
    assert mean.loss == 0.7 and mean.gradients["w"] is gradient
