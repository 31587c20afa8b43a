"""Failures that a user can act on, each with an exit code and a next step.

Exit codes: 1 unexpected, 2 usage, configuration or data, 3 missing prerequisite, 4 failed audit gate,
5 lost process of a distributed job, 130 interrupted.
The command line turns these into words (`cli/failures.py`); no other place prints them.
"""

from __future__ import annotations


class FalconError(Exception):
    """State what went wrong and, in `hint`, what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FalconError):
    """Report a command line or recipe that asks for something impossible."""

    exit_code = 2


class DataError(FalconError):
    """Report forget, retain or evaluation data that cannot be used."""

    exit_code = 2


class ModelError(FalconError):
    """Report a model whose structure, files or numbers cannot be used."""

    exit_code = 2


class NumericalError(FalconError):
    """Report a non-finite or degenerate number; nothing is written after it."""

    exit_code = 2


class PrerequisiteError(FalconError):
    """Report something the machine lacks: an optional package, disk space, memory or network."""

    exit_code = 3


class GateError(FalconError):
    """Report a result that misses a limit the user set, for use in continuous integration."""

    exit_code = 4


class PeerError(FalconError):
    """Report that another process of a distributed job failed or was lost."""

    exit_code = 5
