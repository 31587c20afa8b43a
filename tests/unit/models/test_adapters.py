from __future__ import annotations

import sys

import pytest
import torch

from falcon_unlearn.config.train import LoraSettings
from falcon_unlearn.errors import ModelError, PrerequisiteError
from falcon_unlearn.models.adapters import LORA_WARNING, linear_maps, lora_adapters
from falcon_unlearn.models.engine import BlockEngine, parameters_in_dtype, tensors_replaced
from pico import FAMILIES, pico_model, random_tokens

pytest.importorskip("peft")

SETTINGS = LoraSettings(rank=3, alpha=6.0)
LAST = 5


def batch(num_rows=3, length=21):
    return torch.tensor([random_tokens(length, seed=row) for row in range(num_rows)])


def states(engine):
    return engine.run(engine.embed(batch()), 0, LAST)


def sgd_step(engine, adapters, rate):
    """Step on a loss that every token of every row enters; the target is fixed noise."""
    output = states(engine)
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output.dtype)
    loss = torch.nn.functional.mse_loss(output.float(), noise.float())
    leaves = list(adapters.parameters.values())
    gradients = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf -= rate * gradient
    return float(loss.detach())


def whole_state(model):
    """Return what must be the same after a context: modules, tensors, bits and gradient flags."""
    modules = {name: id(module) for name, module in model.named_modules()}
    parameters = {
        name: (id(p), p.data_ptr(), p.requires_grad)
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    return modules, parameters, bits, set(vars(model))


def assert_same_state(after, before):
    assert list(after[0].items()) == list(before[0].items()), "modules, or their order, differ"
    assert after[1] == before[1], "parameters differ"
    assert list(after[2]) == list(before[2])
    assert all(torch.equal(after[2][name], value) for name, value in before[2].items())
    assert after[3] == before[3], "an attribute was left on the model"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_block_gets_an_adapter(family):
    model = pico_model(family)
    matrices = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and f".{LAST + 1}." not in name and ".layers." in f".{name}"
    }
    with lora_adapters(model, SETTINGS, 0) as adapters:
        adapted = {name.rsplit(".lora_", 1)[0] + ".weight" for name in adapters.parameters}
        assert adapted == matrices
        assert len(adapters.parameters) == 2 * len(matrices)
        assert set(adapters.merged()) == matrices
        for parameter in adapters.parameters.values():
            assert parameter.dtype == torch.float32 and parameter.requires_grad
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert trained == {id(p) for p in adapters.parameters.values()}, "something else would be trained"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_trains_through_the_engine(family):
    # B starts at zero, so A has no gradient in the first step and must move in the second.
    model = pico_model(family).requires_grad_(False)
    engine = BlockEngine(model)
    with lora_adapters(model, SETTINGS, 0) as adapters:
        before = {name: p.detach().clone() for name, p in adapters.parameters.items()}
        sgd_step(engine, adapters, 1e-2)
        still = [n for n, p in adapters.parameters.items() if torch.equal(p, before[n])]
        assert all("lora_A" in name for name in still), still
        sgd_step(engine, adapters, 1e-2)
        still = [n for n, p in adapters.parameters.items() if torch.equal(p, before[n])]
        assert still == []


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_reproduce_the_adapted_model(family):
    model = pico_model(family).requires_grad_(False)
    engine = BlockEngine(model)
    with torch.no_grad():
        original = model(input_ids=batch(), use_cache=False).logits
    with lora_adapters(model, SETTINGS, 0) as adapters:
        with torch.no_grad():
            assert torch.equal(model(input_ids=batch(), use_cache=False).logits, original)
        for _ in range(3):
            sgd_step(engine, adapters, 0.3)
        with torch.no_grad():
            adapted = model(input_ids=batch(), use_cache=False).logits
        merged = adapters.merged()
    assert float((adapted - original).abs().max()) > 1e-2, "the adapters changed nothing worth comparing"
    with tensors_replaced(model, merged), torch.no_grad():
        again = model(input_ids=batch(), use_cache=False).logits
    assert torch.allclose(again, adapted, rtol=1e-4, atol=1e-4 * float(adapted.abs().max()))
    with torch.no_grad():
        assert torch.equal(model(input_ids=batch(), use_cache=False).logits, original)


