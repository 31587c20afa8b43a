"""Every command in the README runs as it is printed, in a folder that holds the files it names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from falcon_unlearn.cli.main import build_app
from falcon_unlearn.config.yaml_text import dump_yaml
from pico import pico_model, pico_tokenizer

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?:bash|sh|shell|console)[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_MODEL = {"run", "unlearn", "select", "evaluate", "plan", "validate"}
SOURCE = re.compile(r"^(?:[A-Za-z0-9_-]+=)?(?P<path>.+)$")
NUM_LAYERS = 12
"""Enough for the layers that the README names."""


def code_blocks(text: str) -> list[list[list[str]]]:
    """Return the commands of every shell block, split into words; continued lines are joined."""
    blocks = []
    for match in FENCE.finditer(text):
        lines = match[1].replace("\\\n", " ").splitlines()
        words = [shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines]
        blocks.append([command for command in words if command])
    return blocks


def values_of(flag: str, words: list[str]) -> list[str]:
    """Return what follows every occurrence of `flag`, as the next word or after `=`."""
    after = [words[i + 1] for i, word in enumerate(words[:-1]) if word == flag]
    return after + [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]


BLOCKS = code_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
OURS = [block for block in BLOCKS if any(command[0] == "falcon-unlearn" for command in block)]


def test_the_extractor_finds_commands_and_joins_lines():
    shell = '# note\n$ falcon-unlearn run a/b \\\n  --set x="1 2"\n\nmake demo  # now\n'
    text = f"Words\n```bash\n{shell}```\n```python\nx\n```\n"
    assert code_blocks(text) == [[["falcon-unlearn", "run", "a/b", "--set", "x=1 2"], ["make", "demo"]]]
    assert values_of("--forget", ["--forget", "a=b", "--forget=c"]) == ["a=b", "c"]


def test_the_readme_shows_commands():
    assert len(OURS) >= 1
    assert ["make", "demo"] in [command for block in BLOCKS for command in block]


@pytest.mark.parametrize("target", [c[1] for block in BLOCKS for c in block if c[0] == "make"])
def test_make_targets_exist(target):
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pico_model("llama", num_hidden_layers=NUM_LAYERS).save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


class Workplace:
    """Provide what a command names: models, texts, recipes, finished runs."""

    def __init__(self, model_folder: Path, command) -> None:
        self._model_folder, self._command = model_folder, command

    def prepare(self, words: list[str]) -> None:
        """Create what `words` read and what is not there yet, in the working folder."""
        name, rest = words[1], words[2:]
        if name in WITH_MODEL and rest and not rest[0].startswith("-"):
            self._recipe(rest[0]) if rest[0].endswith((".yaml", ".yml")) else self._model(rest[0])
        for value in values_of("--original", rest):
            self._model(value)
        for value in values_of("--recipe", rest):
            self._recipe(value)
        for role in ("forget", "retain"):
            for value in values_of(f"--{role}", rest):
                self._texts(SOURCE.match(value)["path"], role)
        if name == "report" and not Path(rest[0]).exists():
            self._texts("f.txt", "forget")
            self._texts("r.txt", "retain")
            words = ["run", str(self._model_folder), "--forget", "f.txt", "--retain", "r.txt"]
            assert self._command(*words, "--output", rest[0]).code == 0

    def _model(self, name: str) -> None:
        # A local folder wins over a hub id of the same spelling.
        if not Path(name).exists():
            shutil.copytree(self._model_folder, name)

    def _texts(self, name: str, role: str) -> None:
        if name == "self" or Path(name).exists():
            return
        path = Path(name)
        assert path.suffix in {".jsonl", ".json", ".txt"}, f"the test cannot make {name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [
            f"{role} text number {number}: {'abcdefgh'[number % 8] * 5} {number * 7}." for number in range(40)
        ]
        rows = texts if path.suffix == ".txt" else [json.dumps({"text": text}) for text in texts]
        path.write_text(
            "[" + ",\n".join(rows) + "]" if path.suffix == ".json" else "\n".join(rows), encoding="utf-8"
        )

    def _recipe(self, name: str) -> None:
        """Write a filled-in recipe, also over one that `init` has just made: the reader would fill it in."""
        self._texts("f.txt", "forget")
        self._texts("r.txt", "retain")
        data = {role: [{"name": role, "path": f"{role[0]}.txt"}] for role in ("forget", "retain")}
        tree = {"model": {"name": str(self._model_folder)}, "data": data, "train": {"steps": 4}}
        Path(name).write_text(dump_yaml(tree), encoding="utf-8")


@pytest.mark.parametrize("block", OURS, ids=lambda block: " ".join(block[0][:2]))
def test_the_commands_of_the_readme_run(block, model_folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Only these two are made cheaper than printed.
    monkeypatch.setenv("FALCON_SELECTION__RESAMPLES", "10")
    monkeypatch.setenv("FALCON_DATA__SELF_SAMPLES", "16")
    workplace = Workplace(model_folder, command)
    for words in block:
        if words[0] != "falcon-unlearn":
            continue
        if words[1] == "demo":
            # Run on the real model in test_demo.py; here its flags are checked.
            build_app().parse_args(words[1:], exit_on_error=False, print_error=False)
            continue
        workplace.prepare(words)
        result = command(*words[1:])
        assert result.code == 0, f"{shlex.join(words)}\n{result.err}"
