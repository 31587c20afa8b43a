"""A manifest closes a run folder; without a valid one the run is not finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from falcon_unlearn.errors import DataError
from falcon_unlearn.runs import MANIFEST, sha256_file, verify_manifest, write_manifest


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "falcon").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "falcon" / "training.json").write_text("{}")
    (folder / "falcon" / "report.html").write_text("<p>")
    write_manifest(
        folder,
        fingerprint="abc",
        base_model="/home/someone/models/tiny",
        base_weights_sha256={"model.safetensors": "0"},
        command=f"falcon-unlearn run m --output {Path.home()}/x",
        seconds={"train": 1.5},
    )
    return folder


def test_it_names_every_file_but_itself_and_the_report(finished):
    manifest = verify_manifest(finished)
    assert [f.name for f in manifest.files] == ["falcon/training.json", "model.safetensors"]
    assert manifest.files[1].sha256 == sha256_file(finished / "model.safetensors")
    assert manifest.files[1].bytes == 7
    assert (manifest.fingerprint, manifest.base_model) == ("abc", "tiny")
    assert str(Path.home()) + "/" not in (finished / MANIFEST).read_text()


def test_extra_files_and_a_new_report_are_allowed(finished):
    (finished / "falcon" / "report.html").write_text("<b>")
    (finished / "notes.txt").touch()
    verify_manifest(finished)


def test_changed_truncated_and_missing_files_are_named(finished):
    (finished / "model.safetensors").write_bytes(b"Weights")
    (finished / "falcon" / "training.json").unlink()
    with pytest.raises(DataError) as caught:
        verify_manifest(finished)
    assert "falcon/training.json is missing" in caught.value.message
    assert "model.safetensors was changed" in caught.value.message
    (finished / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(DataError, match=r"model\.safetensors was changed"):
        verify_manifest(finished)


@pytest.mark.parametrize("damage", ["", "{", "{}", "[]", "\xff", '{"version": 1, "unknown": 2}'])
def test_a_damaged_manifest_is_told(finished, damage):
    (finished / MANIFEST).write_text(damage)
    with pytest.raises(DataError, match="damaged or from another version"):
        verify_manifest(finished)


def test_a_truncated_manifest_is_told(finished):
    text = (finished / MANIFEST).read_text()
    for length in range(0, len(text) - 2, 37):
        (finished / MANIFEST).write_text(text[:length])
        with pytest.raises(DataError):
            verify_manifest(finished)


def test_a_folder_without_one_is_not_a_finished_run(tmp_path):
    with pytest.raises(DataError, match="not a finished run"):
        verify_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "falcon/../../outside"])
def test_a_manifest_cannot_point_outside(finished, name):
    (finished.parent / "outside").write_text("x")
    values = json.loads((finished / MANIFEST).read_text())
    values["files"][0]["name"] = name
    (finished / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match="outside the folder"):
        verify_manifest(finished)
