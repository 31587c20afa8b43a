from __future__ import annotations

import itertools
import json
import math
import random
import zlib
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.tofu.data import TofuData, TofuRow
from falcon_unlearn.bench.tofu.encoding import encode_rows
from falcon_unlearn.bench.tofu.evaluate import evaluate_tofu
from falcon_unlearn.bench.tofu.generating import greedy_answers
from falcon_unlearn.bench.tofu.log import rouge_entry, write_log
from falcon_unlearn.bench.tofu.settings import tofu_setting
from falcon_unlearn.bench.tofu.statistics import answer_losses
from falcon_unlearn.bench.tofu.summary import tofu_metrics
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import Progress
from falcon_unlearn.metrics.open_unlearning import aggregate_log, disagreements
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.metrics.open_unlearning_samples import sample_disagreements
from falcon_unlearn.models.access import wrap_model
from falcon_unlearn.models.text import TextEncoder
from pico import pico_model, pico_tokenizer

_END = 2
_FORGET, _RETAIN, _FACTS = 12, 8, 5
_SETTING = replace(tofu_setting("T-S"), retain_rows=6, maximum_new_tokens=8)


def _rows(name, count, num_wrong, *, paraphrase):
    draw = random.Random(name)

    def words(low, high):
        return " ".join("".join(draw.choices("abcdefg", k=3)) for _ in range(draw.randint(low, high)))

    return tuple(
        TofuRow(
            f"{words(1, 4)}?",
            words(1, 5),
            words(2, 5) if paraphrase else None,
            tuple(words(1, 5) for _ in range(num_wrong)),
        )
        for _ in range(count)
    )


@pytest.fixture(scope="module")
def data():
    return TofuData(
        split="forget01",
        full=_rows("full", 4000, 0, paraphrase=False),
        forget=_rows("forget", _FORGET, 5, paraphrase=True),
        retain=_rows("retain", _RETAIN, 5, paraphrase=True),
        real_authors=_rows("ra", _FACTS, 3, paraphrase=False),
        world_facts=_rows("wf", _FACTS + 1, 3, paraphrase=False),
        holdout=None,
        files={"full.json": "0"},
    )


def _loaded(seed=0):
    return wrap_model(pico_model("llama", seed=seed).requires_grad_(False), pico_tokenizer(), "pico", None)


@pytest.fixture(scope="module")
def reference(data):
    """Another random model, in the place of the retain model."""
    return evaluate_tofu(_loaded(seed=1), data, _SETTING, role="retain", label="retain A")


@pytest.fixture(scope="module")
def evaluated(data, reference):
    loaded = _loaded()
    result, log = evaluate_tofu(
        loaded, data, _SETTING, retain_log=reference[1], gradient_norm=True, batch_tokens=300, seed=3
    )
    return loaded, result, log


def _ids(text):
    return [ord(character) for character in text]


