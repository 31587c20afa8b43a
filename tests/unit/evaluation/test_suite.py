from __future__ import annotations

import contextlib
import json

import pytest
import torch

from falcon_unlearn.config.evaluation import EvaluationSetSettings, EvaluationSettings
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.measures import HeldOutCorpus
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.evaluation.suite import evaluate
from falcon_unlearn.events import Progress
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.results import EvaluationResult, comparison_rows
from pico import pico_model, pico_tokenizer

FACTS = [("gold", "Au"), ("iron", "Fe"), ("lead", "Pb"), ("tin", "Sn"), ("zinc", "Zn")]


def _save(folder, name, role, kind, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return EvaluationSetSettings(name=name, role=role, kind=kind, path=str(path))


def _settings(folder, **changes):
    options = [symbol for _, symbol in FACTS[:4]]
    questions = [
        {"id": f"{name}-{wording}", "cluster": name, "question": f"{wording} {name} is", "options": options,
         "answer": number % 4}
        for number, (name, _) in enumerate(FACTS)
        for wording in ("The symbol of", "The sign of")
    ]  # fmt: skip
    prompts = [{"prompt": f"Symbol of {name}:", "answer": symbol} for name, symbol in FACTS]
    texts = [{"text": f"This is text number {number} about nothing much."} for number in range(6)]
    sets = (
        _save(folder, "symbols", "forget", "choice", questions),
        _save(folder, "free", "forget", "generation", prompts),
        _save(folder, "prose", "general", "perplexity", texts),
        _save(folder, "drift", "retain", "divergence", texts),
    )
    return EvaluationSettings(**({"sets": sets, "batch_tokens": 512, "sample_generations": 2} | changes))


def _held_out(tokenizer):
    answers = []
    for name, symbol in FACTS:
        head, tail = tokenizer(f"{name}?")["input_ids"], tokenizer(f" {symbol}")["input_ids"] + [2]
        mask = (False,) * len(head) + (True,) * len(tail)
        answers.append(EncodedExample(tuple(head + tail), mask, "", False))
    plain = [tuple(tokenizer(f"Text {number} here.")["input_ids"]) for number in range(4)]
    texts = tuple(EncodedExample(ids, (True,) * len(ids), "", False) for ids in plain)
    return [HeldOutCorpus("elements", "forget", tuple(answers)), HeldOutCorpus("other", "retain", texts)]


def _metrics(result):
    return {(s.name, m.name): m for s in result.sets for m in s.metrics}


def _run(folder, model, label="before", original=None, settings=None, **more):
    tokenizer = pico_tokenizer()
    return evaluate(
        model, tokenizer, settings or _settings(folder), held_out=_held_out(tokenizer), label=label,
        model_name="pico", seed=3, original=original, **more,
    )  # fmt: skip


def test_every_metric_is_there_with_an_interval(tmp_path):
    events = []
    result = _run(tmp_path, pico_model("llama"), sink=events.append)
    metrics = _metrics(result)
    assert set(metrics) == {
        *(("symbols", name) for name in ("accuracy_text", "accuracy_letter", "letter_mass")),
        ("free", "accuracy_generation"),
        *(("prose", name) for name in ("perplexity", "perplexity_word", "perplexity_byte")),
        ("drift", "divergence"),
        *(
            (f"{corpus} (held out)", name)
            for corpus in ("elements", "other")
            for name in ("perplexity", "perplexity_word", "perplexity_byte", "divergence")
        ),
        *(
            ("elements (held out)", name)
            for name in ("answer_probability", "rouge_l", "extraction_strength", "exact_memorisation")
        ),
    }
    for metric in metrics.values():
        assert metric.low <= metric.value <= metric.high
        assert metric.num_items > 0
    assert metrics["symbols", "accuracy_text"].chance == 0.25
    assert metrics["symbols", "accuracy_text"].interval == "bootstrap"
    assert metrics["drift", "divergence"].value == metrics["drift", "divergence"].high == 0.0
    assert [len(s.samples) for s in result.sets if s.kind in ("generation", "answer")] == [2, 2]
    assert any("other (held out), answer_probability" in reason for reason in result.skipped)
    assert all(isinstance(event, Progress) and event.stage == "evaluate" for event in events)
    assert events[-1].done == events[-1].total == len(result.sets)
    assert EvaluationResult.model_validate_json(result.model_dump_json()) == result


def test_a_change_is_measured_against_the_original_weights(tmp_path):
    model = pico_model("gemma3")
    weight = model.model.layers[2].mlp.down_proj.weight
    kept = weight.detach().clone()
    before = _run(tmp_path, model)
    with torch.no_grad():
        weight.mul_(-2.0)
    changed = weight.detach().clone()

    @contextlib.contextmanager
    def original():
        with torch.no_grad():
            weight.copy_(kept)
        try:
            yield
        finally:
            with torch.no_grad():
                weight.copy_(changed)

    after = _run(tmp_path, model, label="after", original=original)
    assert torch.equal(weight, changed)
    metrics = _metrics(after)
    assert metrics["drift", "divergence"].low > 0.01
    assert metrics["elements (held out)", "divergence"].desired == "higher"
    assert metrics["prose", "perplexity"].value != _metrics(before)["prose", "perplexity"].value
    assert len(comparison_rows(before, after)) == len(metrics)


def test_the_same_seed_gives_the_same_record(tmp_path):
    records = []
    for _ in range(2):
        torch.manual_seed(len(records))
        result = _run(tmp_path, pico_model("qwen2"))
        records.append(result.model_dump(exclude={"seconds"}))
    assert records[0] == records[1]


def test_without_an_original_the_divergence_is_skipped_with_a_reason(tmp_path):
    result = _run(tmp_path, pico_model("llama"), label="single")
    assert not [metric for metric in _metrics(result) if metric[1] == "divergence"]
    assert sum("divergence: there is no original" in reason for reason in result.skipped) == 3


def test_switches_are_honoured_and_recorded(tmp_path):
    settings = _settings(tmp_path, letter=False, held_out=False)
    result = _run(tmp_path, pico_model("llama"), settings=settings)
    names = {name for _, name in _metrics(result)}
    assert not names & {"accuracy_letter", "letter_mass", "answer_probability"}
    assert any("evaluation.letter is false" in reason for reason in result.skipped)
    assert any("evaluation.held_out is false" in reason for reason in result.skipped)


def test_dropout_is_off_while_measuring_and_the_mode_comes_back(tmp_path):
    model = pico_model("gpt_neox", hidden_dropout=0.5).train()
    loaded = load_sets(_settings(tmp_path), seed=3)
    first = _run(tmp_path, model, sets=loaded)
    assert model.training
    assert _metrics(first) == _metrics(_run(tmp_path, model.eval(), sets=loaded))
    assert not model.training


def test_the_mode_comes_back_after_a_failure(tmp_path):
    model = pico_model("llama").train()
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"question": "x" * 300, "options": ["a", "b"], "answer": 0}), encoding="utf-8")
    entry = EvaluationSetSettings(name="long", role="forget", kind="choice", path=str(path))
    with pytest.raises(DataError, match="at most 256"):
        evaluate(
            model, pico_tokenizer(), EvaluationSettings(sets=(entry,)), label="single", model_name="m", seed=0
        )
    assert model.training
