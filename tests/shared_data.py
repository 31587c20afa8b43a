"""Find the benchmark data that lie beside the project; tests skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("FALCON_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def shared_data(*parts: str) -> Path:
    """Return a file or folder of the benchmark data, or skip the test."""
    path = FOLDER.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"benchmark data {'/'.join(parts)} are not here")
    return path
