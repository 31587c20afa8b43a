"""Where values come from, which of them wins, and which YAML is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.config.load import load_recipe, resolved_yaml
from falcon_unlearn.config.train import TrainSettings
from falcon_unlearn.config.yaml_text import MAXIMUM_BYTES, dump_yaml, parse_yaml
from falcon_unlearn.errors import UsageError

BASE = """\
model: {name: org/base}
data:
  forget: [{name: a, path: org/forget}]
  retain: [{name: b, path: self}]
"""
NOTHING: dict[str, str] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, extra: str = "", flags=None, sets=(), environment=NOTHING):
    return load_recipe(write(folder, BASE + extra), flags or {}, list(sets), environment=environment)[0]


@given(
    recipe=st.none() | st.integers(1, 999),
    environment=st.none() | st.integers(1, 999),
    flag=st.none() | st.integers(1, 999),
    as_set=st.booleans(),
)
def test_flag_beats_environment_beats_recipe_beats_default(
    tmp_path_factory, recipe, environment, flag, as_set
):
    folder = tmp_path_factory.mktemp("precedence")
    text = "" if recipe is None else f"train: {{steps: {recipe}}}\n"
    variables = {} if environment is None else {"FALCON_TRAIN__STEPS": str(environment)}
    flags = {"train.steps": flag} if flag is not None and not as_set else {}
    sets = [f"train.steps={flag}"] if flag is not None and as_set else []
    loaded = load(folder, text, flags, sets, variables)
    expected = next(v for v in (flag, environment, recipe, TrainSettings().steps) if v is not None)
    assert loaded.train.steps == expected


@given(st.floats(min_value=1e-12, max_value=1e12, allow_nan=False))
def test_every_spelling_of_a_number_is_a_number(value):
    for spelling in (f"{value!r}", f"{value:.16e}", f"{value:.16E}", f"{value:g}"):
        parsed = parse_yaml(spelling, "text")
        assert isinstance(parsed, int | float)
        assert math.isclose(parsed, value, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("010", 10),
        ("0x1f", 31),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        # YAML 1.1 reads these five as false, true, ninety minutes, a date and a thousand.
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("train[:400]", "train[:400]"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{text: body}", {"text": "body"}),
        ("'1e-5'", "1e-5"),
    ],
)
def test_values_follow_the_core_rules_of_yaml_1_2(text, value):
    parsed = parse_yaml(text, "text")
    assert parsed == value
    assert type(parsed) is type(value)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain_values)
def test_written_yaml_reads_back_unchanged(value):
    assert parse_yaml(dump_yaml(value), "text") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: !!python/object/apply:os.system ['touch marker']", "tag"),
        ("seed: !!int '3'", "tag"),
        ("task: !function module.name", "tag"),
        ("a: &x [1]\nb: *x", "alias"),
        ("<<: {seed: 1}", "unknown key"),
        ("seed: 1\nseed: 1", "line 6, column 1: the key 'seed' occurs twice"),
        ("train:\n  steps: 1\n  steps: 2", "line 7, column 3: the key 'steps' occurs twice"),
        ("x: " + "[" * 5000, "nested deeper"),
        ("x: " + "{a: " * 5000, "nested deeper"),
        ("seed: " + "9" * 5000, "digits"),
        ("1: 2", "not a name"),
        ("? [a]\n: 1", "not a name"),
        ("---\nseed: 1\n---\nseed: 2", "document"),
        ("a: b: c", "line 5"),
        ("a: 'open", "line"),
        ("a: \x07", "not readable"),
        ('seed: "\\ud800"', "not valid Unicode"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="(?s)" + words):
        load(tmp_path, text)
    assert not Path("marker").exists()


def test_alias_bomb_is_refused_before_it_is_expanded(tmp_path):
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{new}: &{new} [" + ", ".join([f"*{old}"] * 9) + "]")
    with pytest.raises(UsageError, match="alias"):
        load(tmp_path, "\n".join(lines))


def test_text_encodings(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_recipe(path, {}, [], environment={})[0].model.name == "org/base"
    for data in (BASE.encode("utf-16"), BASE.replace("base", "b\xe4se").encode("latin-1")):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="not UTF-8"):
            load_recipe(path, {}, [], environment={})


def test_recipe_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="no such recipe file"):
        load_recipe(tmp_path / "missing.yaml", {}, [], environment={})
    with pytest.raises(UsageError, match="is a folder"):
        load_recipe(tmp_path, {}, [], environment={})
    with pytest.raises(UsageError, match="cannot read"):
        load_recipe(tmp_path / ("x" * 300), {}, [], environment={})
    with pytest.raises(UsageError, match="cannot read"):
        load_recipe("a\0b", {}, [], environment={})
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAXIMUM_BYTES + 1))
    with pytest.raises(UsageError, match="bytes"):
        load_recipe(large, {}, [], environment={})
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1\n")
    with pytest.raises(UsageError, match="mapping"):
        load_recipe(listed, {}, [], environment={})


@given(st.text(max_size=60))
def test_any_text_gives_a_recipe_or_a_usage_error(text):
    for action in (
        lambda: parse_yaml(text, "text"),
        lambda: load_recipe(None, {"model.name": text}, [text], environment={"FALCON_SEED": text}),
    ):
        try:
            action()
        except UsageError as error:
            assert error.message


def test_set_reaches_groups_lists_and_mappings(tmp_path):
    recipe = load(
        tmp_path,
        "selection: {candidates: [0.1, 0.9]}\n",
        sets=[
            "data.forget.0.weight=2.5",
            "data.forget.1={name: c, path: org/more}",
            "data.forget.1.columns.text=body",
            "train.modules=[mlp.down, mlp.up]",
            "selection.candidates.1=0.5",
            "train.learning_rate=1e-3",
            "selection.layer=",
        ],
    )
    assert recipe.data.forget[0].weight == 2.5
    assert recipe.data.forget[1].columns == {"text": "body"}
    assert recipe.train.modules == ("mlp.down", "mlp.up")
    assert recipe.selection.candidates == (0.1, 0.5)
    assert recipe.train.learning_rate == 1e-3
    assert recipe.selection.layer is None


@pytest.mark.parametrize(
    "argument", ["train.steps", "=3", "a..b=1", ".a=1", "a.=1", "a b=1", "model.__class__.x y=1"]
)
def test_malformed_set_arguments(tmp_path, argument):
    with pytest.raises(UsageError, match=r"key\.path=value"):
        load(tmp_path, sets=[argument])


def test_set_beyond_the_end_of_a_list_and_through_a_value(tmp_path):
    with pytest.raises(UsageError, match="list of 1 items"):
        load(tmp_path, sets=["data.forget.5.weight=1"])
    with pytest.raises(UsageError, match="list of 1 items"):
        load(tmp_path, sets=["data.forget.first.weight=1"])
    with pytest.raises(UsageError, match="not a group"):
        load(tmp_path, "seed: 3\n", sets=["seed.x=1"])


def test_contradicting_flags_are_refused_and_equal_ones_are_not(tmp_path):
    with pytest.raises(UsageError, match=r"seed: given as 1 \(command line\) and as 2 \(--set\)"):
        load(tmp_path, flags={"seed": 1}, sets=["seed=2"])
    with pytest.raises(UsageError, match="given as 1 "):
        load(tmp_path, sets=["train.steps=1", "train.steps=2"])
    assert load(tmp_path, flags={"seed": 1}, sets=["seed=1"]).seed == 1


def test_flags_replace_whole_lists_and_none_means_not_given(tmp_path):
    flags = {"data": {"forget": [{"name": "z", "path": "org/z"}]}, "seed": None, "method": None}
    recipe = load(tmp_path, "seed: 5\n", flags, ["data.forget.0.weight=3"])
    assert [(c.name, c.weight) for c in recipe.data.forget] == [("z", 3.0)]
    assert recipe.seed == 5


def test_environment_variables_of_other_programs_are_ignored(tmp_path):
    others = {
        "FALCON_CLIENT_ID": "x",
        "FALCON_DEBUG": "1",
        "FALCON_": "",
        "OTHER_SEED": "3",
        "FALCON_HOME": "[",
    }
    assert load(tmp_path, environment=others) == load(tmp_path)
    recipe = load(tmp_path, environment={"FALCON_SEED": "7", "FALCON_DATA__FORGET__0__WEIGHT": "2"})
    assert (recipe.seed, recipe.data.forget[0].weight) == (7, 2.0)


def test_process_environment_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("FALCON_SEED", "11")
    assert load_recipe(write(tmp_path, BASE), {}, [])[0].seed == 11


def test_relative_paths_are_taken_from_the_folder_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("recipes")
    (folder / "model").mkdir(parents=True)
    (folder / "texts").mkdir()
    (folder / "texts" / "corpus").touch()
    (folder / "r.yaml").write_text(
        """