def test_merged_weight_is_the_formula():
    model = pico_model("llama").requires_grad_(False)
    path = "model.layers.2.mlp.down_proj"
    weight = model.get_submodule(path).weight.detach().double()
    with lora_adapters(model, LoraSettings(rank=4, alpha=10.0), 0) as adapters:
        a, b = (adapters.parameters[f"{path}.lora_{letter}.weight"] for letter in "AB")
        b.data.normal_(generator=torch.Generator().manual_seed(1))
        expected = weight + 2.5 * b.detach().double() @ a.detach().double()
        merged = adapters.merged()[f"{path}.weight"]
    assert merged.dtype == torch.float32
    assert torch.allclose(merged.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_itself_again_afterwards(family):
    model = pico_model(family)
    model.get_input_embeddings().weight.requires_grad_(False)  # flags are not all alike
    engine = BlockEngine(model)
    before = whole_state(model)
    with lora_adapters(model, SETTINGS, 0) as adapters:
        sgd_step(engine, adapters, 0.3)
    assert_same_state(whole_state(model), before)


def test_the_model_is_itself_again_after_an_error():
    model = pico_model("llama")
    before = whole_state(model)
    with pytest.raises(ZeroDivisionError), lora_adapters(model, SETTINGS, 0):
        raise ZeroDivisionError
    assert_same_state(whole_state(model), before)
    with lora_adapters(model, SETTINGS, 0) as adapters:
        assert adapters.parameters, "a second context must work"


def test_start_values_depend_on_the_seed_only():
    def start(seed, global_seed):
        torch.manual_seed(global_seed)
        model = pico_model("llama")
        state = torch.get_rng_state()
        with lora_adapters(model, SETTINGS, seed) as adapters:
            values = {name: p.detach().clone() for name, p in adapters.parameters.items()}
        assert torch.equal(torch.get_rng_state(), state), "the global random state moved"
        return values

    first, again, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[n], other[n]) == ("lora_B" in n) for n in first)
    inputs = 32
    values = torch.cat([v.flatten() for n, v in first.items() if "q_proj.lora_A" in n])
    assert float(values.abs().max()) <= inputs**-0.5
    assert float(values.std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.1)


def test_adapters_stay_float32_on_a_bfloat16_model():
    model = pico_model("llama").requires_grad_(False)
    original = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = BlockEngine(model)
    with parameters_in_dtype(model.parameters(), torch.bfloat16):
        with lora_adapters(model, SETTINGS, 0) as adapters:
            assert states(engine).dtype == torch.bfloat16
            sgd_step(engine, adapters, 0.3)
            assert {p.dtype for p in adapters.parameters.values()} == {torch.float32}
            rounded, exact = adapters.merged(), adapters.merged(original)
            name = "model.layers.0.mlp.down_proj.weight"
            low, high = (adapters.parameters[name.replace("weight", f"lora_{x}.weight")] for x in "AB")
            delta = 2.0 * high.detach() @ low.detach()
    assert torch.allclose(exact[name], original[name] + delta, rtol=0, atol=1e-7)
    assert torch.allclose(rounded[name], original[name].bfloat16().float() + delta, rtol=0, atol=1e-7)
    assert not torch.allclose(rounded[name], exact[name], rtol=0, atol=1e-7)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = pico_model("llama")
    before = whole_state(model)
    with pytest.raises(PrerequisiteError) as caught, lora_adapters(model, SETTINGS, 0):
        pass
    assert "falcon-unlearn[lora]" in str(caught.value.hint)
    assert_same_state(whole_state(model), before)


def test_matrices_that_can_carry_no_adapter_are_listed():
    model = pico_model("llama")
    model.model.layers[4].mlp.register_parameter("experts_up", torch.nn.Parameter(torch.zeros(2, 3, 4)))
    with pytest.raises(ModelError) as caught, lora_adapters(model, SETTINGS, 0):
        pass
    assert "model.layers.4.mlp.experts_up" in caught.value.message
    assert "lora" in caught.value.message


def test_a_model_with_adapters_is_refused():
    model = pico_model("llama")
    with lora_adapters(model, SETTINGS, 0):
        with pytest.raises(ModelError, match="adapters already"), lora_adapters(model, SETTINGS, 0):
            pass
        assert hasattr(model, "peft_config"), "the refusal must leave the outer context alone"


def test_linear_maps_leave_head_and_embeddings_out():
    maps = linear_maps(pico_model("llama"))
    assert len(maps) == 6 * 7
    assert all(name.startswith("model.layers.") for name in maps)


def test_the_warning_says_what_was_measured():
    assert "easily undone" in LORA_WARNING and "5 fine-tuning steps" in LORA_WARNING
