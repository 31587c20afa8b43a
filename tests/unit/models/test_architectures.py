from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.models.architectures import (
    TESTED_FAMILIES,
    coverage,
    find_structure,
    parameter_of_role,
    resolve_trained_parameters,
)
from pico import FAMILIES, pico_model

LLAMA_LIKE = {
    "mlp.down": ("mlp.down_proj", [32, 48]),
    "mlp.up": ("mlp.up_proj", [48, 32]),
    "mlp.gate": ("mlp.gate_proj", [48, 32]),
    "attention.query": ("self_attn.q_proj", [32, 32]),
    "attention.key": ("self_attn.k_proj", [16, 32]),
    "attention.value": ("self_attn.v_proj", [16, 32]),
    "attention.output": ("self_attn.o_proj", [32, 32]),
}
EXPECTED = dict.fromkeys(FAMILIES, LLAMA_LIKE) | {
    "phi3": {
        "mlp.down": ("mlp.down_proj", [32, 48]),
        "mlp.gate_up": ("mlp.gate_up_proj", [96, 32]),
        "attention.query_key_value": ("self_attn.qkv_proj", [64, 32]),
        "attention.output": ("self_attn.o_proj", [32, 32]),
    },
    "gpt_neox": {
        "mlp.down": ("mlp.dense_4h_to_h", [32, 48]),
        "mlp.up": ("mlp.dense_h_to_4h", [48, 32]),
        "attention.query_key_value": ("attention.query_key_value", [96, 32]),
        "attention.output": ("attention.dense", [32, 32]),
    },
}
BASE_PATHS = dict.fromkeys(FAMILIES, "model") | {"gpt_neox": "gpt_neox"}


@pytest.mark.parametrize("family", FAMILIES)
def test_coverage_names_every_matrix_of_every_block(family):
    model = pico_model(family)
    structure = find_structure(model)
    assert (structure.num_blocks, structure.hidden_size) == (6, 32)
    assert structure.base_path == BASE_PATHS[family]
    assert structure.expert_containers == ()
    rows = coverage(model, structure)
    prefix = f"{BASE_PATHS[family]}.layers.{{layer}}."
    assert {row.role: (row.pattern, row.shape) for row in rows} == {
        role: (f"{prefix}{path}.weight", shape) for role, (path, shape) in EXPECTED[family].items()
    }
    assert all(row.blocks == 6 for row in rows)
    # Nothing two-dimensional in a block escapes the table.
    inside = [p for n, p in model.named_parameters() if n.startswith(prefix.split("{")[0]) and p.ndim >= 2]
    assert sum(row.blocks for row in rows) == len(inside)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_resolve_to_parameters_lowest_block_first(family):
    model = pico_model(family)
    structure = find_structure(model)
    found = resolve_trained_parameters(model, structure, ["mlp.down", "attention.output"], [4, 2])
    assert list(found.values()) == [2, 2, 4, 4]
    parameters = dict(model.named_parameters())
    down, output = EXPECTED[family]["mlp.down"][0], EXPECTED[family]["attention.output"][0]
    assert list(found)[:2] == [f"{BASE_PATHS[family]}.layers.2.{name}.weight" for name in (down, output)]
    assert all(parameters[name].shape[0] == 32 for name in found)


def test_every_tested_family_is_one_of_the_pico_models():
    types = {find_structure(pico_model(family)).model_type for family in FAMILIES}
    # `gemma3` is the multimodal wrapper around the text model that the tests use.
    assert types == set(TESTED_FAMILIES) - {"gemma3"}


def test_a_dotted_module_name_inside_the_block_is_a_role():
    model = pico_model("llama")
    structure = find_structure(model)
    for role in ("input_layernorm", "input_layernorm.weight"):
        assert list(resolve_trained_parameters(model, structure, [role], [1])) == [
            "model.layers.1.input_layernorm.weight"
        ]


