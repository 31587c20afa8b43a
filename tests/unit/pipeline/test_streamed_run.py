"""Runs that keep the model on disk do what runs in memory do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from falcon_unlearn.config.memory import parse_memory as limit_bytes
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.models import access
from falcon_unlearn.pipeline import (
    evaluate_model,
    export_model,
    plan_run,
    planning,
    run_pipeline,
    select_layer,
    unlearn,
    workspace,
)
from falcon_unlearn.pipeline.pace import Pace
from falcon_unlearn.runs import verify_manifest
from pico import pico_model, pico_tokenizer
from pico_files import save_pico

STREAMED = {"runtime": {"streaming": "always"}}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FALCON_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _steady_speed(monkeypatch):
    monkeypatch.setattr(planning, "measure_pace", lambda *_: Pace(1e11, 5e10, 1e-9, 0.0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return the bench's model as a folder of many small shards."""
    return save_pico(
        tmp_path_factory.mktemp("shards") / "m", model=pico_model("llama"), max_shard_size="40KB"
    )


def read_all(folder):
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def no_whole_model(monkeypatch):
    monkeypatch.setattr(workspace, "load_model", lambda *_: pytest.fail("the whole model was loaded"))
    monkeypatch.setattr(access, "_load_folder", lambda *_: pytest.fail("the whole model was loaded"))


def test_a_streamed_run_writes_the_tensors_and_scores_of_a_run_in_memory(
    bench, shards, tmp_path, monkeypatch
):
    changes = {"model": {"name": str(shards)}}
    expected = run_pipeline(bench.recipe(**changes), tmp_path / "a", typed_recipe="", command="")
    no_whole_model(monkeypatch)
    events = []
    streamed = run_pipeline(
        bench.recipe(**changes, **STREAMED), tmp_path / "b", typed_recipe="", command="", sink=events.append
    )
    before, after = read_all(tmp_path / "a"), read_all(tmp_path / "b")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=1e-7)
    source = read_all(shards)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, source[name])}
    assert changed == set(streamed.training.trained) == set(expected.training.trained)
    assert streamed.training.flops == expected.training.flops
    for theirs, ours in ((expected.before, streamed.before), (expected.after, streamed.after)):
        found = {(s.name, m.name): m for s in ours.sets for m in s.metrics}
        wanted = {
            (s.name, m.name): m
            for s in theirs.sets
            for m in s.metrics
            if s.kind not in ("generation", "answer")
        }
        assert found.keys() == wanted.keys()
        for key, metric in wanted.items():
            assert found[key].value == pytest.approx(metric.value, rel=1e-4, abs=1e-5), key
        assert any("g: the model is read block by block" in reason for reason in ours.skipped)
    words = [getattr(event, "message", "") for event in events]
    assert any("on disk" in text for text in words) and any("cached states of" in text for text in words)
    verify_manifest(tmp_path / "b")
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("estimator", ["pooled", "gradient_conflict"])
def test_a_streamed_selection_chooses_as_in_memory(estimator, bench, monkeypatch):
    settings = {
        "selection": {"layer": None, "estimator": estimator, "resamples": 20, "candidates": [0.2, 0.6]}
    }
    expected = select_layer(bench.bare(**settings))
    no_whole_model(monkeypatch)
    found = select_layer(bench.bare(**settings, **STREAMED))
    assert found.layer == expected.layer
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-4, abs=1e-6)


def test_a_limit_that_the_whole_model_exceeds_streams_it(bench, monkeypatch):
    # Libraries are most of what a pico model takes; without them the limit decides by the model.
    from falcon_unlearn.pipeline import costs

    monkeypatch.setattr(costs, "LIBRARY_BYTES", 0)
    # The saving is what lies above and below the window, so the batch must not hide it.
    small = {"train": {"batch_size": 1, "layers": 1}}
    resident = plan_run(bench.bare(**small, runtime={"streaming": "never"})).memory_bytes["total"]
    streamed = plan_run(bench.bare(**small, **STREAMED)).memory_bytes["total"]
    assert streamed < resident
    limit = small | {"runtime": {"memory_limit": f"{(streamed + resident) / 2 / 1024:.3f}KiB"}}
    plan = plan_run(bench.bare(**limit))
    assert plan.streamed and plan.memory_bytes["total"] == streamed
    no_whole_model(monkeypatch)
    assert select_layer(bench.bare(**limit, selection={"layer": None, "resamples": 20})).layer in range(6)
    roomy = plan_run(bench.bare(runtime={"memory_limit": "64GiB"}))
    assert not roomy.streamed


