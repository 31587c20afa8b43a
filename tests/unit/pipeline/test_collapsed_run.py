"""A whole `falcon-unlearn run`, nothing replaced, whose unlearning breaks what it should keep."""

from __future__ import annotations

import pytest
import yaml

from falcon_unlearn.cli.main import main
from falcon_unlearn.evaluation.collapse import LARGEST_PERPLEXITY
from falcon_unlearn.results import EvaluationResult
from falcon_unlearn.runs import verify_manifest

LOOSE = {"divergence_factor": 1e9, "loss_factor": 1e9}


@pytest.fixture
def ascend(bench, tmp_path, capsys):
    """Ascend the forget loss at a learning rate; give the exit code, the two streams and the output."""

    def run(learning_rate):
        train = {"parameters": "all", "learning_rate": learning_rate, "schedule": "constant", **LOOSE}
        objective = {"retain_multiplier": 0.0}
        recipe = bench.recipe(method="grad_ascent", train=train, objective=objective)
        path, output = tmp_path / "recipe.yaml", tmp_path / "out"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
        code = main(["run", "--recipe", str(path), "--output", str(output), "-q"])
        return code, *capsys.readouterr(), output

    return run


def perplexity(output, label, name):
    text = (output / "falcon" / f"evaluation.{label}.json").read_text(encoding="utf-8")
    sets = {entry.name: entry for entry in EvaluationResult.model_validate_json(text).sets}
    return next(metric.value for metric in sets[name].metrics if metric.name == "perplexity")


def test_a_model_that_collapses_is_written_named_with_its_figures_and_refused(ascend):
    code, out, err, output = ascend(0.3)
    assert code == 4, err
    before, after = (perplexity(output, label, "p") for label in ("before", "after"))
    assert after > LARGEST_PERPLEXITY * before
    assert f"p: perplexity {after:.3g}, {before:.3g} before" in err
    assert "has collapsed" in err and "learning_rate" in err and "Traceback" not in err
    assert not any(line.lstrip().startswith(("c:", "g:", "trees", "quiz")) for line in err.splitlines())
    assert "perplexity" in out
    # Complete, for inspection, and nothing is left to go on with.
    assert (output / "model.safetensors").exists() and (output / "falcon" / "report.html").exists()
    verify_manifest(output)
    assert sorted(path.name for path in output.parent.iterdir()) == ["out", "recipe.yaml"]


def test_the_same_run_with_small_steps_is_accepted(ascend):
    code, _, err, output = ascend(1e-5)
    assert code == 0, err
    assert "collapsed" not in err and (output / "model.safetensors").exists()
