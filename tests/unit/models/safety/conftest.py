"""A pico model on disk, and a private copy of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pico_files import save_pico


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    return save_pico(tmp_path_factory.mktemp("pristine") / "pico")


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "pico"))