def test_a_limit_that_cannot_be_met_is_refused_with_figures(bench, tmp_path):
    recipe = bench.bare(runtime={"memory_limit": "100MB"})
    for act in (plan_run, select_layer, lambda r: unlearn(r, tmp_path / "o", typed_recipe="", command="")):
        with pytest.raises(
            PrerequisiteError, match=r"needs .* of memory .*95\.4 MiB are the memory limit"
        ) as caught:
            act(recipe)
        assert "train.layers" in caught.value.hint
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "npo"}, "outputs of the whole model"),
        ({"data": {"retain": [{"name": "own", "path": "self"}]}}, "sampled from the whole model"),
    ],
    ids=["method", "self"],
)
def test_what_needs_the_whole_model_is_refused_when_it_must_be_streamed(changes, words, bench):
    with pytest.raises(PrerequisiteError, match=words):
        plan_run(bench.bare(**changes, **STREAMED))


def test_predictions_of_work_and_disk_are_exact(bench, shards, tmp_path):
    recipe = bench.bare(model={"name": str(shards)}, **STREAMED)
    plan = plan_run(recipe)
    summary = unlearn(recipe, tmp_path / "out", typed_recipe="", command="")
    assert plan.disk_bytes["store"] == summary.training.cache_bytes
    assert plan.flops["cache"] == summary.training.flops["cache"]
    assert plan.flops["train"] == summary.training.flops["train"]
    rewritten = [
        p
        for p in (tmp_path / "out").glob("*.safetensors")
        if p.read_bytes() != (shards / p.name).read_bytes()
    ]
    assert plan.disk_bytes["written"] == sum(path.stat().st_size for path in rewritten)


def test_a_delta_run_exports_to_what_a_whole_run_writes(bench, shards, tmp_path):
    recipe = bench.bare(model={"name": str(shards)})
    unlearn(recipe, tmp_path / "whole", typed_recipe="", command="")
    delta = bench.bare(model={"name": str(shards)}, runtime={"output_format": "delta"})
    plan = plan_run(delta)
    unlearn(delta, tmp_path / "delta", typed_recipe="", command="")
    verify_manifest(tmp_path / "delta")
    weights = [path.name for path in (tmp_path / "delta").glob("*.safetensors")]
    assert weights == ["delta.safetensors"]
    size = (tmp_path / "delta" / "delta.safetensors").stat().st_size
    assert plan.disk_bytes["written"] == pytest.approx(size, abs=1024)
    result = export_model(tmp_path / "delta", ModelSettings(name=str(shards)), tmp_path / "out")
    assert result.weight_files["rewritten"] == 2
    whole, out = read_all(tmp_path / "whole"), read_all(tmp_path / "out")
    assert whole.keys() == out.keys() and all(torch.equal(whole[name], out[name]) for name in whole)
    verify_manifest(tmp_path / "out")
    assert (tmp_path / "out" / "falcon" / "report.html").is_file()


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from falcon_unlearn.activations.sweep import cache_states_by_block
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.models.streaming import build_engine, load_streamed
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
dtypes = dict(compute_dtype=torch.float32, store_dtype=torch.float32)
options = dict(batch_tokens=256, progress=lambda *_: None)
def engine_of(folder):
    return build_engine(load_streamed(ModelSettings(name=folder), torch.device("cpu")))
# The libraries, and one block, are what every depth has in common.
engine = engine_of(sys.argv[1])
with engine.resident(0, 0):
    engine.run(torch.zeros(1, 8, engine.structure.hidden_size), 0, 0)
