from __future__ import annotations

import pytest
import torch

from falcon_unlearn.audit.attacks.matrices import block_matrices
from falcon_unlearn.audit.attacks.pruning import Pruning, input_norms
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.linalg.pruning import smallest
from falcon_unlearn.models.architectures import find_structure
from pico import FAMILIES, pico_model, pico_tokenizer
from taught import assert_untouched, fingerprint, masked, taught, worsen


def test_recovers_from_an_edit_in_small_weights_and_random_masks_do_not():
    world = taught()
    matrices = block_matrices(world.model, world.structure)
    sparse = {n: w.detach().masked_fill(smallest(w.abs(), 0.3), 0.0) for n, w in matrices.items()}
    with masked(world, sparse):
        assert world.accuracy(world.forget) == 1.0, "the facts need no small weights"
        bounds = {}
        for name, weight in sparse.items():
            if weight.any():  # the last block is silent
                room = torch.where(weight == 0, 0.95 * weight[weight != 0].abs().min(), 0.0)
                bounds[name] = (-room + weight, weight + room)
        with masked(world, worsen(world, bounds)) as original:
            hidden = world.accuracy(world.forget)
            before = fingerprint(world.model)
            scores, details = {}, {}
            for attacked in Pruning().attack(world.context(original)):
                scores[attacked.variant] = world.accuracy(world.forget)
                details[attacked.variant] = (attacked.control, attacked.details["zeroed_share"])
            assert_untouched(world.model, before)
    assert hidden <= 0.5
    assert scores["magnitude-30"] == 1.0 and scores["wanda-30"] >= 0.9
    assert scores["random-30"] <= 0.7 and scores["random-10"] <= 0.7
    assert [name for name, (control, _) in details.items() if control] == ["random-10", "random-30"]
    assert 0.2 < details["magnitude-30"][1] <= 0.3, "the silent block's zeros do not count"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_family_is_pruned(family):
    world, model = taught(), pico_model(family)
    data = world.context().data
    context = AttackContext(Subject(model, pico_tokenizer(), 60), find_structure(model), data, seed=0)
    linear = [m for m in model.get_decoder().layers.modules() if isinstance(m, torch.nn.Linear)]
    before = fingerprint(model)
    for attacked in Pruning(shares=(0.25,)).attack(context):
        assert attacked.details["changed_matrices"] == attacked.details["matrices"] == len(linear)
        assert attacked.details["zeroed_share"] == pytest.approx(0.25, abs=0.01)
    assert_untouched(model, before)
    norms, num_texts = input_norms(context)
    assert num_texts == 12 and len(norms) == len(linear)


def test_input_norms_count_real_tokens_only():
    world, model = taught(), pico_model("llama")
    data = world.context().data
    wide, narrow = (
        input_norms(
            AttackContext(Subject(model, pico_tokenizer(), size), find_structure(model), data, seed=0)
        )
        for size in (4096, 1)
    )
    assert wide[0].keys() == narrow[0].keys()
    for name, norm in wide[0].items():
        torch.testing.assert_close(norm, narrow[0][name], rtol=1e-4, atol=1e-4)


def test_without_retain_data_there_is_an_error():
    model = pico_model("llama")
    context = AttackContext(
        Subject(model, pico_tokenizer()), find_structure(model), AttackData((), ()), seed=0
    )
    with pytest.raises(DataError, match="retain data"):
        next(Pruning().attack(context))
