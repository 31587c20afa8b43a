from __future__ import annotations

import pytest
import torch

from falcon_unlearn.audit.attacks.matrices import block_matrices
from falcon_unlearn.audit.attacks.quantisation import GRIDS, Quantisation
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import Notice
from falcon_unlearn.linalg.quantisation import IntegerGrid, rounded
from falcon_unlearn.models.architectures import find_structure
from pico import FAMILIES, pico_model, pico_tokenizer
from taught import assert_untouched, fingerprint, masked, taught, worsen

GRID = GRIDS["int4-group-32"]


@pytest.fixture(scope="module")
def on_grid():
    """Return the facts' model with its matrices on the int4 grid: their values are what rounding returns."""
    world = taught()
    matrices = block_matrices(world.model, world.structure)
    return world, {name: rounded(weight.detach(), GRID) for name, weight in matrices.items()}


def edited(world, values, width):
    """Worsen the model inside `width` steps around `values`; the largest of a group keeps its scale."""
    bounds = {}
    for name, value in values.items():
        if not value.any():
            continue  # the silent last block: any edit would set its scale
        scales = GRID.scales(value)
        steps = GRID.steps(value, scales)
        room = torch.where(GRID.codes(value, scales).abs() == 7, 0.0, width * steps)
        largest = 7 * steps
        bounds[name] = ((value - room).clamp(-largest, largest), (value + room).clamp(-largest, largest))
    return worsen(world, bounds)


def test_recovers_from_an_edit_below_half_a_step_and_not_from_a_large_one(on_grid):
    world, values = on_grid
    with masked(world, values):
        assert world.accuracy(world.forget) == 1.0
        tiny, large = edited(world, values, 0.49), edited(world, values, 4.0)
        for edits, recovers in ((tiny, True), (large, False)):
            with masked(world, edits) as original:
                assert world.accuracy(world.forget) <= 0.4, "the edit does not hide the facts"
                before = fingerprint(world.model)
                scores, details = {}, {}
                for attacked in Quantisation().attack(world.context(original)):
                    scores[attacked.variant] = world.accuracy(world.forget)
                    details[attacked.variant] = attacked.details
                assert_untouched(world.model, before)
            overlap = details["int4-group-32"]["bucket_overlap"]
            assert (scores["int4-group-32"] == 1.0) is recovers
            assert (overlap > 0.9) is recovers and (
                details["int4-group-32"]["edits_below_0.5"] > 0.9
            ) is recovers
            assert scores["int8-channel"] <= 0.4, "eight bits are too fine to revert this edit"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_family_is_rounded(family):
    model = pico_model(family)
    linear = [m for m in model.get_decoder().layers.modules() if isinstance(m, torch.nn.Linear)]
    before = fingerprint(model)
    context = AttackContext(
        Subject(model, pico_tokenizer()), find_structure(model), AttackData((), ()), seed=0, tier="full"
    )
    variants = set()
    for attacked in Quantisation().attack(context):
        variants.add(attacked.variant)
        assert attacked.details["changed_matrices"] == attacked.details["matrices"] == len(linear)
        assert "bucket_overlap" not in attacked.details, "there is no original to compare with"
    assert variants == set(GRIDS)
    assert_untouched(model, before)


def test_says_so_when_rounding_changes_nothing(on_grid):
    world, values = on_grid
    notices = []
    with masked(world, values):
        attack = Quantisation(schemes=("int4-group-32",))
        (attacked,) = list(attack.attack(world.context(sink=notices.append)))
    assert attacked.details["changed_matrices"] < attacked.details["matrices"]
    assert [type(notice) for notice in notices] == [Notice] and "on the grid" in notices[0].message


def test_closing_early_restores_the_model():
    world = taught()
    before = fingerprint(world.model)
    variants = Quantisation().attack(world.context())
    next(variants)
    with pytest.raises(AssertionError, match="changed"):
        assert_untouched(world.model, before)
    variants.close()
    assert_untouched(world.model, before)


def test_scheme_names_say_what_they_are():
    for name, grid in GRIDS.items():
        if isinstance(grid, IntegerGrid):
            assert name.startswith(f"int{grid.bits}-")
            assert name.endswith("channel" if grid.group is None else f"group-{grid.group}")
