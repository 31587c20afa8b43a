from __future__ import annotations

import pytest
import torch

from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.engine import BlockEngine, blocks_in_dtype, tensors_replaced
from pico import FAMILIES, pico_model, random_tokens

WINDOWS = [(0, 0), (0, 1), (2, 4), (3, 3), (5, 5), (0, 5)]
LENGTH = 21  # beyond the sliding windows of the pico models


def whole_model_states(model, ids, mask=None):
    """Return what enters every block of one ordinary forward pass, and what leaves it."""
    entering, leaving, handles = {}, {}, []
    for layer, block in enumerate(model.get_decoder().layers):
        handles.append(
            block.register_forward_pre_hook(
                lambda _m, args, kwargs, layer=layer: entering.__setitem__(
                    layer, args[0] if args else kwargs["hidden_states"]
                ),
                with_kwargs=True,
            )
        )
        handles.append(
            block.register_forward_hook(
                lambda _m, _i, out, layer=layer: leaving.__setitem__(
                    layer, out[0] if isinstance(out, tuple) else out
                )
            )
        )
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return entering, leaving, logits


def batch(num_rows=3, length=LENGTH):
    return torch.tensor([random_tokens(length, seed=row) for row in range(num_rows)])


def snapshot(engine):
    base, config = engine.base, engine.base.config
    return (
        base.layers,
        getattr(base, engine.structure.norm_name),
        list(base.layers),
        config.num_hidden_layers,
        getattr(config, "layer_types", None),
        list(getattr(config, "layer_types", None) or []),
    )


def assert_restored(engine, before):
    after = snapshot(engine)
    assert after[0] is before[0] and after[1] is before[1], "block list or norm is another object"
    assert all(a is b for a, b in zip(after[2], before[2], strict=True))
    assert after[3:] == before[3:] and after[4] is before[4]


@pytest.mark.parametrize("family", FAMILIES)
def test_window_reproduces_the_whole_model_bit_for_bit(family):
    model = pico_model(family)
    engine, ids = BlockEngine(model), batch()
    entering, leaving, _ = whole_model_states(model, ids)
    for first, last in WINDOWS:
        with torch.no_grad():
            states = engine.run(entering[first], first, last)
        assert torch.equal(states, leaving[last]), (first, last)
    # Blocks differ from each other, so a wrong window could not pass.
    assert all(not torch.allclose(leaving[i], leaving[i + 1], rtol=1e-2) for i in range(5))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_changes_no_real_token(family):
    model = pico_model(family)
    engine = BlockEngine(model)
    ids = batch(3, LENGTH)
    lengths = (LENGTH, 5, 12)
    mask = (torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]).long()
    for first, last in WINDOWS:
        with torch.no_grad():
            padded_states = engine.run(whole_model_states(model, ids * mask)[0][first], first, last)
        assert torch.isfinite(padded_states).all()
        for row, length in enumerate(lengths):
            expected = whole_model_states(model, ids[row : row + 1, :length])[1][last][0]
            scale = expected.abs().max()
            assert (padded_states[row, :length] - expected).abs().max() <= 2e-6 * scale, (first, last, row)


@pytest.mark.parametrize("family", FAMILIES)
def test_chained_windows_equal_one_pass_and_embed_includes_scale(family):
    model = pico_model(family)
    engine, ids = BlockEngine(model), batch()
    entering, leaving, _ = whole_model_states(model, ids)
    with torch.no_grad():
        states = engine.embed(ids)
        assert torch.equal(states, entering[0])
        for first, last in ((0, 1), (2, 2), (3, 5)):
            states = engine.run(states, first, last)
    assert torch.equal(states, leaving[5])


@pytest.mark.parametrize("family", FAMILIES)
def test_window_restores_everything_and_the_model_computes_as_before(family):
    model = pico_model(family)
    engine, ids = BlockEngine(model), batch()
    _, _, logits = whole_model_states(model, ids)
    before = snapshot(engine)
    with engine.window(2, 3):
        assert engine.base.config.num_hidden_layers == 2
        assert_window_is_visible(engine)
    assert_restored(engine, before)
    assert torch.equal(whole_model_states(model, ids)[2], logits)


