"""The plan is fair, repeatable, and the same whatever its length."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.data.batches import plan_batches
from falcon_unlearn.errors import DataError

sets = st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 20)), min_size=1, max_size=4)


def plan(forget, retain, batch_size=4, steps=40, seed=0):
    return plan_batches(
        [size for size, _ in forget],
        [weight for _, weight in forget],
        [size for size, _ in retain],
        [weight for _, weight in retain],
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )


@settings(max_examples=60)
@given(sets, sets, st.integers(1, 9), st.integers(0, 5))
def test_batches_are_full_in_range_and_without_repeats(forget, retain, batch_size, seed):
    for batch in plan(forget, retain, batch_size, 30, seed).batches:
        size = forget[batch.domain][0]
        assert len(batch.forget) == len(batch.retain) == batch_size
        assert set(batch.forget) <= set(range(size))
        assert size < batch_size or len(set(batch.forget)) == batch_size
        for corpus, number in Counter(corpus for corpus, _ in batch.retain).items():
            drawn = [index for owner, index in batch.retain if owner == corpus]
            assert set(drawn) <= set(range(retain[corpus][0]))
            assert retain[corpus][0] < number or len(set(drawn)) == number


@settings(max_examples=30)
@given(sets, sets, st.integers(1, 9), st.integers(0, 5))
def test_a_step_does_not_depend_on_the_length_of_the_plan(forget, retain, batch_size, seed):
    short, long = (plan(forget, retain, batch_size, steps, seed) for steps in (7, 25))
    assert long.batches[:7] == short.batches
    assert [long.batch(step) for step in range(7, 25)] == list(long.batches[7:])


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_example_is_seen_equally_often(size, batch_size, seed):
    batches = plan([(size, 1.0)], [(size, 2.0)], batch_size, 50, seed).batches
    for drawn in ([i for b in batches for i in b.forget], [i for b in batches for _, i in b.retain]):
        counts = Counter(dict.fromkeys(range(size), 0))
        counts.update(drawn)
        assert max(counts.values()) - min(counts.values()) <= 1
        full = len(drawn) // size * size
        epochs = [tuple(drawn[start : start + size]) for start in range(0, full, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)


def test_epochs_are_fresh_and_seeds_matter():
    drawn = [i for b in plan([(20, 1)], [(20, 1)], 10, 8).batches for i in b.forget]
    assert len({tuple(drawn[start : start + 20]) for start in range(0, 80, 20)}) == 4
    assert plan([(20, 1)], [(20, 1)], seed=1) != plan([(20, 1)], [(20, 1)], seed=2)
    assert plan([(20, 1)], [(20, 1)], seed=1) == plan([(20, 1)], [(20, 1)], seed=1)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_domains_follow_their_weights(weights):
    steps = 3 * sum(weights)
    counts = Counter(b.domain for b in plan([(5, w) for w in weights], [(5, 1)], 1, steps).batches)
    assert counts == {domain: 3 * weight for domain, weight in enumerate(weights)}


def test_equal_weights_alternate_strictly():
    for weight in (1, 0.1, 0.3, 7):
        batches = plan([(9, weight)] * 3, [(9, weight)] * 2, 4, 12).batches
        assert [b.domain for b in batches] == [0, 1, 2] * 4
        assert all([owner for owner, _ in b.retain] == [0, 1, 0, 1] for b in batches)


def test_a_light_domain_is_not_left_out():
    batches = plan([(9, 1), (9, 1000)], [(9, 1), (9, 1000)], 4, 5).batches
    assert Counter(b.domain for b in batches) == {1: 4, 0: 1}
    assert Counter(owner for b in batches for owner, _ in b.retain)[0] == 1


def test_one_example_fills_a_batch():
    assert plan([(1, 1)], [(1, 1)], 3, 1).batch(0).forget == (0, 0, 0)


def test_steps_outside_the_plan():
    made = plan([(3, 1)], [(3, 1)], steps=2)
    assert len(made) == 2
    for step in (-1, 2):
        with pytest.raises(IndexError, match="outside the plan of 2 steps"):
            made.batch(step)


@pytest.mark.parametrize(
    ("forget", "weights", "batch_size", "words"),
    [
        ([], [], 1, "0 sets"),
        ([3], [1.0, 2.0], 1, "1 sets but 2 weights"),
        ([0], [1.0], 1, "no training examples"),
        ([3], [0.0], 1, "weight 0.0"),
        ([3], [float("nan")], 1, "weight nan"),
        ([3], [1.0], 0, "batch_size 0"),
    ],
)
def test_bad_input(forget, weights, batch_size, words):
    with pytest.raises(DataError, match=words):
        plan_batches(forget, weights, [3], [1.0], batch_size=batch_size, steps=1, seed=0)
