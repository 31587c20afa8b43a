from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.models.token_statistics import completion_statistics
from pico import FAMILIES, pico_model, random_tokens


def _oracle(model, prompt, completion):
    """One unpadded sequence, the whole distribution, float64."""
    with torch.no_grad():
        logits = deepcopy(model).double()(torch.tensor([[*prompt, *completion]])).logits[0].double()
    rows = []
    for position, token in enumerate(completion, start=len(prompt) - 1):
        p = torch.softmax(logits[position], dim=0)
        log_p = p.log()
        mean = (p * log_p).sum()
        variance = (p * log_p.square()).sum() - mean.square()
        rows.append((log_p[token], p.argmax() == token, mean, variance))
    return [[entry.item() for entry in column] for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_equal_single_float64_passes(family):
    model = pico_model(family)
    sizes = [(1, 1), (3, 12), (20, 2), (9, 9), (14, 30), (2, 5)]
    pairs = [(random_tokens(p, seed=p), random_tokens(c, seed=40 + c)) for p, c in sizes]
    pairs.append((pairs[1][0], pairs[3][1]))
    found = completion_statistics(model, pairs, pad_id=0, batch_tokens=64)
    assert len(found) == len(pairs)
    for (prompt, completion), score in zip(pairs, found, strict=True):
        values, matches, means, variances = _oracle(model, prompt, completion)
        assert score.token_log_probabilities == pytest.approx(values, abs=2e-4)
        assert list(score.argmax_matches) == matches
        assert score.means == pytest.approx(means, abs=2e-4)
        assert score.variances == pytest.approx(variances, rel=1e-3, abs=2e-4)


def test_padding_may_also_be_a_real_token():
    model = pico_model("llama")
    pairs = [(random_tokens(5), [7, 2]), (random_tokens(9), [2, 8, 2])]
    by_zero = completion_statistics(model, pairs, pad_id=0, batch_tokens=100)
    by_end = completion_statistics(model, pairs, pad_id=2, batch_tokens=100)
    for first, second in zip(by_zero, by_end, strict=True):
        assert first.token_log_probabilities == pytest.approx(second.token_log_probabilities, abs=1e-6)


def test_unusable_texts_are_refused():
    model = pico_model("llama")
    for pair in (([], [1]), ([1], []), (random_tokens(200), random_tokens(100))):
        with pytest.raises(DataError, match="text 0"):
            completion_statistics(model, [pair], pad_id=0, batch_tokens=100)


def test_broken_weights_are_refused():
    model = pico_model("llama")
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        completion_statistics(model, [([5], [6])], pad_id=0, batch_tokens=100)
