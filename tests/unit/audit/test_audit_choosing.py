"""Which variant of an attack is chosen, how few are challenged, and which selection facts are asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.audit.choosing import Contest
from falcon_unlearn.audit.facts import Fact, whole_clusters
from falcon_unlearn.config.audit import AuditSettings

VARIANTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans(), st.booleans()), max_size=9
)
"""Accuracy, whether the variant destroys the model, and whether it can be asked later."""


def hold(variants):
    """Run a contest as the runner does; return it and the variants whose damage was looked for."""
    contest, challenged = Contest(), []
    for number, (value, destroys, lasts) in enumerate(variants):
        if lasts:
            contest.wait(number, value)
        elif contest.admits(value):
            challenged.append(number)
            contest.enter(number, value, destroys=destroys)
    while (head := contest.next()) is not None:
        number, value = head
        challenged.append(number)
        contest.enter(number, value, destroys=variants[number][1])
    return contest, challenged


@given(VARIANTS)
def test_the_best_variant_that_spares_the_model_wins(variants):
    contest, _ = hold(variants)
    ranked = [(not destroys, value) for value, destroys, _ in variants]
    assert (contest.best is None) == (not variants)
    if variants:
        assert ranked[contest.best] == max(ranked)
        assert (not contest.destroys, contest.value) == max(ranked)


@given(VARIANTS)
def test_without_waiting_and_with_it_the_same_variant_wins(variants):
    at_once, _ = hold([(value, destroys, False) for value, destroys, _ in variants])
    waiting, challenged = hold([(value, destroys, True) for value, destroys, _ in variants])
    assert at_once.best == waiting.best and at_once.destroys == waiting.destroys
    spared = [number for number in challenged if not variants[number][1]]
    assert len(spared) <= 1, "the first that spares the model ends the search"


def facts(sizes):
    return [
        Fact(f"{cluster}-{number}", f"c{cluster}", "q", "a", ("b",))
        for cluster, size in enumerate(sizes)
        for number in range(size)
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 30), st.integers(0, 5))
def test_selection_facts_are_capped_by_whole_clusters(sizes, most, seed):
    everything = facts(sizes)
    kept = whole_clusters(everything, most, seed=seed)
    assert kept and kept == whole_clusters(everything, most, seed=seed)
    clusters = {fact.cluster for fact in kept}
    assert kept == tuple(fact for fact in everything if fact.cluster in clusters)
    assert len(kept) <= most or len(clusters) == 1
    if len(kept) > most:
        assert len(kept) == min(sizes)
    left = [size for number, size in enumerate(sizes) if f"c{number}" not in clusters]
    assert all(len(kept) + size > most for size in left), "no cluster is left out that has room"


def test_only_the_quick_tier_caps_selection_facts_by_itself():
    assert AuditSettings().most_selection == 20 and AuditSettings(tier="quick").most_selection == 20
    assert AuditSettings(tier="full").most_selection is None
    assert AuditSettings(tier="full", selection_items=7).most_selection == 7
