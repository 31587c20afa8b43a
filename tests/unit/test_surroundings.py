"""No network in any test, extras that are absent are named, and odd texts are texts."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from pytest_socket import SocketBlockedError

import falcon_unlearn
from falcon_unlearn.audit.attacks import probe_fitting
from falcon_unlearn.bench.wmdp import harness
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.train import LoraSettings
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.errors import PrerequisiteError, UsageError
from falcon_unlearn.examples import Example
from falcon_unlearn.models.adapters import lora_adapters
from falcon_unlearn.models.architectures import find_structure, resolve_trained_parameters
from falcon_unlearn.models.text import TextEncoder
from pico import pico_model, pico_tokenizer

SOURCE = Path(falcon_unlearn.__file__).parent


def test_no_test_reaches_another_machine():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(SocketBlockedError):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def adapters() -> None:
    with lora_adapters(pico_model("llama"), LoraSettings(), 0):
        pytest.fail("adapted without peft")


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("peft", "lora", adapters),
        ("sklearn", "audit", lambda: probe_fitting._sklearn("linear_model")),
        ("lm_eval", "eval", harness.check_installed),
        ("datasets", "data", lambda: load_examples(CorpusSettings(name="c", path="owner/name"))),
        ("pyarrow", "data", lambda: load_examples(CorpusSettings(name="c", path="file.parquet"))),
    ],
)
def test_an_absent_extra_is_named_with_its_installation(package, extra, use, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("file.parquet").write_bytes(b"PAR1")
    pico_model("llama")  # Imported before the package is gone: transformers looks for it too.
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PrerequisiteError) as caught:
        use()
    assert f"falcon-unlearn[{extra}]" in str(caught.value.hint) and caught.value.exit_code == 3


def test_the_package_evaluates_no_text_as_code_and_opens_no_pickle():
    """Also no YAML reader but the strict one and the one for model cards of ours."""
    banned = {"eval", "exec", "compile", "__import__"}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            # Neither under another name nor by its parts.
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in imported}
            assert not roots & {"pickle", "dill", "marshal", "shelve", "joblib"}, (path, imported)
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in banned, (path, node.lineno)
            assert not re.fullmatch(r"(pickle|dill|marshal|shelve|joblib)\..*|os\.system", called), path
            assert not re.fullmatch(r"torch\.(load|save)|yaml\.(load|full_load|unsafe_load)", called), path
            assert "shell" not in {keyword.arg for keyword in node.keywords}, (path, node.lineno)


@pytest.mark.parametrize(
    "role", ["__import__('os')", "model.__class__", "__class__", "mlp.down.__dict__", "..", ""]
)
def test_a_module_name_that_is_code_is_an_unknown_role(role):
    model = pico_model("llama")
    with pytest.raises(UsageError):
        resolve_trained_parameters(model, find_structure(model), [role], [2])


LONG = "word " * 20_000


@pytest.mark.parametrize(
    "text", [LONG, "\U0001f600" * 50, "\u05e9\u05dc\u05d5\u05dd " * 5, "a\u202eb", "x\r\ny"]
)
def test_odd_texts_are_read_cut_and_encoded_whole(tmp_path, text):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"text": text}) + "\r\n", encoding="utf-8")
    loaded = load_examples(CorpusSettings(name="c", path=str(path)))
    assert loaded.examples == (Example.of_text(text),)
    encoded = TextEncoder(pico_tokenizer(), chat_template=False, maximum_tokens=64).encode(loaded.examples[0])
    assert 0 < len(encoded.input_ids) <= 64 and encoded.was_cut == (len(text) > 64)
