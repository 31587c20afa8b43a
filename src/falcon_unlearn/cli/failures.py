"""The one boundary where exceptions become words and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from falcon_unlearn.cli.invocation import repeat_command
from falcon_unlearn.cli.ranks import last_words, lost_ranks, may_tell, settle_exit_code
from falcon_unlearn.cli.terminal import clean
from falcon_unlearn.errors import FalconError, PrerequisiteError
from falcon_unlearn.stopping import Terminated, stop_signals

UNEXPECTED = 1
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143
_MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
"""What the allocators of torch, CUDA and the system say; they have no common class."""
_LESS_MEMORY = (
    "Set --memory-limit, which streams the model, or lower train.batch_size or data.maximum_tokens."
)


def run_guarded(action: Callable[[], object]) -> int:
    """Run `action` and return an exit code; every failure is told on standard error.

    `FALCON_DEBUG=1` adds the traceback.
    """
    try:
        with stop_signals(), last_words():
            action()
            sys.stdout.flush()
    except FalconError as error:
        _tell(error.message, "\n".join(filter(None, [error.hint, _go_on(error)])) or None)
        return _finish(error, error.exit_code)
    except KeyboardInterrupt as error:
        _tell("interrupted; nothing half-written was left", _go_on(error))
        return _finish(error, INTERRUPTED)
    except Terminated as error:
        _tell(lost_ranks() or "terminated; nothing half-written was left", _go_on(error))
        return _finish(error, TERMINATED)
    except BrokenPipeError:
        # The reader of our output went away; Python would complain again while flushing at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else (UNEXPECTED if error.code else 0)
    except Exception as error:  # noqa: BLE001  # the boundary: anything else is a defect, told in one line
        if _lacks_memory(error):
            _tell(f"out of memory: {_short(error)}", _go_on(error) or _LESS_MEMORY)
            return _finish(error, PrerequisiteError.exit_code)
        name, text = type(error).__name__, _short(error)
        hint = (
            None
            if _debugging()
            else "FALCON_DEBUG=1 shows where it happened; `falcon-unlearn env` helps a report."
        )
        _tell(f"unexpected failure: {name}: {text}" if text else f"unexpected failure: {name}", hint)
        return _finish(error, UNEXPECTED)
    return 0


def report_usage(error: Exception, arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Tell that the arguments could not be parsed, and which help says how."""
    command = next((argument for argument in arguments if argument in commands), None)
    text = " ".join(str(error).split())
    hint = f"falcon-unlearn {command} --help" if command else "falcon-unlearn --help"
    if "Unused Tokens" in text:
        hint += "; a flag takes one value, repeat it for more: --forget A.jsonl --forget B.jsonl"
    _tell(text, hint)
    if _debugging():
        traceback.print_exception(error)


def _tell(message: str, hint: str | None) -> None:
    if not may_tell():
        return
    lines = clean(message).splitlines() or [""]
    # Standard error may be closed; there is nobody left to tell then.
    with contextlib.suppress(OSError, ValueError):
        print("error: " + "\n       ".join(lines), file=sys.stderr)
        if hint:
            print(" hint: " + "\n       ".join(clean(hint).splitlines()), file=sys.stderr)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _lacks_memory(error: Exception) -> bool:
    told = isinstance(error, (RuntimeError, OSError)) and any(
        words in str(error).lower() for words in _MEMORY_WORDS
    )
    return told or isinstance(error, MemoryError)


def _go_on(error: BaseException) -> str | None:
    """Say how to go on where a failure left finished work, which is what notes of exceptions tell."""
    notes: list[str] = getattr(error, "__notes__", [])
    return "; ".join(notes) + f"; go on with: {repeat_command()}" if notes else None


def _finish(error: BaseException, code: int) -> int:
    if _debugging():
        traceback.print_exception(error)
    return settle_exit_code(code)


def _debugging() -> bool:
    return os.environ.get("FALCON_DEBUG", "") not in {"", "0"}