peaks = [peak()]
for folder in sys.argv[1:]:
    engine = engine_of(folder)
    corpora, last = {"a": [list(range(4, 60))] * 4}, engine.structure.num_blocks - 1
    states = Path(folder) / "states"
    states.mkdir()
    cache_states_by_block(engine, corpora, (last - 1, last), states, **dtypes, **options)
    peaks.append(peak())
print(*peaks)
"""


def test_peak_memory_does_not_grow_with_the_number_of_blocks(tmp_path):
    folders = [
        save_pico(
            tmp_path / f"m{blocks}",
            model=pico_model(
                "llama", num_hidden_layers=blocks, hidden_size=384, intermediate_size=1024, head_dim=96
            ),
            max_shard_size="16MB",
        )
        for blocks in (4, 32)
    ]
    # A peak never falls, so the deep model comes last: what it adds is what depth costs.
    command = [sys.executable, "-c", MEMORY_SCRIPT, *map(str, folders)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, shallow, deep = map(int, done.stdout.split())
    # 28 more blocks are 170 MB of weights; the peak may move by a few allocations only.
    assert sum(path.stat().st_size for path in folders[1].glob("*.safetensors")) > 180e6
    assert deep - shallow < 16e6
    assert deep - before < 64e6


@pytest.mark.parametrize(
    ("shape", "total", "limit"),
    [
        # Published shapes of 70B and 405B models (hidden, MLP, blocks, heads, key-value heads, vocabulary).
        ((8192, 28672, 80, 64, 8, 128256), 70.6e9, "40GiB"),
        ((16384, 53248, 126, 128, 8, 128256), 405.9e9, "120GiB"),
    ],
    ids=["70B", "405B"],
)
def test_plans_of_large_shapes_on_paper(shape, total, limit, bench, tmp_path):
    import transformers

    hidden, intermediate, blocks, heads, groups, vocabulary = shape
    folder = tmp_path / "big"
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    index = {"weight_map": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "none.safetensors").write_bytes(b"")
    layer = round(0.22 * blocks)
    recipe = bench.bare(
        model={"name": str(folder)},
        selection={"layer": layer},
        train={"layers": 3, "compute_dtype": "bfloat16"},
        runtime={"memory_limit": limit, "copies": "copy"},
    )
    plan = plan_run(recipe)
    block = (
        2 * hidden * hidden + 2 * hidden * hidden * groups // heads + 3 * hidden * intermediate + 2 * hidden
    )
    assert plan.total_parameters == pytest.approx(total, rel=0.01)
    assert plan.streamed and plan.memory_bytes["total"] < limit_bytes(limit)
    assert plan.trained_parameters == 3 * hidden * intermediate
    # Three blocks in bfloat16; masters, gradients and moments of what is trained: this is what any run needs.
    floor = 3 * block * 2 + 18 * plan.trained_parameters
    assert floor < plan.memory_bytes["total"] < 1.3 * floor
    tokens = plan.disk_bytes["store"] / (2 * hidden * 2)
    assert plan.flops["cache"] == 2 * tokens * block * (layer + 1)
    assert plan.disk_bytes["output"] == 2 * plan.total_parameters


def test_a_streamed_evaluation_compares_with_an_original_on_disk(bench, shards, tmp_path, monkeypatch):
    unlearn(bench.bare(model={"name": str(shards)}), tmp_path / "out", typed_recipe="", command="")
    sets = bench.recipe().model_dump(mode="json")["evaluation"]["sets"][2:]
    changes = {"model": {"name": str(tmp_path / "out")}, "evaluation": {"sets": sets}}
    expected = evaluate_model(bench.bare(**changes), original=str(shards))
    no_whole_model(monkeypatch)
    found = evaluate_model(bench.bare(**changes, **STREAMED), original=str(shards))
    values = [[m.value for s in result.sets for m in s.metrics] for result in (found, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6) and min(values[1]) > 0
