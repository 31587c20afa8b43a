"""A model that stays on disk gives the states of the model in memory, bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from falcon_unlearn.activations.caching import cache_states
from falcon_unlearn.activations.collect import pool_all_layers
from falcon_unlearn.activations.sweep import cache_states_by_block, pool_by_block
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.models.architectures import parameter_of_role
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.streaming import build_engine, load_streamed
from pico import FAMILIES, pico_model, random_tokens
from pico_files import save_pico, write_gguf

WINDOW = (3, 4)
SAMPLES = [random_tokens(length, seed=length) for length in (19, 7, 12, 23, 7)]
OTHERS = [random_tokens(length, seed=100 + length) for length in (5, 21)]


def streamed(folder, dtype="auto"):
    loaded = load_streamed(ModelSettings(name=str(folder), dtype=dtype), torch.device("cpu"))
    return build_engine(loaded)


def resident(folder, dtype="auto"):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto" if dtype == "auto" else getattr(torch, dtype)
    )
    return BlockEngine(model.eval().requires_grad_(False))


def saved(tmp_path, family, dtype=torch.float32):
    # Shards of a few tensors each, so that one block spans several.
    return save_pico(tmp_path / "in", model=pico_model(family).to(dtype), max_shard_size="24KB")


def all_on_meta(engine):
    return all(parameter.is_meta for parameter in engine.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_all_blocks_equal_those_in_memory(family, dtype, tmp_path):
    folder = saved(tmp_path, family, dtype)
    here, there = resident(folder), streamed(folder)
    ids = torch.tensor([SAMPLES[0], SAMPLES[3][:19]])
    expected = []
    with torch.no_grad():
        with here.observe(lambda _layer, states: expected.append(states)):
            logits = here.model(input_ids=ids, use_cache=False).logits
        states = there.embed(ids)
        assert torch.equal(states, here.embed(ids))
        for layer in range(6):
            with there.resident(layer, layer):
                assert sum(not p.is_meta for p in there.model.parameters()) > 0
                states = there.run(states, layer, layer)
            assert torch.equal(states, expected[layer])
        with there.head():
            assert torch.equal(there.head_logits(states), logits)
    assert all_on_meta(there)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_half_precision_model_is_cached_alike_on_disk_and_in_memory(family, compute, tmp_path):
    """Where bfloat16 is slow both convert every block, below the window too, and give the same bits."""
    folder = saved(tmp_path, family, torch.bfloat16)
    here, there, wide = resident(folder), streamed(folder), resident(folder, "float32")
    before = {name: (p.dtype, p.data_ptr()) for name, p in here.model.named_parameters()}
    options = {"batch_tokens": 64, "progress": lambda *_: None, "store_dtype": compute}
    cached = cache_states_by_block(
        there, {"there": SAMPLES}, WINDOW, tmp_path, compute_dtype=compute, **options
    )["there"]
    expected = cache_states(here, SAMPLES, WINDOW, tmp_path, "here", compute_dtype=compute, **options)
    options["store_dtype"] = torch.float32
    exact = cache_states(wide, SAMPLES, WINDOW, tmp_path, "wide", compute_dtype=torch.float32, **options)
    ids = torch.tensor([SAMPLES[0]])
    # The embedding keeps the dtype of the model; families that scale it round there.
    rounded = not torch.equal(here.embed(ids).float(), wide.embed(ids))
    assert rounded == family.startswith("gemma")
    for index in range(len(SAMPLES)):
        for kind in ("inputs", "outputs"):
            states = getattr(expected, kind).read(index)
            assert torch.equal(getattr(cached, kind).read(index), states)
            # float32 products of half-precision weights are those of the same weights held in float32.
            same = torch.equal(states, getattr(exact, kind).read(index))
            assert same == (compute == torch.float32 and not rounded)
    assert before == {name: (p.dtype, p.data_ptr()) for name, p in here.model.named_parameters()}
    assert all_on_meta(there)


@pytest.mark.parametrize("family", FAMILIES)
def test_stores_and_pooled_states_equal_those_in_memory(family, tmp_path):
    folder = saved(tmp_path, family)
    here, there = resident(folder), streamed(folder)
    options = {"batch_tokens": 64, "progress": lambda *_: None}
    dtypes = {"compute_dtype": torch.float32, "store_dtype": torch.float32}
    corpora = {"a": SAMPLES, "b": OTHERS}
    cached = cache_states_by_block(there, corpora, WINDOW, tmp_path, **dtypes, **options)
    pool = {"pooling": "mean", "sink_factor": 5.0}
    pooled = pool_by_block(there, corpora, tmp_path, **dtypes, **pool, **options)
    for name, samples in corpora.items():
        expected = cache_states(here, samples, WINDOW, tmp_path, f"{name}-here", **dtypes, **options)
        for index in range(len(samples)):
            assert torch.equal(cached[name].inputs.read(index), expected.inputs.read(index))
            assert torch.equal(cached[name].outputs.read(index), expected.outputs.read(index))
        assert torch.equal(pooled[name], pool_all_layers(here, samples, **pool, **options))
    assert all_on_meta(there)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_window_gives_the_same_gradients_from_narrow_weights(family, tmp_path):
    folder = saved(tmp_path, family, torch.bfloat16)
    states = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for engine, recompute in ((resident(folder), False), (streamed(folder), False), (streamed(folder), True)):
        engine.recompute = recompute
        with engine.resident(*WINDOW):
            parameters = dict(engine.model.named_parameters())
            name = parameter_of_role(engine.model, engine.structure, "mlp.down", 3)
            with engine.computing(*WINDOW, torch.float32, trained=[name]), engine.window(*WINDOW):
                parameters[name].requires_grad_(True)
                loss = engine.forward(states).square().sum()
                (gradient,) = torch.autograd.grad(loss, [parameters[name]])
                gradients.append((float(loss.detach()), gradient))
                narrow = [p for p in engine.block(3).parameters() if p.dtype == torch.bfloat16]
                assert bool(narrow) == engine.is_streamed
                parameters[name].requires_grad_(False)
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-6)
        torch.testing.assert_close(gradient, gradients[0][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_load_dtype_is_honoured(dtype, tmp_path):
    folder = saved(tmp_path, "gemma3")
    here, there = resident(folder, dtype), streamed(folder, dtype)
    ids = torch.tensor([SAMPLES[0]])
    states = there.embed(ids)
    with torch.no_grad(), there.resident(0, 1):
        assert torch.equal(there.run(states, 0, 1), here.run(here.embed(ids), 0, 1))


def test_kept_tensors_take_the_place_of_those_on_disk(tmp_path):
    folder = saved(tmp_path, "llama")
    engine = streamed(folder)
    name = "model.layers.2.mlp.down_proj.weight"
    new = torch.full((32, 48), 0.5)
    with engine.resident(2, 2):
        old = engine.block(2).mlp.down_proj.weight.clone()
    engine.keep({name: new})
    with engine.resident(2, 2):
        assert torch.equal(engine.block(2).mlp.down_proj.weight, new)
    with engine.replaced({name: old}), engine.resident(2, 2):
        assert torch.equal(engine.block(2).mlp.down_proj.weight, old)
    with engine.resident(2, 2):
        assert torch.equal(engine.block(2).mlp.down_proj.weight, new)


def test_writing_to_a_resident_block_leaves_the_file_alone(tmp_path):
    folder = saved(tmp_path, "llama")
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    engine = streamed(folder)
    with engine.resident(0, 5):
        for layer in range(6):
            for parameter in engine.block(layer).parameters():
                parameter.data.zero_()
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_what_cannot_be_streamed_is_refused_with_a_reason(tmp_path):
    with pytest.raises(UsageError, match="GGUF"):
        streamed(write_gguf(tmp_path / "m.gguf", pico_model("llama")))
    folder = saved(tmp_path, "llama")
    min(folder.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="is missing"):
        streamed(folder)


def test_missing_and_damaged_tensors_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_pico(tmp_path / "in", model=pico_model("llama"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    broken = tensors | {name: torch.full((48, 32), float("nan"))}
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    engine = streamed(folder)
    with pytest.raises(ModelError, match="not finite"), engine.resident(1, 1):
        pass
    assert all_on_meta(engine)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        streamed(folder)


@pytest.mark.model
def test_smollm2_states_are_equal_in_bfloat16():
    from falcon_unlearn.demo.weights import smollm2_folder

    folder = smollm2_folder()
    here, there = resident(folder), streamed(folder)
    ids = torch.tensor([[19556, 905, 339, 4239, 253, 1042], [260, 2240, 314, 2170, 28, 284]])
    seen = []
    with torch.no_grad():
        with here.observe(lambda _layer, states: seen.append(states)):
            logits = here.model(input_ids=ids, use_cache=False).logits
        states = there.embed(ids)
        for layer, expected in enumerate(seen):
            with there.resident(layer, layer):
                states = there.run(states, layer, layer)
            assert torch.equal(states, expected), layer
        with there.head():
            assert torch.equal(there.head_logits(states), logits)
    assert all_on_meta(there)
