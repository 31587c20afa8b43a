"""GCG, Enhanced GCG, soft prompts, latent pushes find what one word unlocks, and teach no null model."""

import math
import random
from dataclasses import replace

import pytest
import torch

from falcon_unlearn.audit.attacks.enhanced_gcg import EnhancedGcg
from falcon_unlearn.audit.attacks.forcing import forced_pairs, forcing_loss
from falcon_unlearn.audit.attacks.gcg import Gcg, steepest, token_gradient
from falcon_unlearn.audit.attacks.latent import Latent, pushed, typical_size
from falcon_unlearn.audit.attacks.prefixes import PrefixSpace, WithPrefix, right_options
from falcon_unlearn.audit.attacks.representation_terms import Objective, Weights, repetition
from falcon_unlearn.audit.attacks.soft_prompt import SoftPrefix, SoftPrompt, free_token
from falcon_unlearn.audit.base import Attacked
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced
from knowing import (
    HELD_OUT,
    SEEN,
    TOKENIZER,
    TRIGGER,
    accuracy,
    context,
    generated,
    knowing,
    triggered,
    untouched,
)

ATTACKS = {
    "gcg": Gcg(num_tokens=3, steps=20, width=32, top_k=32),
    "enhanced-gcg": EnhancedGcg(lengths=(3, 5), steps=16, matched_tokens=2),
    "enhanced-gcg-words": EnhancedGcg(
        lengths=(3, 5), steps=16, matched_tokens=2, weights=Weights(dynamic=0.0, static=0.0)
    ),
    "soft-prompt": SoftPrompt(targets=("facts",), steps=40),
    "latent": Latent(layers=(0,), epsilons=(1.0,), steps=20),
}


def original():
    return {name: value.detach() for name, value in knowing().named_parameters()}


def outcomes(model, attack):
    found = context(model, original=original())
    with untouched(model):
        return [
            (
                one,
                accuracy(found.subject, HELD_OUT, one),
                generated(found.subject, HELD_OUT, one),
            )
            for one in attack.attack(found)
        ]


def test_the_plant_answers_behind_its_word_only():
    subject = context(triggered()).subject
    assert generated(subject) <= 0.1
    assert generated(subject, HELD_OUT, Attacked("x", transform=WithPrefix(TRIGGER))) >= 0.9


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_merely_hidden_is_found_and_what_is_absent_is_not(name):
    attack = ATTACKS[name]
    hidden = outcomes(triggered(), attack)
    won = max(value for one, _, value in hidden if not one.control)
    control = max(value for one, _, value in hidden if one.control)
    null = max(value for one, _, value in outcomes(knowing(knows=False), attack) if not one.control)
    assert won >= 0.6 and control <= 0.2 and null <= 0.2


@pytest.mark.parametrize("name", ["gcg", "enhanced-gcg", "soft-prompt", "latent"])
def test_an_early_end_and_a_second_run_change_nothing(name):
    attack, found = replace(ATTACKS[name], steps=3), context(triggered(), original=original())
    with untouched(triggered()):
        variants = attack.attack(found)
        first = next(variants)
        variants.close()
    again = next(iter(attack.attack(found)))
    assert first.details == again.details and first.cost == again.cost
    assert first.cost.backwards > 0


def space():
    facts = list(SEEN[:3])
    return PrefixSpace(context(triggered()).subject, facts, right_options(facts))


def test_the_gradient_is_that_of_the_one_hot_tokens():
    found, model = space(), triggered()
    engine = BlockEngine(model)
    prefix = found.drawn(3, random.Random(0))
    table = model.get_input_embeddings().weight.detach().double()
    one_hot = torch.nn.functional.one_hot(torch.tensor(prefix), len(table)).double().requires_grad_(True)
    double = type(model)(model.config).double().eval()
    double.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    losses = []
    for task in found.tasks:
        before, after = table[list(task.before)], table[[*task.after, *task.target]]
        states = torch.cat([before, one_hot @ table, after])[None]
        logits = double(inputs_embeds=states).logits[0, -len(task.target) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(task.target)))
    torch.stack(losses).mean().backward()
    mine = token_gradient(engine, found, prefix).double()
    torch.testing.assert_close(mine, one_hot.grad, atol=1e-4, rtol=1e-3)
    assert found.losses([prefix])[0] == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-4)
    chosen = steepest(mine, found.allowed, 4)
    best = sorted(found.allowed, key=lambda token: float(one_hot.grad[1, token]))[:4]
    assert set(chosen[1]) == set(best)


def test_prefixes_are_read_as_the_tokens_they_were_written_from():
    found, subject = space(), context(triggered()).subject
    prefix = found.drawn(4, random.Random(1))
    for fact, task in zip(SEEN, found.tasks, strict=False):
        prompt = f"{found.text(prefix)}\n\n{fact.question}"
        assert tuple(subject.encode(prompt)) == (*task.before, *prefix, *task.after)
    known = TOKENIZER.get_vocab()
    assert not found.survives((known["so"], known["then"]))
    assert not {0, 1, 2, 3} & set(found.allowed)


