from __future__ import annotations

import math

import pytest
import torch

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.models import scoring
from pico import FAMILIES, pico_model, random_tokens


def _oracle(model, prompt, completion):
    """One unpadded sequence at a time, the whole distribution, float32."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].float()
    values = logits.log_softmax(-1)
    positions = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    log_probabilities = [values[p, t].item() for p, t in zip(positions, completion, strict=True)]
    matches = [values[p].argmax().item() == t for p, t in zip(positions, completion, strict=True)]
    return log_probabilities, matches


def _greedy(model, prompt, num_tokens):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def _pairs(model):
    """Prompts of lengths around and above the sliding window, with shared and with unique prompts."""
    pairs = []
    for number, length in enumerate((1, 3, 7, 8, 9, 14, 21)):
        prompt = random_tokens(length, seed=number)
        pairs.append((prompt, _greedy(model, prompt, 3)))
        pairs += [(prompt, random_tokens(size, seed=100 * number + size)) for size in (1, 1, 2, 5, 10)]
    pairs += [
        (random_tokens(size, seed=50 + size), random_tokens(17 - size, seed=90 + size)) for size in (1, 5, 16)
    ]
    return pairs


@pytest.mark.parametrize("batch_tokens", [64, 100_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_scores_equal_unpadded_single_passes(family, batch_tokens):
    model = pico_model(family)
    pairs = _pairs(model)
    scores = scoring.completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=batch_tokens)
    for (prompt, completion), score in zip(pairs, scores, strict=True):
        expected, matches = _oracle(model, prompt, completion)
        assert score.token_log_probabilities == pytest.approx(expected, abs=1e-4)
        assert list(score.argmax_matches) == matches
        assert score.sum_log_probability == pytest.approx(sum(expected), abs=1e-3)
        assert score.mean_log_probability == pytest.approx(sum(expected) / len(completion), abs=1e-4)
    assert any(any(score.argmax_matches) for score in scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_token_inside_the_text_is_a_real_token(family):
    model = pico_model(family)
    prompt, completion = [5, 0, 0, 9], [0, 7, 0]
    others = [(random_tokens(12, seed=3), [4])]
    scores = scoring.completion_log_probabilities(
        model, [(prompt, completion), (prompt, [9, 0]), (prompt, [1]), *others], pad_id=0, batch_tokens=999
    )
    expected, _ = _oracle(model, prompt, completion)
    assert scores[0].token_log_probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_scores_and_full_distributions_agree(family):
    model = pico_model(family)
    texts = [random_tokens(size, seed=size) for size in (2, 9, 13, 24)]
    scores = scoring.token_scores(model, texts, pad_id=0, batch_tokens=60)
    seen = []
    for batch in scoring.text_batches(model, texts, batch_tokens=40):
        assert len(batch) * max(len(texts[i]) - 1 for i in batch) <= 40
        log_probabilities = scoring.full_log_probabilities(model, [texts[i] for i in batch], pad_id=0)
        assert torch.allclose(log_probabilities.exp().sum(-1), torch.ones(len(log_probabilities)), atol=1e-5)
        targets = torch.tensor([t for i in batch for t in texts[i][1:]])
        picked = log_probabilities.gather(1, targets[:, None])[:, 0].tolist()
        wanted = [v for i in batch for v in scores[i].token_log_probabilities]
        assert picked == pytest.approx(wanted, abs=1e-4)
        seen += batch
    assert sorted(seen) == [0, 1, 2, 3]
    expected, _ = _oracle(model, texts[3][:1], texts[3][1:])
    assert scores[3].token_log_probabilities == pytest.approx(expected, abs=1e-4)


def test_shared_prompts_are_fed_once_and_last_tokens_never(monkeypatch):
    model = pico_model("llama")
    fed = []
    forward = type(model).forward

    def counting(self, *args, **kwargs):
        fed.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    prompt = random_tokens(20)
    pairs = [(prompt, random_tokens(3, seed=s)) for s in range(4)]
    scoring.completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=4096)
    assert fed == [20, 4 * 2]


def test_single_token_options_need_one_pass_without_cache(monkeypatch):
    model = pico_model("llama")
    calls = []
    forward = type(model).forward

    def recording(self, *args, **kwargs):
        calls.append(kwargs["use_cache"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", recording)
    pairs = [(random_tokens(6, seed=s), [token]) for s in range(3) for token in (5, 6, 7, 8)]
    scoring.completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=4096)
    assert calls == [False]


def test_logits_stay_within_their_budget(monkeypatch):
    model = pico_model("llama")
    monkeypatch.setattr(scoring, "_LOGIT_BUDGET", 128 * 20)
    kept = []
    forward = type(model).forward

    def recording(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        kept.append(output.logits.numel() // 128)
        return output

    monkeypatch.setattr(type(model), "forward", recording)
    pairs = [(random_tokens(4, seed=s % 3), random_tokens(6, seed=s)) for s in range(9)]
    pairs += [(random_tokens(4, seed=50 + s), random_tokens(7, seed=s)) for s in range(9)]
    scores = scoring.completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=100_000)
    assert max(kept) <= 20
    assert len(kept) > 4
    assert len(scores) == 18


def test_same_input_gives_the_same_bits():
    model = pico_model("gemma3")
    pairs = _pairs(model)
    first = scoring.completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=200)
    assert first == scoring.completion_log_probabilities(model, pairs, pad_id=0, batch_tokens=200)


def test_bfloat16_models_are_scored_in_float32():
    model = pico_model("llama").to(torch.bfloat16)
    prompt, completion = random_tokens(6), random_tokens(4, seed=1)
    score = scoring.completion_log_probabilities(model, [(prompt, completion)], pad_id=0, batch_tokens=64)[0]
    expected, _ = _oracle(model, prompt, completion)
    assert score.token_log_probabilities == pytest.approx(expected, abs=1e-4)
    assert all(math.isfinite(value) for value in score.token_log_probabilities)


def test_bad_input_is_named():
    model = pico_model("llama")
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(DataError, match="text 1 has"):
            scoring.completion_log_probabilities(model, [([3], [4]), pair], pad_id=0, batch_tokens=64)
    with pytest.raises(DataError, match="at most 256"):
        scoring.token_scores(model, [random_tokens(300)], pad_id=0, batch_tokens=64)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        scoring.token_scores(model, [random_tokens(5)], pad_id=0, batch_tokens=64)
