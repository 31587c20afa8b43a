"""Try a chat template before it is used: it is a program of the model's author.

transformers renders it in Jinja's sandbox, which stops access to Python but bounds neither time nor memory.
So it is first rendered for a few conversations in a process of its own, with limits on both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from falcon_unlearn.errors import ModelError

MAXIMUM_TEMPLATE = 2**18
"""Characters; published templates stay below 20 000."""
MAXIMUM_EXPANSION = 2**20
"""Characters that a template may write around the texts it is given."""
PROCESSOR_SECONDS = 5
WALL_SECONDS = 60
MEMORY_BYTES = 2**29
_HINT = "Set data.chat_template to false, or give another model: this template is damaged or hostile."
_SHORT = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."})
_CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    _SHORT,
    (*_SHORT, *_SHORT),
    ({"role": "system", "content": "Be brief."}, *_SHORT),
    ({"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "word " * 400}),
)


def check_template(template: Any) -> None:
    """Render a chat template under limits; each distinct one is tried once per process.

    Raises:
        ModelError: It is too long, takes too long, needs too much memory or reaches for Python.
    """
    if isinstance(template, str):
        _check(template)


@lru_cache(maxsize=64)
def _check(template: str) -> None:
    if len(template) > MAXIMUM_TEMPLATE:
        raise _refusal(f"has {len(template)} characters, at most {MAXIMUM_TEMPLATE} are read")
    request = {
        "template": template,
        "conversations": _CONVERSATIONS,
        "seconds": PROCESSOR_SECONDS,
        "bytes": MEMORY_BYTES,
    }
    script = Path(__file__).with_name("template_probe.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refusal(f"did not end within {WALL_SECONDS} seconds") from error
    if done.returncode != 0:
        raise _refusal(
            f"did not end within {PROCESSOR_SECONDS} seconds of processor time and "
            f"{MEMORY_BYTES >> 20} MiB of memory (exit code {done.returncode})"
        )
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise _refusal(f"was stopped: {answer['refused'][:200]}")
    check_length(max(answer["lengths"]), 0)


def check_length(rendered: int, given: int) -> None:
    """Refuse a rendering that is out of proportion to the `given` characters.

    Raises:
        ModelError: The template multiplies its input.
    """
    if rendered > MAXIMUM_EXPANSION + 16 * given:
        raise _refusal(f"makes {rendered} characters of {given}")


def _refusal(problem: str) -> ModelError:
    return ModelError(f"model: the tokenizer's chat template {problem}", hint=_HINT)
