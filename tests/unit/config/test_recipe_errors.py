"""Every refusal is a sentence: which setting, what came, what is needed, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.config.describe import all_paths, dotted, expectation, fields_of, walk
from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.config.preflight import check_files
from falcon_unlearn.errors import DataError, ModelError, UsageError

FLAGS = {
    "model.name": "org/base",
    "data.forget": [{"name": "a", "path": "org/forget"}],
    "data.retain": [{"name": "b", "path": "self"}],
}


def refusal(*sets: str, flags=FLAGS, environment=None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_recipe(None, flags, list(sets), environment=environment or {})
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.steps=abc", "train.steps: got 'abc' (--set), an integer >= 1 is needed"),
        ("train.steps=0", "train.steps: got 0 (--set), an integer >= 1 is needed"),
        ("train.steps=-5", "train.steps: got -5 (--set), an integer >= 1 is needed"),
        ("train.steps=true", "train.steps: got true (--set), an integer >= 1 is needed"),
        ("train.steps=1.5", "train.steps: got 1.5 (--set), an integer >= 1 is needed"),
        ("train.steps='10'", "train.steps: got '10' (--set), an integer >= 1 is needed"),
        ("train.steps=", "train.steps: got null (--set), an integer >= 1 is needed"),
        ("train.steps=[1]", "train.steps: got [1] (--set), an integer >= 1 is needed"),
        ("train.steps={a: 1}", "train.steps: got {'a': 1} (--set), an integer >= 1 is needed"),
        ("seed=2147483648", "seed: got 2147483648 (--set), an integer >= 0 and <= 2147483647 is needed"),
        (
            "seed=" + "9" * 300,
            "seed: got " + "9" * 57 + "... (--set), an integer >= 0 and <= 2147483647 is needed",
        ),
        (
            "objective.temperature=.nan",
            "objective.temperature: got nan (--set), a finite number > 0 is needed",
        ),
        (
            "objective.temperature=.inf",
            "objective.temperature: got inf (--set), a finite number > 0 is needed",
        ),
        ("objective.temperature=false", "objective.temperature: got false (--set), a number > 0 is needed"),
        ("train.learning_rate=fast", "train.learning_rate: got 'fast' (--set), a number or auto is needed"),
        ("train.learning_rate=true", "train.learning_rate: got true (--set), a number or auto is needed"),
        ("selection.layer=1.0", "selection.layer: got 1.0 (--set), an integer >= 0 or null is needed"),
        ("selection.rule=worst", "selection.rule: got 'worst' (--set), one of earliest_tied, best is needed"),
        (
            "selection.candidates=[0.1]",
            "selection.candidates: got [0.1] (--set), a list of 2 numbers is needed",
        ),
        ("selection.candidates=3", "selection.candidates: got 3 (--set), a list of 2 numbers is needed"),
        ("evaluation.letter=no", "evaluation.letter: got 'no' (--set), true or false is needed"),
        ("train.modules=[a, 3]", "train.modules.1: got 3 (--set), text is needed"),
        ("runtime.device=tpu", "runtime.device: got 'tpu' (--set), auto, cpu, mps, cuda or cuda:N is needed"),
        ("train=5", "train: got 5 (--set), a group of settings is needed"),
        ("data.forget=[]", "data.forget: got [] (--set), a list of 1 or more groups of settings is needed"),
        ("version=2", "version: got 2 (--set), 1 is needed"),
        ("data.forget.0.columns.text=3", "data.forget.0.columns.text: got 3 (--set), text is needed"),
    ],
)
def test_wrong_values(argument, message):
    flags = dict(FLAGS)
    if argument.startswith("data.forget="):
        del flags["data.forget"]
    assert refusal(argument, flags=flags).message == message


def test_a_truth_value_is_no_version():
    assert "version" in refusal("version=true").message


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("train.stepz=1", "train.steps"),
        ("train.learning-rate=1", "train.learning_rate"),
        ("train.batchsize=1", "train.batch_size"),
        ("trian=1", "train"),
        ("steps=1", "train.steps"),
        ("tempereture=1", "objective.temperature"),
        ("data.forget.0.wieght=1", "data.forget.0.weight"),
        ("objective.offset.direction=3", "objective.offset.directions"),
    ],
)
def test_unknown_keys_name_the_nearest_match(argument, suggestion):
    error = refusal(argument)
    assert error.message == f"{argument.split('=')[0]} (--set): unknown key"
    assert error.hint == f"Did you mean {suggestion}?"


def test_an_unknown_key_without_a_neighbour_lists_the_keys():
    error = refusal("runtime.qqqqq=1")
    assert error.hint == "Keys allowed in runtime: " + ", ".join(fields_of(walk(("runtime",))[1])) + "."


@pytest.mark.parametrize("key", ["__import__('os')", "model.__class__", "../x", "train;steps"])
def test_paths_that_are_code_are_just_unknown(key):
    assert "key" in refusal(f"{key}=1").message


def test_required_settings_say_which_flag_gives_them():
    error = refusal(flags={})
    assert [line.split(":")[0] for line in error.message.splitlines()] == [
        "model.name",
        "data.forget",
        "data.retain",
    ]
    for flag in ("MODEL", "--forget", "--retain"):
        assert flag in error.hint
    error = refusal("data.forget.0.name=x", flags={k: v for k, v in FLAGS.items() if k != "data.forget"})
    assert error.message.startswith("data.forget.0.path: missing")


def test_rules_across_settings():
    assert "leaves room for 2 trained blocks" in refusal("selection.layer=1").message
    assert "learning_rate must be positive" in refusal("train.learning_rate=-1").message
    assert "low < high" in refusal("selection.candidates=[0.9, 0.1]").message
    twice = {**FLAGS, "data.forget": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}
    assert refusal(flags=twice).message.startswith("data.forget (command line): the names ['a'] occur twice")
    same = {**FLAGS, "data.retain": [{"name": "b", "path": "org/forget"}]}
    assert "forget and retain name the same source" in refusal(flags=same).message
    swapped = {**FLAGS, "data.forget": [{"name": "a", "path": "self"}]}
    assert "`self` can only be a retain set" in refusal(flags=swapped).message


def test_the_origin_of_a_wrong_value_is_named(tmp_path):
    variable = refusal(environment={"FALCON_TRAIN__STEPS": "many"})
    assert "(environment variable FALCON_TRAIN__STEPS)" in variable.message
    assert (
        "(environment variable FALCON_TRAIN__STEPZ): unknown key"
        in refusal(environment={"FALCON_TRAIN__STEPZ": "1"}).message
    )
    path = tmp_path / "mine.yaml"
    path.write_text("train: {steps: many}")
    with pytest.raises(UsageError, match=r"\(mine\.yaml\)"):
        load_recipe(path, FLAGS, [], environment={})


def test_several_problems_are_told_at_once_unknown_keys_first():
    error = refusal("train.steps=0", "train.batch_size=0", "train.foo=1")
    first, *rest = [line.split(" ")[0] for line in error.message.splitlines()]
    assert (first, set(rest)) == ("train.foo", {"train.batch_size:", "train.steps:"})
    many = refusal(*(f"train.unknown{i}=1" for i in range(30)))
    assert many.message.splitlines()[-1] == "and 22 more problems"


def test_control_characters_in_values_are_escaped():
    assert "\x1b" not in refusal('runtime.device="\\x1b[31mred"').message
    assert "\x1b" not in refusal("train=\"{'\\x1b[31m': 1}\"").message


@given(
    st.sampled_from([p for p in all_paths() if not isinstance(p[-1], int)]),
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text("ab\x1b", max_size=5)
    | st.none()
    | st.lists(st.integers(), max_size=3),
)
def test_any_value_anywhere_is_accepted_or_refused_by_a_sentence_about_it(path, value):
    if path[:2] in {("data", "forget"), ("data", "retain"), ("evaluation", "sets")} and len(path) > 2:
        return
    flags = {k: v for k, v in FLAGS.items() if not k.startswith(dotted(path))}
    if path == ("model",) or path == ("data",):
        return
    try:
        load_recipe(None, {**flags, dotted(path): value}, [], environment={})
    except UsageError as error:
        assert str(path[-1]) in error.message or "train.layers" in error.message
        assert "\x1b" not in error.message
        assert "pydantic" not in error.message


def test_every_setting_can_be_described():
    for path in all_paths():
        known, annotation, metadata = walk(path)
        assert known == path
        words = expectation(annotation, metadata)
        assert "<class" not in words and "typing" not in words, (path, words)


def test_missing_local_files_are_found_before_anything_heavy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.txt").touch()

    def check(model="org/base", forget="there.txt", retain="self", sets=()):
        flags = {
            "model.name": model,
            "data.forget": [{"name": "a", "path": forget}],
            "data.retain": [{"name": "b", "path": retain}],
            "evaluation.sets": [{"name": "q", "role": "forget", "kind": "choice", "path": p} for p in sets],
        }
        check_files(load_recipe(None, flags, [], environment={})[0])

    check()
    check(retain="org/dataset")
    for model in ("./missing", "missing.gguf", str(tmp_path / "missing"), "../missing"):
        with pytest.raises(ModelError, match="no such folder or file"):
            check(model=model)
    with pytest.raises(DataError, match=r"data\.forget\.0\.path: no such file: gone\.jsonl"):
        check(forget="gone.jsonl")
    with pytest.raises(DataError, match=r"(?s)data\.retain\.0\.path.*evaluation\.sets\.0\.path"):
        check(retain="gone.parquet", sets=["questions"])
