"""Every loss against a loop over sequences in NumPy and SciPy, and against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, log_softmax, rel_entr, softmax

from falcon_unlearn.objectives.outputs.base import TokenBatch
from falcon_unlearn.objectives.outputs.grad_ascent import GradAscent
from falcon_unlearn.objectives.outputs.grad_diff import GradDiff
from falcon_unlearn.objectives.outputs.idk_dpo import IdkDpo
from falcon_unlearn.objectives.outputs.idk_nll import IdkNll
from falcon_unlearn.objectives.outputs.npo import Npo
from falcon_unlearn.objectives.outputs.scrub import Scrub
from falcon_unlearn.objectives.outputs.simnpo import SimNpo
from falcon_unlearn.objectives.outputs.task_vector import TaskVector
from falcon_unlearn.objectives.outputs.undial import Undial

TIGHT = {torch.float64: 1e-12, torch.float32: 2e-6}


class Oracle:
    """Hold one batch as lists of per-sequence arrays."""

    def __init__(self, logits, batch):
        z, q = logits.double().numpy(), batch.reference_logits_MV.double().numpy()
        labels, owners = batch.labels_M.numpy(), batch.owners_M.numpy()
        rows = [np.flatnonzero(owners == b) for b in range(batch.num_sequences)]
        kinds = batch.is_alternative_B.numpy()
        self.originals = [
            Sequence64(z[r], q[r], labels[r]) for r, a in zip(rows, kinds, strict=True) if not a
        ]
        self.alternatives = [Sequence64(z[r], q[r], labels[r]) for r, a in zip(rows, kinds, strict=True) if a]


class Sequence64:
    """Hold log-probabilities of one sequence."""

    def __init__(self, z, q, labels):
        every = np.arange(len(labels))
        self.log_p, self.frozen, self.labels, self.q = log_softmax(z, axis=1), q, labels, softmax(q, axis=1)
        self.label_p = self.log_p[every, labels]
        self.ratio = (self.label_p - log_softmax(q, axis=1)[every, labels]).sum()
        self.kl = rel_entr(self.q, softmax(z, axis=1)).sum(1)

    def undial(self, beta):
        target = softmax(self.frozen - beta * np.eye(self.frozen.shape[1])[self.labels], axis=1)
        return -(target * self.log_p).sum(1)


def over_tokens(arrays):
    return float(np.concatenate(arrays).mean())


def nll(oracle):
    return -over_tokens([s.label_p for s in oracle.originals])


def kl(oracle):
    return over_tokens([s.kl for s in oracle.originals])


def dpo(oracle, beta):
    pairs = zip(oracle.alternatives, oracle.originals, strict=True)
    return float(np.mean([-2 / beta * log_expit(beta * (a.ratio - o.ratio)) for a, o in pairs]))


def npo(oracle, beta):
    return float(np.mean([-2 / beta * log_expit(-beta * s.ratio) for s in oracle.originals]))


def simnpo(oracle, beta, margin):
    means = [s.label_p.sum() / len(s.labels) for s in oracle.originals]
    return float(np.mean([-2 / beta * log_expit(-beta * mean - margin) for mean in means]))


FORGET = {
    "grad_ascent": (GradAscent(), lambda o: -nll(o)),
    "grad_diff": (GradDiff(), lambda o: -nll(o)),
    "npo": (Npo(beta=0.1), lambda o: npo(o, 0.1)),
    "npo, cold": (Npo(beta=2.5), lambda o: npo(o, 2.5)),
    "simnpo": (SimNpo(), lambda o: simnpo(o, 4.5, 0.0)),
    "simnpo, margin": (SimNpo(beta=2.5, margin=0.7), lambda o: simnpo(o, 2.5, 0.7)),
    "idk_nll": (IdkNll(), lambda o: -over_tokens([s.label_p for s in o.alternatives])),
    "idk_dpo": (IdkDpo(beta=0.1), lambda o: dpo(o, 0.1)),
    "idk_dpo, cold": (IdkDpo(beta=1.5), lambda o: dpo(o, 1.5)),
    "scrub": (Scrub(), lambda o: -kl(o)),
    "undial": (Undial(), lambda o: over_tokens([s.undial(10.0) for s in o.originals])),
    "undial, mild": (Undial(beta=0.8), lambda o: over_tokens([s.undial(0.8) for s in o.originals])),
    "task_vector": (TaskVector(), nll),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FORGET)
def test_forget_loss_is_the_published_formula(name, dtype, make_batch):
    objective, expected = FORGET[name]
    for seed in range(3):
        logits, batch = make_batch((3, 1, 4, 2, 6, 5), "oaaoao", seed=seed, dtype=dtype)
        loss = objective.forget_loss(logits, batch)
        assert loss.shape == () and loss.dtype == dtype
        assert float(loss) == pytest.approx(expected(Oracle(logits, batch)), rel=TIGHT[dtype])


RETAIN = {
    "nll": (GradDiff(), nll),
    "kl": (GradDiff(retain="kl"), kl),
    "scrub": (Scrub(divergence_weight=0.3, likelihood_weight=2.0), lambda o: 0.3 * kl(o) + 2 * nll(o)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RETAIN)
def test_retain_loss_is_the_published_formula(name, dtype, make_batch):
    objective, expected = RETAIN[name]
    logits, batch = make_batch(dtype=dtype)
    loss = objective.retain_loss(logits, batch)
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(expected(Oracle(logits, batch)), rel=TIGHT[dtype])


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.fixture
def by_hand():
    """One original of labels 0, 1 with p = 1/2, 1/4 and q = 1/4, 1/4; its alternative: p = 1/8, q = 1/4."""
    logits = logs((1 / 2, 1 / 4, 1 / 4), (1 / 2, 1 / 4, 1 / 4), (1 / 8, 3 / 8, 1 / 2))
    frozen = logs((1 / 4, 1 / 4, 1 / 2), (1 / 4, 1 / 4, 1 / 2), (1 / 4, 1 / 4, 1 / 2))
    labels, owners = torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1])
    is_alternative = torch.tensor([False, True])
    return logits, TokenBatch(labels, owners, 2, is_alternative, 0, logs(1 / 4, 1 / 4, 1 / 4), frozen)


LN2 = math.log(2)

GOLDEN = {
    # log p: -ln 2 and -2 ln 2.
    "grad_ascent": (GradAscent(), -1.5 * LN2),
    "task_vector": (TaskVector(), 1.5 * LN2),
    # p / q of the answer is 2: sigmoid(-ln 2) = 1/3.
    "npo": (Npo(beta=1.0), 2 * math.log(3)),
    # sigmoid(1.5 ln 2 * 2) = 8/9; 2/beta = 1.
    "simnpo": (SimNpo(beta=2.0), math.log(9 / 8)),
    # A margin of ln 4 brings 8 to 2: sigmoid(ln 2) = 2/3.
    "simnpo, margin": (SimNpo(beta=2.0, margin=math.log(4)), math.log(3 / 2)),
    "idk_nll": (IdkNll(), 3 * LN2),
    # p / q of the alternative is 1/2, of the original 2: sigmoid(-2 ln 2) = 1/5.
    "idk_dpo": (IdkDpo(beta=1.0), 2 * math.log(5)),
    # KL at both tokens: 1/4 ln(1/2) + 1/4 ln 1 + 1/2 ln 2.
    "scrub": (Scrub(), -LN2 / 4),
    # beta = ln 2 halves one weight: (1/8, 1/4, 1/2) -> (1, 2, 4)/7, and (1/4, 1/8, 1/2) -> (2, 1, 4)/7.
    "undial": (Undial(beta=LN2), (13 / 7 + 12 / 7) / 2 * LN2),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_forget_loss_has_the_value_worked_out_by_hand(name, by_hand):
    objective, expected = GOLDEN[name]
    assert float(objective.forget_loss(*by_hand)) == pytest.approx(expected, rel=1e-12)


def test_likelihoods_are_means_over_tokens_and_preferences_means_over_sequences(make_batch):
    """A batch of one long and one short sequence tells the two kinds of mean apart."""
    logits, batch = make_batch((9, 1))
    oracle = Oracle(logits, batch)
    long, short = oracle.originals
    assert float(GradAscent().forget_loss(logits, batch)) == pytest.approx(
        (long.label_p.sum() + short.label_p.sum()) / 10
    )
    ratios = np.array([long.ratio, short.ratio])
    assert float(Npo(beta=0.5).forget_loss(logits, batch)) == pytest.approx(
        float((4 * np.log1p(np.exp(0.5 * ratios))).mean())
    )


def test_npo_gradient_fades_as_the_answer_becomes_unlikely(make_batch):
    """The weight on each sequence's log-probability is 2 sigmoid(beta ratio) / sequences."""
    logits, batch = make_batch()
    logits.requires_grad_()
    reached = GradAscent().forget_loss(logits, batch) * len(batch.labels_M)
    (ascent,) = torch.autograd.grad(reached, logits)
    (fading,) = torch.autograd.grad(Npo(beta=0.7).forget_loss(logits, batch), logits)
    ratios = np.array([s.ratio for s in Oracle(logits.detach(), batch).originals])
    weights = torch.tensor(2 * expit(0.7 * ratios) / len(ratios))
    torch.testing.assert_close(fading, ascent * weights[batch.owners_M][:, None])
