from __future__ import annotations

import pytest
import torch

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import ModelError, UsageError
from falcon_unlearn.models.access import load_model
from falcon_unlearn.pipeline import evaluate_model, unlearn
from falcon_unlearn.pipeline.evaluating import swap_to_original
from falcon_unlearn.results import EvaluationResult
from pico import pico_model
from pico_files import save_pico


def metrics(result: EvaluationResult, name: str) -> dict[str, float]:
    return {s.name: metric.value for s in result.sets for metric in s.metrics if metric.name == name}


@pytest.fixture(scope="module")
def unlearned(bench, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluate") / "out"
    unlearn(bench.bare(train={"learning_rate": 0.02}), output, typed_recipe="", command="")
    return output


def test_the_same_model_has_no_divergence_from_itself(bench):
    result = evaluate_model(bench.recipe(), original=bench.path("model"))
    found = metrics(result, "divergence")
    assert set(found) >= {"d", "rest (held out)", "trees (held out)"}
    assert all(abs(value) < 1e-9 for value in found.values())
    assert result.label == "single" and result.model == "model"


def test_without_an_original_divergence_is_skipped_with_a_reason(bench):
    result = evaluate_model(bench.recipe())
    assert not metrics(result, "divergence")
    assert any(text.startswith("d, divergence") for text in result.skipped)
    assert set(metrics(result, "perplexity")) >= {"p", "rest (held out)"}


def test_divergence_from_the_original_is_the_kl_of_the_two_models(bench, unlearned):
    result = evaluate_model(bench.recipe(model={"name": str(unlearned)}), original=bench.path("model"))
    old, new = (
        load_model(ModelSettings(name=str(n)), torch.device("cpu")) for n in (bench.path("model"), unlearned)
    )
    import json
    from pathlib import Path

    total, count = 0.0, 0
    for line in Path(bench.path("prose.jsonl")).read_text().splitlines():
        ids = torch.tensor([old.tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.no_grad():
            p, q = (m.model(ids).logits[0, :-1].double().log_softmax(-1) for m in (old, new))
        forward = float((p.exp() * (p - q)).sum())
        total, count = total + forward, count + len(p)
    assert metrics(result, "divergence")["d"] == pytest.approx(total / count, rel=1e-3)
    assert total / count > 1e-4


def test_evaluating_twice_gives_the_same_record(bench):
    first, again = (evaluate_model(bench.recipe()) for _ in range(2))
    assert first.model_dump(exclude={"seconds"}) == again.model_dump(exclude={"seconds"})


def test_swapping_holds_only_what_differs_and_restores_the_same_tensors(bench, unlearned):
    loaded = load_model(ModelSettings(name=str(unlearned)), torch.device("cpu"))
    addresses = {name: p.data_ptr() for name, p in loaded.model.named_parameters()}
    swap = swap_to_original(loaded, load_model(ModelSettings(name=bench.path("model")), torch.device("cpu")))
    with swap():
        inside = dict(loaded.model.named_parameters())
        moved = [name for name, p in inside.items() if p.data_ptr() != addresses[name]]
        assert moved == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]
        assert all(
            torch.equal(p, dict(pico_model("llama").named_parameters())[name]) for name, p in inside.items()
        )
    assert {name: p.data_ptr() for name, p in loaded.model.named_parameters()} == addresses


def test_an_original_with_other_tensors_is_refused(bench, tmp_path):
    other = save_pico(tmp_path / "other", model=pico_model("llama", intermediate_size=64))
    with pytest.raises(ModelError, match="'other' has other tensors"):
        evaluate_model(bench.recipe(), original=str(other))


def test_a_missing_original_is_a_usage_error(bench):
    with pytest.raises(UsageError, match="does not exist"):
        evaluate_model(bench.recipe(), original="./nope")