def test_unknown_role_lists_the_roles_that_exist():
    model = pico_model("phi3")
    structure = find_structure(model)
    assert parameter_of_role(model, structure, "mlp.sideways", 0) is None
    with pytest.raises(UsageError, match=r"mlp\.sideways.*phi3") as caught:
        resolve_trained_parameters(model, structure, ["mlp.sideways"], [0])
    for role in EXPECTED["phi3"]:
        assert role in caught.value.hint
    with pytest.raises(UsageError) as caught:
        resolve_trained_parameters(model, structure, ["mlp.gate"], [0])  # fused in this family
    assert "mlp.gate_up" in caught.value.hint


@pytest.mark.parametrize("layer", [-1, 6, 99])
def test_layer_out_of_range_states_the_range(layer):
    model = pico_model("llama")
    with pytest.raises(UsageError, match=rf"layer {layer} .*0 to 5"):
        resolve_trained_parameters(model, find_structure(model), ["mlp.down"], [2, layer])


COMMON = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def qwen3_moe():
    config = transformers.Qwen3MoeConfig(
        **COMMON, head_dim=8, moe_intermediate_size=8, num_experts=3, num_experts_per_tok=2
    )
    return transformers.Qwen3MoeForCausalLM(config)


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**COMMON, num_local_experts=3, num_experts_per_tok=2)
    )


@pytest.mark.parametrize("build", [qwen3_moe, mixtral])
def test_expert_containers_are_an_error_for_the_mlp_and_no_obstacle_for_attention(build):
    model = build()
    structure = find_structure(model)
    container = structure.expert_containers[0]
    assert "experts" in container
    for role in ("mlp.down", "mlp.up"):
        with pytest.raises(ModelError, match=container.replace(".", r"\.")) as caught:
            resolve_trained_parameters(model, structure, [role], [1])
        assert "attention.output" in caught.value.hint
    found = resolve_trained_parameters(model, structure, ["attention.output"], [1])
    assert list(found) == ["model.layers.1.self_attn.o_proj.weight"]
    others = [row for row in coverage(model, structure) if row.role == "other"]
    assert any(container in row.pattern for row in others), "experts must show in the table as not covered"


def test_a_dense_block_of_a_mixture_model_can_be_trained_but_not_its_neighbour():
    config = transformers.Qwen3MoeConfig(
        **COMMON, head_dim=8, moe_intermediate_size=8, num_experts=3, mlp_only_layers=[0]
    )
    model = transformers.Qwen3MoeForCausalLM(config)
    structure = find_structure(model)
    assert list(resolve_trained_parameters(model, structure, ["mlp.down"], [0])) == [
        "model.layers.0.mlp.down_proj.weight"
    ]
    with pytest.raises(ModelError, match="block 1 holds experts"):
        resolve_trained_parameters(model, structure, ["mlp.down"], [0, 1])


class _Odd(nn.Module):
    """A decoder with as many block lists and norms as asked."""

    def __init__(self, lists: int, norms: int) -> None:
        super().__init__()
        self.config = transformers.LlamaConfig(num_hidden_layers=2, hidden_size=4, num_attention_heads=1)
        for i in range(lists):
            setattr(self, f"stack{i}", nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]))
        for i in range(norms):
            setattr(self, f"norm{i}", nn.LayerNorm(4))

    def get_decoder(self) -> nn.Module:
        return self


@pytest.mark.parametrize(("lists", "norms"), [(0, 1), (2, 1), (1, 0), (1, 2)])
def test_an_ambiguous_structure_is_an_error(lists, norms):
    with pytest.raises(ModelError, match=r"found|exactly 1"):
        find_structure(_Odd(lists, norms))


def test_a_structure_found_by_shape_alone_works():
    structure = find_structure(_Odd(1, 1))
    assert structure.block_prefix(1) == "stack0.1."
    assert structure.norm_name == "norm0"


def test_structure_needs_no_weights():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON))
    assert len(coverage(model, find_structure(model))) == 7
