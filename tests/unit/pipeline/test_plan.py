from __future__ import annotations

import pytest

from falcon_unlearn.errors import DataError, ModelError, PrerequisiteError, UsageError
from falcon_unlearn.models import access
from falcon_unlearn.pipeline import plan_run, planning, unlearn, validate_data
from falcon_unlearn.pipeline.pace import Pace
from pico import FAMILIES, pico_model
from pico_files import save_pico, write_gguf


@pytest.fixture(autouse=True)
def _steady_speed(monkeypatch):
    monkeypatch.setattr(planning, "measure_pace", lambda *_: Pace(1e11, 5e10, 1e-9, 0.0))


@pytest.fixture(scope="module")
def done(bench, tmp_path_factory):
    output = tmp_path_factory.mktemp("plan") / "out"
    return output, unlearn(bench.bare(), output, typed_recipe="", command="")


def test_the_plan_says_what_the_run_does(bench, done):
    output, summary = done
    plan, training = plan_run(bench.bare()), summary.training
    assert (plan.architecture, plan.blocks, plan.hidden_size) == ("llama", 6, 32)
    assert plan.trained == training.trained
    assert plan.trained_parameters == training.trained_parameters == 2 * 32 * 48
    assert plan.total_parameters == training.total_parameters
    assert (plan.layer, plan.window) == (training.window[1], training.window)
    assert (plan.steps, plan.batch_size) == (training.steps_done, 4)
    assert plan.disk_bytes["store"] == training.cache_bytes
    assert plan.flops["cache"] == training.flops["cache"]
    assert plan.flops["train"] == pytest.approx(training.flops["train"], rel=0.2)
    weights = (output / "model.safetensors").stat().st_size
    assert plan.disk_bytes["output"] == pytest.approx(weights, rel=0.05)
    assert plan.model == "model" and not any("/" in row.pattern for row in plan.coverage)


def test_no_weights_are_read(bench, monkeypatch):
    monkeypatch.setattr(access, "_load_folder", lambda *_: pytest.fail("weights were loaded"))
    assert plan_run(bench.bare()).total_parameters > 50_000


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_and_untied_parameters_are_counted_as_in_the_model(family, bench, tmp_path):
    model = pico_model(family)
    save_pico(tmp_path / "m", model=model)
    plan = plan_run(bench.bare(model={"name": str(tmp_path / "m")}))
    assert plan.total_parameters == sum(p.numel() for p in model.parameters())
    assert {row.role for row in plan.coverage} >= {"mlp.down", "attention.output"}


def test_times_follow_from_work_and_speed(bench):
    plan = plan_run(bench.bare())
    expected = {name: work / 1e11 for name, work in plan.flops.items()}
    expected["train"] = plan.flops["train"] / 5e10 + plan.steps * plan.trained_parameters * 1e-9
    assert plan.seconds == pytest.approx(expected)
    assert plan.flops["selection"] == 0
    assert plan.memory_bytes["total"] == sum(v for k, v in plan.memory_bytes.items() if k != "total")


def test_without_a_fixed_layer_the_costliest_candidate_is_planned(bench):
    plan = plan_run(bench.bare(selection={"layer": None, "candidates": [0.2, 0.6]}))
    assert plan.layer is None and plan.window == (3, 4)
    assert plan.flops["selection"] > 0


def test_measurements_are_listed_with_what_is_missing_and_why(bench):
    full = plan_run(bench.recipe())
    for expected in ("c: accuracy_text", "g: accuracy_generation", "p: perplexity", "d: divergence"):
        assert expected in full.metrics
    assert any(text.startswith("rest (held out)") for text in full.metrics) and not full.not_computed
    bare = plan_run(bench.bare())
    assert not bare.metrics and len(bare.not_computed) == 3


def test_retain_self_is_planned_from_the_settings(bench):
    recipe = bench.bare(
        data={"retain": [{"name": "own", "path": "self"}], "self_samples": 10, "self_tokens": 16}
    )
    plan = plan_run(recipe)
    assert plan.disk_bytes["store"] == 2 * (2 * 10 * 16) * 32 * 4
    assert any("self" in text for text in plan.warnings)


def test_a_gguf_file_is_planned(bench, tmp_path):
    path = write_gguf(tmp_path / "pico.gguf", pico_model("llama"))
    plan = plan_run(bench.bare(model={"name": str(path)}))
    assert plan.model == "pico.gguf"
    assert plan.trained == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": {"name": "./nope"}}, UsageError, r"'\./nope' does not exist"),
        ({"model": {"name": "nobody-at-all/nothing-here"}}, PrerequisiteError, "nobody-at-all"),
        ({"selection": {"layer": 9}}, UsageError, "blocks 0 to 5"),
        ({"train": {"modules": ["mlp.sideways"]}}, UsageError, "Roles found|sideways"),
        ({"data": {"retain": [{"name": "rest", "path": "nope.jsonl"}]}}, DataError, r"nope\.jsonl"),
    ],
    ids=["path", "hub", "layer", "role", "data"],
)
def test_the_plan_refuses_what_the_run_would_refuse(changes, error, words, bench):
    with pytest.raises(error, match=words):
        plan_run(bench.bare(**changes))


def test_experts_are_refused_without_weights(bench, tmp_path):
    import transformers

    transformers.MixtralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    ).save_pretrained(tmp_path / "m")  # fmt: skip
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="experts"):
        plan_run(bench.bare(model={"name": str(tmp_path / "m")}))


def test_validate_counts_what_the_run_uses(bench, done):
    _, summary = done
    assert validate_data(bench.bare()) == summary.data


@pytest.mark.parametrize("others", [[], [{"name": "rest", "path": "REST"}]], ids=["alone", "beside"])
def test_validate_counts_the_rest_when_retain_text_is_sampled_later(others, bench):
    retain = [{"name": "own", "path": "self"}, *({**o, "path": bench.path("rest.jsonl")} for o in others)]
    events = []
    counted = validate_data(bench.bare(data={"retain": retain}), sink=events.append)
    full = {corpus.name: corpus for corpus in validate_data(bench.bare()).corpora}
    assert [corpus.name for corpus in counted.corpora] == ["trees", "quiz", *(o["name"] for o in others)]
    assert all(corpus == full[corpus.name] for corpus in counted.corpora)
    assert any("self" in getattr(event, "message", "") for event in events)