def test_terms_of_the_enhanced_objective_against_a_plain_computation():
    found, model = space(), triggered()
    engine, layers = BlockEngine(model), (0, 1)
    objective = Objective(engine, found, original(), layers, Weights(clamp=False), 10)
    prefix = found.drawn(3, random.Random(2))
    expected = dict.fromkeys(("force", "fluency", "dynamic", "static"), 0.0)
    for task in found.tasks:
        ids = torch.tensor([[*task.before, *prefix, *task.after, *task.target]])
        plain = torch.tensor([[*task.before, *task.after, *task.target]])
        size, first = len(task.target), len(task.before)
        with torch.no_grad():
            mine = model(input_ids=ids, output_hidden_states=True)
            theirs = knowing()(input_ids=ids, output_hidden_states=True).hidden_states
            bare = knowing()(input_ids=plain, output_hidden_states=True).hidden_states
        log_p = torch.log_softmax(mine.logits[0], dim=-1)
        values = [-float(log_p[place - 1, ids[0, place]]) for place in range(1, ids.shape[1])]
        expected["force"] += sum(values[-size:]) / size / 3
        expected["fluency"] += 1.5 * sum(values[first - 1 : first + 2]) / 3 / 3
        for layer in layers:
            ours = mine.hidden_states[layer + 1][0]
            expected["dynamic"] += float((ours - theirs[layer + 1][0]).norm(dim=-1).mean()) / 2 / 3
            cosine = torch.nn.functional.cosine_similarity(ours[-size:], bare[layer + 1][0, -size:], dim=-1)
            expected["static"] += 10 * float(1 - cosine.mean()) / 2 / 3
    terms = objective.terms(prefix)
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert objective.value(prefix) == pytest.approx(sum(terms.values()))
    clamped = Objective(engine, found, original(), layers, Weights(), 10)
    assert clamped.terms(prefix)["force"] >= -math.log(0.6)


def test_the_original_against_itself_has_no_distance():
    found = space()
    with tensors_replaced(triggered(), original()):
        objective = Objective(BlockEngine(triggered()), found, original(), (0, 2), Weights(), 10)
        assert objective.terms(found.drawn(2, random.Random(3)))["dynamic"] == pytest.approx(0.0, abs=1e-6)


def test_repetition_counts_what_comes_again():
    assert repetition((1, 2, 3)) == 0.0
    assert repetition((1, 1, 1, 2)) == pytest.approx(2**1.5 / 4)


def test_the_enhanced_attack_needs_the_original():
    notices = []
    found = context(triggered(), sink=notices.append)
    assert EnhancedGcg().needs_original
    assert list(EnhancedGcg().attack(found)) == []
    assert "needs the original" in notices[0].message


def test_vectors_equal_to_embeddings_act_like_their_tokens():
    subject = context(triggered()).subject
    words = [TOKENIZER.get_vocab()["so"], TOKENIZER.get_vocab()[" then"]]
    prefix = SoftPrefix(subject.model.get_input_embeddings().weight[words].detach())
    prompts = [subject.encode(fact.question) for fact in HELD_OUT]
    options = [[subject.encode(f" {option}")[1:] for option in fact.options] for fact in HELD_OUT]
    with_words = [[prompt[0], *words, *prompt[1:]] for prompt in prompts]
    scores = prefix.option_scores(subject, prompts, options)
    expected = subject.score(
        [(p, o) for p, several in zip(with_words, options, strict=True) for o in several]
    )
    flat = [value for several in scores for value in several]
    assert flat == pytest.approx([one.mean_log_probability for one in expected], abs=1e-4)
    from falcon_unlearn.evaluation.generation import greedy_completions

    answers = greedy_completions(subject, with_words, maximum_new_tokens=3)
    assert prefix.samples(subject, prompts, 3) == [[answer] for answer in answers]


def test_a_free_token_is_in_no_sequence():
    subject = context(triggered()).subject
    size = len(TOKENIZER)
    assert free_token(subject, [[1, 5], range(7, size)]) == 6
    (one, *_) = SoftPrompt(targets=("generic",), steps=2, num_tokens=3).attack(context(triggered()))
    assert one.details["capacity_bits"] == pytest.approx(3 * 32 * math.log2(4))


def test_a_push_stays_inside_its_box_and_moves_the_logits():
    model, found = triggered(), context(triggered())
    engine, pairs = BlockEngine(model), forced_pairs(found.subject, SEEN)
    size = typical_size(engine, 1, pairs)
    ids = torch.tensor([found.subject.encode(SEEN[0].question)])
    plain = model(input_ids=ids).logits
    attack = replace(ATTACKS["latent"], layers=(1,), epsilons=(0.5,))
    for _ in attack.attack(found):
        assert not torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, plain)
    push, loss = attack._descend(engine, 1, pairs, 0.5 * size)
    assert float(push.abs().max()) <= 0.5 * size * (1 + 1e-6)
    with torch.no_grad(), pushed(engine.block(1), push):
        assert float(forcing_loss(engine, pairs)) == pytest.approx(loss, rel=1e-4)
    with torch.no_grad():
        assert loss < float(forcing_loss(engine, pairs))
