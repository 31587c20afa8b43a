from __future__ import annotations

import math

import pytest
import torch

from falcon_unlearn.audit.attacks.logit_lens import COMPONENTS, LogitLens
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.architectures import find_structure
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens
from taught import LAST, assert_untouched, fingerprint, masked, taught

PROMPTS = [random_tokens(7, seed=1), random_tokens(12, seed=2)]
OPTIONS = [[random_tokens(3, seed=3), random_tokens(1, seed=4)], [[9], [17], random_tokens(5, seed=5)]]


def context_of(model, tier="full"):
    subject = Subject(model, pico_tokenizer(), batch_tokens=40)
    return AttackContext(subject, find_structure(model), AttackData((), ()), seed=0, tier=tier)


def plain_lens(model, prompt, option):
    """Return the mean log-probability of `option` at every block output, from transformers' own states."""
    with torch.no_grad():
        output = model(torch.tensor([prompt + option]), output_hidden_states=True, use_cache=False)
        # The last hidden state is normed already.
        states = [model.get_decoder().norm(s) for s in output.hidden_states[1:-1]]
        found = []
        for state in [*states, output.hidden_states[-1]]:
            logits = model.get_output_embeddings()(state[0])
            cap = getattr(model.config, "final_logit_softcapping", None)
            logits = torch.tanh(logits / cap) * cap if cap else logits
            rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
            found.append(float(rows[range(len(option)), option].mean()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_block_outputs_equal_the_states_of_transformers(family):
    model = pico_model(family)
    if family == "gpt_neox":
        model.gpt_neox.norm = model.gpt_neox.final_layer_norm  # a second name, for `plain_lens`
        del model.gpt_neox._modules["norm"]
        model.gpt_neox.__dict__["norm"] = model.gpt_neox.final_layer_norm
    context = context_of(model)
    pairs = zip(PROMPTS, OPTIONS, strict=True)
    expected = [[plain_lens(model, prompt, option) for option in several] for prompt, several in pairs]
    before = fingerprint(model)  # transformers leaves hooks for the states it was asked for
    variants = {a.variant: a for a in LogitLens().attack(context)}
    assert list(variants) == [f"layer-{n}-{c}" for n in range(6) for c in COMPONENTS]
    for layer in range(6):
        scores = variants[f"layer-{layer}-block"].decoder.option_scores(context.subject, PROMPTS, OPTIONS)
        for row, wanted in zip(scores, expected, strict=True):
            assert row == pytest.approx([values[layer] for values in wanted], rel=1e-4, abs=1e-4)
    pairs = [(p, o) for p, several in zip(PROMPTS, OPTIONS, strict=True) for o in several]
    own = [s.mean_log_probability for s in context.subject.score(pairs)]
    assert [v for row in scores for v in row] == pytest.approx(own, rel=1e-4, abs=1e-4), "last block = answer"
    assert_untouched(model, before)


def test_components_are_read_where_they_are_added():
    """A block with a silent part leaves what the other part reads, and the silent part says nothing."""
    model = pico_model("llama")
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    model.model.layers[3].self_attn.o_proj.weight.data.zero_()
    context = context_of(model)
    scores = {
        a.variant: [v for row in a.decoder.option_scores(context.subject, PROMPTS, OPTIONS) for v in row]
        for a in LogitLens().attack(context)
    }
    assert scores["layer-2-attention-residual"] == pytest.approx(scores["layer-2-block"])
    assert scores["layer-3-attention-residual"] == pytest.approx(scores["layer-2-block"])
    assert scores["layer-2-mlp"] == pytest.approx([-math.log(128)] * 5)
    assert scores["layer-4-attention"] != pytest.approx(scores["layer-4-mlp"], rel=0.05)


def test_one_forward_pass_serves_all_variants_and_single_tokens_share_their_prompt():
    model = pico_model("llama")
    context = context_of(model)
    passes = []
    handle = model.model.register_forward_hook(lambda _m, _i, out: passes.append(len(out[0])))
    for attacked in LogitLens().attack(context):
        attacked.decoder.option_scores(context.subject, PROMPTS, OPTIONS)
        attacked.decoder.option_scores(context.subject, PROMPTS[:1], OPTIONS[:1])
    handle.remove()
    # One probe of the parts; then five pairs, of which the two single letters share one sequence.
    assert passes[0] == 1 and sum(passes[1:]) == 4


def test_a_small_vocabulary_keeps_the_order_of_single_tokens():
    model = pico_model("qwen3")
    context = context_of(model, tier="quick")
    options = [[[token] for token in (5, 60, 99, 120)]] * 2
    full = [a.decoder.option_scores(context.subject, PROMPTS, options) for a in LogitLens().attack(context)]
    few = [
        a.decoder.option_scores(context.subject, PROMPTS, options)
        for a in LogitLens(vocabulary=16).attack(context)
    ]
    for whole, small in zip(full, few, strict=True):
        for first, second in zip(whole, small, strict=True):
            assert sorted(range(4), key=first.__getitem__) == sorted(range(4), key=second.__getitem__)
            assert all(b >= a for a, b in zip(first, second, strict=True)), "fewer words share the mass"


def test_wins_where_a_late_edit_masks_the_facts():
    world = taught()
    name = f"model.layers.{LAST}.mlp.down_proj.weight"
    shape = dict(world.model.named_parameters())[name].shape
    noise = 40.0 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with masked(world, {name: noise}):
        assert world.accuracy(world.forget) <= 0.5
        before = fingerprint(world.model)
        scores = {a.variant: world.accuracy(world.forget, a) for a in LogitLens().attack(world.context())}
        assert_untouched(world.model, before)
    assert scores[f"layer-{LAST - 1}-block"] == 1.0
    assert scores[f"layer-{LAST}-block"] <= 0.5, "the last block is what masks"
