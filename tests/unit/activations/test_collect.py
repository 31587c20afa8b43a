from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.activations.caching import cache_states
from falcon_unlearn.activations.collect import (
    batches_by_length,
    pad_token_ids,
    pool_all_layers,
    pool_tokens,
    sink_tokens,
)
from falcon_unlearn.models.engine import BlockEngine
from pico import FAMILIES, pico_model, random_tokens

SAMPLES = [random_tokens(length, seed=length) for length in (13, 5, 21, 9, 13, 2)]


def alone(model, sample):
    """Return the output of every block for one sample, without padding or batching: blocks x L x D."""
    kept = []
    handles = [
        block.register_forward_hook(
            lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in model.get_decoder().layers
    ]
    with torch.no_grad():
        model(torch.tensor([sample]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.cat(kept)


def cache(engine, folder, window=(2, 3), **changes):
    options = {
        "compute_dtype": torch.float32,
        "store_dtype": torch.float32,
        "batch_tokens": 64,
        "progress": lambda done, total: None,
    } | changes
    folder.mkdir(exist_ok=True)
    return cache_states(engine, SAMPLES, window, folder, "x", **options)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_sample_once_and_keep_the_limit(lengths, maximum):
    batches = list(batches_by_length(lengths, maximum))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= maximum or len(batch) == 1


def test_token_ids_are_padded_on_the_right():
    ids, mask = pad_token_ids(SAMPLES, [1, 0], torch.device("cpu"))
    assert ids.shape == mask.shape == (2, 13)
    assert ids[0].tolist() == SAMPLES[1] + [0] * 8
    assert mask.sum(1).tolist() == [5, 13]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [(0, 1), (2, 3), (5, 5)])
def test_cached_states_are_those_of_the_whole_model(family, window, tmp_path):
    model = pico_model(family)
    engine = BlockEngine(model)
    stores = cache(engine, tmp_path, window)
    for index, sample in enumerate(SAMPLES):
        states = alone(model, sample)
        with torch.no_grad():
            entering = states[window[0] - 1] if window[0] else engine.embed(torch.tensor([sample]))[0]
        for stored, expected in ((stores.inputs, entering), (stores.outputs, states[window[1]])):
            difference = (stored.read(index) - expected).abs().max()
            assert difference <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("batch_tokens", [64, 10**6])
def test_batching_changes_nothing_beyond_rounding(batch_tokens, tmp_path):
    engine = BlockEngine(pico_model("mistral"))
    reference, other = (
        cache(engine, tmp_path / "a", batch_tokens=1),
        cache(engine, tmp_path / "b", batch_tokens=batch_tokens),
    )
    for index in range(len(SAMPLES)):
        for name in ("inputs", "outputs"):
            first, second = getattr(reference, name).read(index), getattr(other, name).read(index)
            assert (first - second).abs().max() <= 2e-6 * first.abs().max()


def test_training_from_rounded_inputs_starts_without_drift(tmp_path):
    """The frozen outputs come from the stored inputs, so the first forward pass of training repeats them."""
    model = pico_model("llama")
    engine = BlockEngine(model)
    stores = cache(engine, tmp_path, store_dtype=torch.bfloat16)
    repeated, unrounded = [], []
    for index, sample in enumerate(SAMPLES):
        stored = stores.outputs.read(index)
        assert stored.dtype == torch.bfloat16
        with torch.no_grad():
            leaving = engine.run(stores.inputs.read(index)[None].float(), 2, 3)[0]
        repeated.append((stored == leaving.bfloat16()).float().mean())
        unrounded.append((stored == alone(model, sample)[3].bfloat16()).float().mean())
    # Another batch shape moves a few sums across a rounding boundary, no more.
    assert min(repeated) > 0.99
    assert max(unrounded) < 0.9, "the inputs were not rounded, so the test proves nothing"


def test_bfloat16_compute_repeats_the_cached_outputs_to_its_own_precision(tmp_path):
    model = pico_model("llama")
    stores = cache(BlockEngine(model), tmp_path, compute_dtype=torch.bfloat16, store_dtype=torch.bfloat16)
    half = BlockEngine(model.bfloat16())
    for index in range(len(SAMPLES)):
        with torch.no_grad():
            leaving = half.run(stores.inputs.read(index)[None], 2, 3)[0].float()
        cosines = torch.nn.functional.cosine_similarity(leaving, stores.outputs.read(index).float(), dim=-1)
        assert (1 - cosines).max() < 1e-4


def test_caching_restores_dtype_and_reports_progress(tmp_path):
    model = pico_model("llama")
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    seen = []
    stores = cache(
        BlockEngine(model), tmp_path, compute_dtype=torch.bfloat16, progress=lambda *x: seen.append(x)
    )
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert seen[-1] == (len(SAMPLES), len(SAMPLES))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    files = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert stores.num_bytes == files == 2 * sum(map(len, SAMPLES)) * 32 * 4


def test_nothing_above_the_window_runs(tmp_path):
    model = pico_model("llama")
    ran = set()
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, layer=layer: ran.add(layer))
    model.lm_head.register_forward_hook(lambda *_: ran.add("head"))
    cache(BlockEngine(model), tmp_path, (2, 3))
    assert ran == {0, 1, 2, 3}


def numpy_sinks(states, factor):
    """Norm above `factor` times the lower median of the real tokens' norms."""
    norms = np.linalg.norm(states.astype(np.float64), axis=-1)
    return norms > factor * np.sort(norms)[(len(norms) - 1) // 2]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("batch_tokens", [30, 1000])
def test_pooled_states_of_all_layers_equal_single_passes(family, pooling, batch_tokens):
    model = pico_model(family)
    with torch.no_grad():  # a sink: one token with a huge embedding
        model.get_input_embeddings().weight[SAMPLES[0][3]] *= 100
    seen = []
    pooled = pool_all_layers(
        BlockEngine(model),
        SAMPLES,
        pooling=pooling,
        sink_factor=3.0,
        batch_tokens=batch_tokens,
        progress=lambda *x: seen.append(x),
    )
    assert pooled.shape == (6, len(SAMPLES), 32) and pooled.dtype == torch.float32
    assert seen[-1] == (6, 6)
    num_sinks = 0
    for index, sample in enumerate(SAMPLES):
        for layer, states in enumerate(alone(model, sample).numpy()):
            sinks = numpy_sinks(states, 3.0)
            num_sinks += sinks.sum()
            expected = states[-1] if pooling == "last" else states[~sinks].astype(np.float64).mean(0)
            difference = np.abs(pooled[layer, index].numpy() - expected).max()
            assert difference <= 1e-5 * np.abs(states[~sinks]).max(), (index, layer)
    assert num_sinks > 0, "without a sink the mean would prove nothing"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.floats(1.1, 8))
def test_sinks_are_found_by_norm_whatever_the_padding(seed, lengths, factor):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + 2
    states = torch.randn(len(lengths), width, 4, generator=generator)
    states *= 10 ** (2 * torch.rand(len(lengths), width, 1, generator=generator))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    states[~mask] = float("nan")
    sinks = sink_tokens(states, mask, factor)
    assert sinks.shape == mask.shape and not sinks[~mask].any()
    for row, length in enumerate(lengths):
        assert sinks[row, :length].tolist() == numpy_sinks(states[row, :length].numpy(), factor).tolist()


def test_a_sequence_is_never_all_sinks():
    states = torch.randn(5, 7, 3)
    sinks = sink_tokens(states, torch.ones(5, 7), 1.01)
    assert not sinks.all(1).any()
    assert torch.isfinite(pool_tokens(states, torch.ones(5, 7), "mean", 1.01)).all()
