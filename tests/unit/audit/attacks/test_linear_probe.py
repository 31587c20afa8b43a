from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch

from falcon_unlearn.audit.attacks.linear_probe import LinearProbe
from falcon_unlearn.audit.attacks.probe_fitting import Examples, fit_control, fit_probe, shuffled_labels
from falcon_unlearn.audit.base import AttackContext, AttackData
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.engine import BlockEngine
from pico import pico_model, pico_tokenizer
from taught import LAST, assert_untouched, fingerprint, masked, taught


def examples(num_facts=60, size=30, signal=0.0, seed=0, clusters=12):
    """Return facts with four options; the right one's features are shifted along one direction."""
    chance = np.random.default_rng(seed)
    facts = np.repeat(np.arange(num_facts), 4)
    labels = np.zeros(4 * num_facts, dtype=int)
    labels[np.arange(num_facts) * 4 + chance.integers(0, 4, num_facts)] = 1
    features = chance.normal(size=(4 * num_facts, size)) * np.linspace(0.1, 10, size)
    features[:, 0] += signal * labels
    return Examples(features, labels, facts, tuple(f"c{fact % clusters}" for fact in facts))


def test_probe_is_scikit_learns_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = examples(signal=0.3)
    probe = fit_probe(known)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=probe.strength, max_iter=300))
    theirs.fit(known.features_ND, known.labels_N)
    np.testing.assert_allclose(
        probe.scores(known.features_ND), theirs.decision_function(known.features_ND), rtol=1e-6, atol=1e-6
    )


def test_finds_a_direction_and_the_control_does_not():
    known = examples(signal=0.4)
    probe = fit_probe(known)
    controls = [fit_control(known, probe.strength, seed=seed) for seed in range(5)]
    assert probe.accuracy > 0.8
    assert np.mean([control.accuracy for control in controls]) == pytest.approx(0.25, abs=0.1)
    assert fit_probe(examples()).accuracy < 0.45, "noise is not truth"


def test_shuffled_labels_agree_with_the_truth_as_often_as_chance():
    known = examples(num_facts=42)
    drawn = [shuffled_labels(known, seed) for seed in range(40)]
    agreed = [int(labels @ known.labels_N) for labels in drawn]
    assert set(agreed) == {10, 11}, "42 facts of four options: 10.5"
    assert all((np.bincount(known.facts_N, weights=labels) == 1).all() for labels in drawn)
    assert len({labels.tobytes() for labels in drawn}) == 40


def test_clusters_are_never_split():
    """Features that name the fact's cluster help only where clusters leak: here they do not."""
    known = examples(num_facts=48, clusters=12)
    own = np.random.default_rng(5).normal(size=(12, 30)) * 20
    # Right options carry their cluster's vector, which says nothing about other clusters.
    rows = [own[fact % 12] * label for fact, label in zip(known.facts_N, known.labels_N, strict=True)]
    told = Examples(known.features_ND + np.array(rows), known.labels_N, known.facts_N, known.clusters)
    leaky = Examples(told.features_ND, told.labels_N, told.facts_N, tuple(map(str, told.facts_N)))
    assert fit_probe(leaky).accuracy > fit_probe(told).accuracy + 0.2


def test_one_cluster_gives_a_probe_without_an_estimate():
    probe = fit_probe(examples(signal=0.5, clusters=1))
    assert probe.accuracy is None and np.abs(probe.weights_D).argmax() == 0


def test_wins_where_a_late_edit_masks_the_facts():
    world = taught()
    name = f"model.layers.{LAST}.mlp.down_proj.weight"
    shape = dict(world.model.named_parameters())[name].shape
    noise = 40.0 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    unseen = (*world.held_out, *world.retain[len(world.retain) // 2 :])
    with masked(world, {name: noise}):
        hidden = world.accuracy(unseen)
        before = fingerprint(world.model)
        found = {a.variant: (world.accuracy(unseen, a), a) for a in LinearProbe().attack(world.context())}
        assert_untouched(world.model, before)
    scores = {variant: score for variant, (score, _) in found.items()}
    assert hidden <= 0.5
    assert max(scores[f"layer-{n}"] for n in range(LAST)) >= 0.8
    assert sorted(scores[f"layer-{n}-shuffled"] for n in range(LAST + 1))[1] <= 0.5
    assert all(found[f"layer-{n}-shuffled"][1].control == f"layer-{n}" for n in range(LAST + 1))
    assert found[f"layer-{LAST - 1}"][1].details["selectivity"] > 0.2


def test_scores_are_the_probe_at_the_last_token_of_the_option():
    """Every option alone, in one unpadded pass, gives the log-odds of a probe fitted here."""
    world = taught()
    context = world.context()
    variants = {a.variant: a for a in LinearProbe().attack(context)}
    engine = BlockEngine(world.model)

    def last_states(facts):
        found = [[] for _ in range(LAST + 1)]
        with torch.no_grad(), engine.observe(lambda n, s: found[n].append(s[0, -1].double().numpy())):
            for fact in facts:
                for option in fact.options:
                    world.model(torch.tensor([world.subject.encode(f"{fact.question} {option}")]))
        return [np.array(states) for states in found]

    known = (*context.data.forget, *context.data.retain)
    facts = np.repeat(np.arange(len(known)), 4)
    labels = np.array([int(o == fact.answer) for fact in known for o in fact.options])
    clusters = tuple(known[fact].cluster for fact in facts)
    encoded = [
        world.subject.encode_completions(f.question, [f" {o}" for o in f.options]) for f in world.held_out
    ]
    prompts, options = [p for p, _ in encoded], [o for _, o in encoded]
    for layer, (train, test) in enumerate(zip(last_states(known), last_states(world.held_out), strict=True)):
        probe = fit_probe(Examples(train, labels, facts, clusters))
        scores = variants[f"layer-{layer}"].decoder.option_scores(world.subject, prompts, options)
        np.testing.assert_allclose(np.ravel(scores), probe.scores(test), rtol=1e-3, atol=1e-3)


def test_learns_from_questions_as_they_are_asked():
    world = taught()
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} says:"
    subject = Subject(world.model, tokenizer)
    context = dataclasses.replace(world.context(), subject=subject, chat_template=True)
    fed = []
    embedded = world.model.model.embed_tokens.register_forward_hook(
        lambda _m, inputs, _o: fed.extend(tokenizer.batch_decode(inputs[0], skip_special_tokens=True))
    )
    next(LinearProbe().attack(context))
    embedded.remove()
    assert fed and all(" says: " in text for text in fed)


def test_missing_facts_and_missing_scikit_learn_are_user_errors(monkeypatch):
    model = pico_model("llama")
    subject, structure = Subject(model, pico_tokenizer()), find_structure(model)
    with pytest.raises(DataError, match="none"):
        next(LinearProbe().attack(AttackContext(subject, structure, AttackData((), ()), seed=0)))
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(PrerequisiteError, match="scikit-learn"):
        fit_probe(examples())
