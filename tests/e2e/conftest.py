"""The real model of the demo, fetched once per machine, and runs of the command line."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from falcon_unlearn.cli.main import main
from falcon_unlearn.demo.weights import CACHE_VARIABLE, OWN_COPY_VARIABLE, smollm2_folder
from falcon_unlearn.errors import PrerequisiteError

KEPT_VARIABLES = {CACHE_VARIABLE, OWN_COPY_VARIABLE}


class Outcome(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct."""
    try:
        return smollm2_folder()
    except PrerequisiteError as error:
        pytest.skip(f"the weights of SmolLM2 cannot be had here: {error.message}")


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """Take away settings that the developer's shell may hold."""
    removed = {n: v for n, v in os.environ.items() if n.startswith("FALCON_") and n not in KEPT_VARIABLES}
    for name in removed:
        del os.environ[name]
    yield
    os.environ.update(removed)