def assert_window_is_visible(engine):
    assert [any(block is b for b in engine.base.layers) for block in (engine.block(1), engine.block(2))] == [
        False,
        True,
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_window_restores_everything_after_an_exception(family):
    engine = BlockEngine(pico_model(family))
    before = snapshot(engine)
    with pytest.raises(RuntimeError), engine.window(1, 4):
        engine.forward(torch.zeros(1, 3, 7))  # a wrong hidden size fails inside a block
    assert_restored(engine, before)
    with pytest.raises(ZeroDivisionError), engine.window(1, 4):
        1 / 0  # noqa: B018
    assert_restored(engine, before)
    with torch.no_grad():
        assert engine.run(engine.embed(batch()), 0, 5).shape == (3, LENGTH, 32)


def test_windows_do_not_nest_and_the_outer_one_survives():
    engine = BlockEngine(pico_model("llama"))
    before = snapshot(engine)
    states = torch.randn(1, 4, 32)
    with torch.no_grad():
        expected = engine.run(states, 1, 2)
        with engine.window(1, 2):
            with pytest.raises(ModelError, match="nest"), engine.window(3, 4):
                pass
            assert torch.equal(engine.forward(states), expected)
    assert_restored(engine, before)


@pytest.mark.parametrize("window", [(-1, 2), (3, 2), (0, 6), (6, 6)])
def test_windows_outside_the_model_are_refused(window):
    engine = BlockEngine(pico_model("llama"))
    with pytest.raises(UsageError, match="0 to 5"), engine.window(*window):
        pass


def test_forward_needs_an_open_window():
    with pytest.raises(ModelError, match="window"):
        BlockEngine(pico_model("llama")).forward(torch.zeros(1, 2, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_head_outside_the_window_never_run(family):
    model = pico_model(family)
    engine = BlockEngine(model)
    calls: list[str] = []
    watched = {f"block {i}": engine.block(i) for i in range(6)}
    watched |= {"head": model.get_output_embeddings(), "embedding": model.get_input_embeddings()}
    watched["norm"] = getattr(engine.base, engine.structure.norm_name)
    handles = [
        m.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, m in watched.items()
    ]
    with torch.no_grad():
        engine.run(torch.randn(2, 9, 32), 2, 4)
    for handle in handles:
        handle.remove()
    assert calls == ["block 2", "block 3", "block 4"]


def test_gradients_reach_the_window_only():
    model = pico_model("llama")
    engine = BlockEngine(model)
    engine.run(torch.randn(1, 5, 32), 2, 3).square().sum().backward()
    with_gradient = {name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"2", "3"}


def test_observe_reports_absolute_indices_and_detaches():
    model = pico_model("gpt_neox")
    engine, ids = BlockEngine(model), batch()
    entering, leaving, _ = whole_model_states(model, ids)
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        with engine.observe(seen.__setitem__):
            engine.run(entering[2], 2, 4)
        assert list(seen) == [2, 3, 4]
        assert all(torch.equal(seen[i], leaving[i]) for i in seen)
        seen.clear()
        engine.run(entering[2], 2, 4)
        assert not seen
        with pytest.raises(ZeroDivisionError), engine.observe(lambda *_: 1 / 0):
            engine.run(entering[2], 2, 4)
        engine.run(entering[2], 2, 4)
    assert all(not engine.block(i)._forward_hooks for i in range(6))


def test_blocks_in_dtype_converts_the_window_and_returns_the_very_same_tensors():
    model = pico_model("llama")
    engine = BlockEngine(model)
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), blocks_in_dtype(engine, 2, 3, torch.bfloat16):
        converted = {n.split(".")[2] for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
        assert converted == {"2", "3"}
        with torch.no_grad():
            assert engine.run(torch.randn(1, 4, 32).bfloat16(), 2, 3).dtype == torch.bfloat16
        1 / 0  # noqa: B018
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())


def test_blocks_in_dtype_copies_nothing_when_the_dtype_fits():
    model = pico_model("llama")
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    with blocks_in_dtype(BlockEngine(model), 0, 5, torch.float32):
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses


def test_tensors_replaced_swaps_values_and_returns_the_very_same_tensors():
    model = pico_model("llama")
    names = ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"]
    parameters = dict(model.named_parameters())
    addresses = {name: parameters[name].data_ptr() for name in names}
    replacements = {name: torch.randn_like(parameters[name]) for name in names}
    _, _, logits = whole_model_states(model, batch())
    with pytest.raises(ZeroDivisionError), tensors_replaced(model, replacements):
        for name in names:
            assert torch.equal(dict(model.named_parameters())[name], replacements[name])
        assert not torch.equal(whole_model_states(model, batch())[2], logits)
        1 / 0  # noqa: B018
    assert {name: parameters[name].data_ptr() for name in names} == addresses
    assert torch.equal(whole_model_states(model, batch())[2], logits)


def test_tensors_replaced_reaches_tied_weights_under_either_name():
    model = pico_model("gemma3")
    assert model.config.tie_word_embeddings
    replacement = torch.randn_like(model.lm_head.weight)
    with tensors_replaced(model, {"lm_head.weight": replacement}):
        assert torch.equal(model.get_input_embeddings().weight, replacement)


@pytest.mark.parametrize(
    "bad", [{"model.nothing": torch.zeros(2)}, {"model.norm.weight": torch.zeros(31)}], ids=["name", "shape"]
)
def test_tensors_replaced_refuses_what_does_not_fit_and_changes_nothing(bad):
    model = pico_model("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    good = {"model.layers.0.mlp.down_proj.weight": torch.zeros(32, 48)}
    with pytest.raises(ModelError, match=next(iter(bad))), tensors_replaced(model, good | bad):
        pass
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_structure_is_found_once_and_can_be_given():
    model = pico_model("llama")
    structure = find_structure(model)
    assert BlockEngine(model, structure).structure is structure
    assert BlockEngine(model).device == torch.device("cpu")