def _token_values(model, question, answer):
    """Return log p of the answer's tokens, their argmax agreement and the moments, in float64, unpadded."""
    prompt, completion = _ids(f"Question: {question}\nAnswer:"), [*_ids(f" {answer}"), _END]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0].double()
    log_p = logits[len(prompt) - 1 : -1].log_softmax(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    deviation = ((p * log_p.square()).sum(-1) - mean.square()).clamp(min=1e-6).sqrt()
    targets = torch.tensor(completion)
    values = log_p[torch.arange(len(completion)), targets]
    return values.tolist(), (log_p.argmax(-1) == targets).tolist(), ((values - mean) / deviation).tolist()


def _loss(model, question, answer):
    values, _, _ = _token_values(model, question, answer)
    return -sum(values) / len(values)


@pytest.fixture(scope="module")
def exact(evaluated):
    return deepcopy(evaluated[0].model).double()


def _samples(log, name, side=None):
    entry = log.entries[name][side] if side else log.entries[name]
    assert list(entry["value_by_index"]) == [str(index) for index in range(len(entry["value_by_index"]))]
    return list(entry["value_by_index"].values())


@pytest.mark.parametrize("short", ["forget", "retain", "ra", "wf"])
def test_losses_equal_single_float64_passes(evaluated, data, exact, short):
    rows = {
        "forget": data.forget,
        "retain": data.retain[: _SETTING.retain_rows],
        "ra": data.real_authors,
        "wf": data.world_facts,
    }[short]
    log = evaluated[2]
    ratio_name = "forget_truth_ratio" if short == "forget" else f"{short}_Truth_Ratio"
    for index, row in enumerate(rows):
        right = _loss(exact, row.question, row.answer)
        wrong = [_loss(exact, row.question, answer) for answer in row.perturbed_answers]
        sample = _samples(log, f"{short}_Q_A_Prob")[index]
        assert sample["avg_loss"] == pytest.approx(right, abs=1e-4)
        assert sample["prob"] == pytest.approx(math.exp(-right), rel=1e-3)
        sample = _samples(log, f"{short}_Q_A_PERT_Prob")[index]
        assert sample["avg_loss"] == pytest.approx(wrong, abs=1e-4)
        if row.paraphrased_answer is not None:
            right = _loss(exact, row.question, row.paraphrased_answer)
            assert _samples(log, f"{short}_Q_A_PARA_Prob")[index]["avg_loss"] == pytest.approx(
                right, abs=1e-4
            )
        else:
            odds = math.exp(-right) / (math.exp(-right) + sum(math.exp(-loss) for loss in wrong))
            found = _samples(log, f"{short}_Q_A_Prob_normalised")[index]["prob"]
            assert found == pytest.approx(odds, rel=1e-3, abs=1e-6)
        ratio = math.exp(-sum(wrong) / len(wrong)) / math.exp(-right)
        assert _samples(log, ratio_name)[index]["score"] == pytest.approx(ratio, rel=2e-3)
    assert len(_samples(log, f"{short}_Q_A_Prob")) == len(rows)


def test_memorisation_and_attacks_equal_single_float64_passes(evaluated, data, exact):
    log = evaluated[2]
    holdout = data.full[2000:2040]
    for side, rows in (("forget", data.forget), ("holdout", holdout)):
        assert len(_samples(log, "mia_loss", side)) == len(rows)
        for index, row in enumerate(rows):
            values, matches, standardised = _token_values(exact, row.question, row.answer)
            loss, count = -sum(values) / len(values), max(1, int(0.4 * (len(values) - 1)))
            expected = {
                "mia_loss": loss,
                "mia_zlib": loss / len(zlib.compress(row.answer.encode())),
                "mia_min_k": -sum(sorted(values[:-1])[:count]) / count,
                "mia_min_k_plus_plus": -sum(sorted(standardised[:-1])[:count]) / count,
            }
            for name, value in expected.items():
                assert _samples(log, name, side)[index]["score"] == pytest.approx(value, rel=1e-3, abs=1e-4)
            if side == "forget":
                share = sum(matches[:-1]) / len(matches[:-1])
                assert _samples(log, "exact_memorization")[index]["score"] == pytest.approx(share)
                tail = next((n for n, hit in enumerate(matches[-2::-1]) if not hit), len(matches) - 1)
                strength = max(tail, 1) / (len(matches) - 1)
                assert _samples(log, "extraction_strength")[index]["score"] == pytest.approx(strength)


def test_gradient_norms_equal_a_backward_pass(evaluated, data):
    loaded, _, log = evaluated
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    model = deepcopy(loaded.model).requires_grad_(True)
    for index in (0, _FORGET - 1):
        row = data.forget[index]
        prompt, completion = _ids(f"Question: {row.question}\nAnswer:"), [*_ids(f" {row.answer}"), _END]
        labels = torch.tensor([[-100] * len(prompt) + completion])
        model.zero_grad()
        model(torch.tensor([[*prompt, *completion]]), labels=labels).loss.backward()
        norms = [parameter.grad.norm().item() for parameter in model.parameters()]
        found = _samples(log, "mia_gradnorm", "forget")[index]["score"]
        assert found == pytest.approx(sum(norms) / len(norms), rel=1e-3)


def test_generations_are_greedy_and_scored_with_the_stemmer(evaluated, data):
    loaded, _, log = evaluated
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for index, sample in enumerate(_samples(log, "wf_Q_A_ROUGE")):
        prompt = f"Question: {data.world_facts[index].question}\nAnswer:"
        ids = _ids(prompt)
        for _ in range(_SETTING.maximum_new_tokens):
            token = loaded.model(torch.tensor([ids])).logits[0, -1].argmax().item()
            if token == _END:
                break
            ids.append(token)
        expected = "".join(chr(token) for token in ids[len(prompt) :] if token > 3)
        assert sample["generation"] == expected.strip()
        assert (sample["input"], sample["ground_truth"]) == (prompt, data.world_facts[index].answer)
        recall = scorer.score(sample["ground_truth"], sample["generation"])["rougeL"].recall
        assert sample["rougeL_recall"] == recall


def test_generation_goes_on_where_the_right_answer_ends_to_be_greedy(evaluated, data):
    loaded, _, _ = evaluated
    subject = Subject(loaded.model, loaded.tokenizer, 4096)
    encoder = TextEncoder(loaded.tokenizer, chat_template=False, maximum_tokens=200)
    questions = encode_rows(encoder, data.forget, "forget")
    plain = greedy_answers(subject, questions, maximum_new_tokens=6, done=lambda _: None)
    # Questions whose right answer is what the model says, in part or to its end.
    shares = (0, 2, 5, 99)
    known = []
    for question, text, share in zip(questions, plain, itertools.cycle(shares), strict=False):
        said = _ids(text)[:share]
        known.append(replace(question, answer=(*said, _END) if share == 99 else (*said, 7, _END)))
    agreed = [item.num_greedy for item in answer_losses(subject, known, lambda _: None)]
    found = greedy_answers(subject, known, maximum_new_tokens=6, done=lambda _: None, num_greedy=agreed)
    again = greedy_answers(subject, known, maximum_new_tokens=6, done=lambda _: None)
    assert found == again
    assert any(agreed)


def test_recall_counts_stems_of_the_true_answer():
    rows = [TofuRow("Who?", "She writes novels"), TofuRow("Who?", "He ran")]
    entry = rouge_entry(rows, ["p", "p"], ["She was writing a novel and more", ""])
    assert [sample["rougeL_recall"] for sample in entry["value_by_index"].values()] == [1.0, 0.0]
    assert entry["agg_value"] == 0.5


def test_metrics_equal_scipy_and_sklearn(evaluated, reference):
    _, result, log = evaluated
    ratios = [
        [sample["score"] for sample in _samples(side, "forget_truth_ratio")] for side in (log, reference[1])
    ]
    test = ks_2samp(*ratios)
    assert result.metric("forget_quality").value == pytest.approx(test.pvalue)
    assert result.metric("forget_quality_distance").value == pytest.approx(test.statistic)
    aucs = []
    for side in (log, reference[1]):
        scores = [[s["score"] for s in _samples(side, "mia_min_k", part)] for part in ("forget", "holdout")]
        labels = [0] * len(scores[0]) + [1] * len(scores[1])
        aucs.append(roc_auc_score(labels, scores[0] + scores[1]))
    assert result.metric("mia_min_k_auc").value == pytest.approx(aucs[0])
    expected = 100 * ((1 - aucs[0]) - (1 - aucs[1])) / (1 - aucs[1])
    assert result.metric("privleak").value == pytest.approx(expected)
    parts = [
        result.metric(f"{questions}_{measure}").value
        for questions in ("retain", "real_authors", "world_facts")
        for measure in ("probability", "rouge_l", "truth_ratio")
    ]
    expected = hmean(parts) if min(parts) > 0 else 0.0
    assert result.metric("model_utility").value == pytest.approx(expected)
    assert result.metric("forget_truth_ratio").value == pytest.approx(
        sum(min(ratio, 1 / ratio) for ratio in ratios[0]) / _FORGET
    )
    reference_losses = _samples(reference[1], "mia_loss", "holdout")
    own = _samples(log, "mia_loss", "holdout")[2]["score"] - reference_losses[2]["score"]
    assert _samples(log, "mia_reference", "holdout")[2]["score"] == pytest.approx(own)


def test_every_metric_has_a_value_an_interval_and_a_direction(evaluated):
    _, result, _ = evaluated
    for metric in result.metrics:
        assert metric.value is not None and metric.desired != "none", metric
        if metric.name != "forget_quality":
            assert metric.low <= metric.value <= metric.high, metric
    wanted = {metric.name: metric.desired for metric in result.metrics}
    for name in ("forget_probability", "extraction_strength", "mia_min_k_auc", "privleak"):
        assert wanted[name] == "retain model"
    assert (wanted["forget_quality"], wanted["model_utility"]) == ("higher", "higher")
    assert {result.forget_axis, result.utility_axis} <= set(wanted)
    assert result.setting["retain_rows"] == "6" and result.setting["holdout_rows"] == "40"
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


def test_what_lacks_a_reference_is_reported_without_a_value(reference):
    result, log = reference
    for name in ("forget_quality", "forget_quality_distance", "privleak", "mia_reference_auc"):
        metric = result.metric(name)
        assert metric.value is None and "retain model" in metric.note
    assert result.metric("mia_gradnorm_auc").value is None
    assert log.entries["forget_quality"] == log.entries["privleak"] == {"agg_value": None}


def test_a_model_against_its_own_log_is_like_the_retain_model(reference):
    metrics = {metric.name: metric.value for metric in tofu_metrics(reference[1], reference[1])}
    assert (metrics["forget_quality"], metrics["forget_quality_distance"]) == (1.0, 0.0)
    assert metrics["privleak"] == pytest.approx(0.0)


def test_without_generations_nothing_disappears(data, evaluated):
    result, log = evaluate_tofu(_loaded(), data, _SETTING, generate=False)
    assert [metric.name for metric in result.metrics] == [metric.name for metric in evaluated[1].metrics]
    for name in ("forget_rouge_l", "retain_rouge_l", "model_utility", "forget_distinct_2"):
        assert result.metric(name).value is None and result.metric(name).note
    assert result.metric("retain_probability").value == pytest.approx(
        evaluated[1].metric("retain_probability").value, abs=1e-6
    )
    assert "forget_Q_A_ROUGE" not in log.entries


def test_without_a_holdout_the_attacks_say_so(data):
    official = replace(
        tofu_setting("full"), forget="forget01", retain_rows=6, maximum_new_tokens=4, retain_authors=(0,)
    )
    result, _ = evaluate_tofu(_loaded(), data, official, generate=False, gradient_norm=True)
    for name in ("mia_min_k_auc", "mia_gradnorm_auc", "privleak"):
        assert result.metric(name).value is None and "holdout" in result.metric(name).note
    assert result.setting["holdout_authors"] == "official"


def test_the_log_survives_the_disk_and_agrees_with_the_aggregators(evaluated, reference, tmp_path):
    paths = [tmp_path / "model_EVAL.json", tmp_path / "retain_EVAL.json"]
    write_log(paths[0], evaluated[2])
    write_log(paths[1], reference[1])
    log = read_log(paths[0])
    assert log.entries == evaluated[2].entries
    assert tofu_metrics(log, read_log(paths[1]), seed=3) == evaluated[1].metrics
    aggregates = aggregate_log(*paths)
    assert disagreements(aggregates) == [] and sample_disagreements(log) == []
    for name in ("forget_quality", "model_utility", "privleak", "mia_gradnorm", "wf_Truth_Ratio"):
        assert aggregates[name].value is not None and aggregates[name].published is not None


def test_a_log_of_other_questions_is_refused(evaluated, reference, tmp_path):
    entries = deepcopy(dict(reference[1].entries))
    entries["forget_Q_A_ROUGE"]["value_by_index"]["4"]["ground_truth"] = "another answer"
    path = tmp_path / "other.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"other.json holds other forget questions.*row 4"):
        tofu_metrics(evaluated[2], read_log(path))
    spaced = deepcopy(dict(reference[1].entries))
    spaced["forget_Q_A_ROUGE"]["value_by_index"]["4"]["ground_truth"] += " "
    path.write_text(json.dumps(spaced))
    tofu_metrics(evaluated[2], read_log(path))
    shorter = deepcopy(dict(reference[1].entries))
    del shorter["forget_Q_A_ROUGE"]
    del shorter["mia_min_k"]["holdout"]["value_by_index"]["39"]
    path.write_text(json.dumps(shorter))
    with pytest.raises(DataError, match="PrivLeak"):
        tofu_metrics(evaluated[2], read_log(path))


def test_data_of_another_split_are_refused(data):
    with pytest.raises(DataError, match="forget05"):
        evaluate_tofu(_loaded(), data, tofu_setting("T-M"))
    with pytest.raises(UsageError, match="retain_rows"):
        evaluate_tofu(_loaded(), data, _SETTING, retain_rows=300)


def test_progress_counts_every_question_and_the_mode_returns(data):
    loaded, events = _loaded(), []
    loaded.model.train()
    evaluate_tofu(loaded, data, _SETTING, sink=events.append, retain_rows=2, gradient_norm=True)
    assert loaded.model.training
    assert all(isinstance(event, Progress) and event.done <= event.total for event in events)
    assert events[-1].done == events[-1].total
