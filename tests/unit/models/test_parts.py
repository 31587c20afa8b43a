from __future__ import annotations

import pytest
import torch

from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.parts import has_additive_parts, observe_parts
from pico import FAMILIES, pico_model, random_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_entering_state_attention_and_mlp_add_up_to_the_block(family):
    engine = BlockEngine(pico_model(family))
    seen = {}
    with torch.no_grad(), observe_parts(engine, seen.__setitem__):
        engine.base(input_ids=torch.tensor([random_tokens(21)]), use_cache=False)
    assert list(seen) == list(range(6))
    for layer, states in seen.items():
        total = states.entering + states.attention + states.mlp
        torch.testing.assert_close(total, states.leaving, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(states.attention, states.mlp, rtol=0.1)
        if layer:
            assert torch.equal(states.entering, seen[layer - 1].leaving)
    assert has_additive_parts(engine, random_tokens(5))


def test_scaled_residuals_and_unknown_parts_are_noticed():
    model = pico_model("llama")
    engine = BlockEngine(model)
    handle = model.model.layers[2].register_forward_hook(lambda _m, _i, out: out * 1.5)
    assert not has_additive_parts(engine, random_tokens(5))
    handle.remove()
    assert has_additive_parts(engine, random_tokens(5))
    model.model.layers[1].feed_forward = model.model.layers[1].mlp
    del model.model.layers[1].mlp
    assert not has_additive_parts(engine, random_tokens(5))
