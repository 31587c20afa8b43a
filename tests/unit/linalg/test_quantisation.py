from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.errors import UsageError
from falcon_unlearn.linalg.quantisation import (
    FP4_LEVELS,
    NF4_LEVELS,
    IntegerGrid,
    TableGrid,
    edit_histogram,
    rounded,
    shared_codes,
)


def weights(rows=6, inputs=96, seed=0):
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def test_hand_computed_example():
    weight = torch.tensor([[0.7, -0.26, 0.04, 0.0], [-1.4, 0.7, 0.31, 0.2]])
    grid = IntegerGrid(4)
    scales = grid.scales(weight)
    torch.testing.assert_close(scales, torch.tensor([[0.1], [0.2]]))
    assert grid.codes(weight, scales).tolist() == [[7, -3, 0, 0], [-7, 4, 2, 1]]
    expected = torch.tensor([[0.7, -0.3, 0.0, 0.0], [-1.4, 0.8, 0.4, 0.2]])
    torch.testing.assert_close(rounded(weight, grid), expected)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([None, 1, 7, 32, 64, 200]),
    inputs=st.sampled_from([1, 7, 48, 96]),
    seed=st.integers(0, 1000),
)
def test_error_is_at_most_half_a_step(bits, group, inputs, seed):
    weight, grid = weights(inputs=inputs, seed=seed), IntegerGrid(bits, group)
    scales = grid.scales(weight)
    error = (rounded(weight, grid).double() - weight.double()).abs()
    assert bool((error <= grid.steps(weight, scales).double() / 2 * (1 + 1e-5)).all())
    # Rounding a second time changes nothing: values of the grid are on the grid.
    torch.testing.assert_close(rounded(rounded(weight, grid), grid), rounded(weight, grid))


def test_groups_equal_a_numpy_loop_also_where_they_do_not_divide_the_inputs():
    weight, bits, group = weights(inputs=80), 4, 32
    expected = np.empty_like(weight.numpy())
    for row, values in enumerate(weight.numpy()):
        for start in range(0, 80, group):
            part = values[start : start + group]
            scale = np.abs(part).max() / 7
            expected[row, start : start + group] = np.clip(np.round(part / scale), -8, 7) * scale
    np.testing.assert_allclose(rounded(weight, IntegerGrid(bits, group)).numpy(), expected, rtol=1e-6)


def test_equals_torchao():
    torchao = pytest.importorskip("torchao.quantization")
    weight = weights(inputs=128)
    groups = weight.view(6, 4, 32)
    largest = groups.abs().argmax(dim=-1, keepdim=True)
    # torchao divides negative extremes by 8; with positive ones both formulas divide by 7.
    weight = groups.scatter(-1, largest, groups.gather(-1, largest).abs()).view(6, 128)
    layer = torch.nn.Sequential(torch.nn.Linear(128, 6, bias=False))
    layer[0].weight.data = weight.clone()
    config = torchao.IntxWeightOnlyConfig(
        weight_dtype=torch.int4,
        granularity=torchao.PerGroup(32),
        mapping_type=torchao.MappingType.SYMMETRIC_NO_CLIPPING_ERR,
    )
    torchao.quantize_(layer, config)
    theirs = layer[0].weight
    grid = IntegerGrid(4, 32)
    scales = grid.scales(weight)
    torch.testing.assert_close(scales, theirs.scale)
    assert torch.equal(grid.codes(weight, scales), theirs.qdata.to(torch.int16))
    torch.testing.assert_close(rounded(weight, grid), theirs.dequantize())


@pytest.mark.parametrize(("kind", "levels"), [("nf4", NF4_LEVELS), ("fp4", FP4_LEVELS)])
def test_tables_equal_bitsandbytes(kind, levels):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = weights(inputs=80)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind)
    theirs = functional.dequantize_4bit(codes, state)
    assert sorted(set(state.code.tolist())) == pytest.approx(levels, abs=1e-4)
    ours = rounded(weight, TableGrid(levels))
    # Its kernels compare with borders of a few digits; a weight at a border may go either way.
    assert float((ours != theirs.to(ours)).logical_and((ours - theirs).abs() > 1e-3).float().mean()) < 0.01
    error = (ours - weight).abs()
    assert bool((error <= (theirs - weight).abs() + 1e-4).all()), "ours is the nearest entry"


def test_bucket_overlap_separates_small_from_large_edits():
    original, grid = rounded(weights(), IntegerGrid(4, 32)), IntegerGrid(4, 32)
    steps = grid.steps(original, grid.scales(original))
    noise = torch.rand(original.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert shared_codes(original + 0.98 * noise * steps / 2, original, grid) == original.numel()
    assert shared_codes(original + 8 * noise * steps, original, grid) < 0.3 * original.numel()


def test_histogram_counts_every_weight_once():
    original, grid = weights(), IntegerGrid(4, 32)
    steps = grid.steps(original, grid.scales(original))
    factors = torch.linspace(0, 3, original.numel()).view(original.shape)
    counts = edit_histogram(original + factors * steps, original, grid, [0.5, 1.0, 2.0])
    expected, _ = np.histogram(factors.numpy(), [0, 0.5, 1, 2, np.inf])
    assert sum(counts) == original.numel()
    assert np.abs(np.array(counts) - expected).max() <= 2, "only rounding at the borders may differ"


def test_zeros_stay_zeros_and_bad_grids_are_refused():
    for grid in (IntegerGrid(4, 32), TableGrid(NF4_LEVELS)):
        assert not rounded(torch.zeros(2, 40), grid).any()
    with pytest.raises(UsageError, match="bits"):
        IntegerGrid(1)