model: {name: model}
data:
  forget: [{name: a, path: texts/corpus}, {name: b, path: missing.jsonl}, {name: c, path: ../up}]
  retain: [{name: d, path: org/dataset}, {name: e, path: self}]
evaluation:
  sets: [{name: q, role: forget, kind: choice, path: questions}]
"""
    )
    recipe, _ = load_recipe(folder / "r.yaml", {}, [], environment={})
    assert recipe.model.name == "recipes/model"
    assert [c.path for c in recipe.data.forget] == ["recipes/texts/corpus", "recipes/missing.jsonl", "up"]
    assert [c.path for c in recipe.data.retain] == ["org/dataset", "self"]
    assert recipe.evaluation.sets[0].path == "recipes/questions"


def test_paths_of_flags_are_taken_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/mine.jsonl").touch()
    path = write(Path("recipes"), BASE)
    flags = {"data.forget": [{"name": "a", "path": Path("mine.jsonl")}]}
    recipe, _ = load_recipe(
        path, flags, ["data.retain.0.path=other.txt"], environment={"FALCON_MODEL__NAME": "m"}
    )
    assert recipe.data.forget[0].path == "mine.jsonl"
    assert recipe.data.retain[0].path == "other.txt"
    assert recipe.model.name == "m"


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = BASE.replace("org/forget", "~/f.jsonl")
    recipe, _ = load_recipe(write(tmp_path, text), {}, [], environment={})
    assert recipe.data.forget[0].path == str(tmp_path / "f.jsonl")


def test_typed_recipe_keeps_the_file_and_lists_the_changes(tmp_path):
    text = "# mine\n" + BASE
    _, typed = load_recipe(
        write(tmp_path, text), {"seed": 3}, ["train.steps=5"], environment={"FALCON_SEED": "2"}
    )
    assert typed.startswith(text)
    for words in (
        "seed: 2  (environment variable FALCON_SEED)",
        "seed: 3  (command line)",
        "train.steps: 5  (--set)",
    ):
        assert words in typed
    assert parse_yaml(typed, "typed") == parse_yaml(text, "text")


def test_typed_recipe_without_a_file_is_a_recipe(tmp_path):
    flags = {
        "model.name": "org/m",
        "data.forget": [{"name": "a", "path": "f.jsonl"}],
        "data.retain": [{"name": "b", "path": "self"}],
    }
    recipe, typed = load_recipe(None, flags, ["train.steps=5"], environment={})
    assert load_recipe(None, parse_yaml(typed, "typed"), [], environment={})[0] == recipe


def test_published_recipes_hold_no_absolute_path_and_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    secret = "hf_" + "a1B2" * 8
    text = f"# {tmp_path}/home/notes {secret}\n" + BASE.replace("org/forget", f"{tmp_path}/private/f.jsonl")
    flags = {"model.name": f"{tmp_path}/models/mine"}
    recipe, typed = load_recipe(write(tmp_path, text), flags, [], environment={})
    for published in (typed, resolved_yaml(recipe)):
        assert str(tmp_path) not in published
        assert secret not in published
        assert "f.jsonl" in published
    assert "mine" in typed
    assert f"{tmp_path}/models/mine" in resolved_yaml(recipe, public=False)


def test_resolved_recipe_gives_the_same_recipe(tmp_path):
    recipe = load(
        tmp_path, "train: {learning_rate: 1.5e-7, modules: [mlp.up]}\n", sets=["data.forget.0.limit=3"]
    )
    again, _ = load_recipe(write(tmp_path, resolved_yaml(recipe)), {}, [], environment={})
    assert again == recipe
