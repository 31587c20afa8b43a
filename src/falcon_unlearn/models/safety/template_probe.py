"""Render a chat template in a process of its own. Run as a script; imports nothing of this package.

Reads a JSON document from standard input: template, conversations, limits. Writes one: lengths, or a refusal.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """Accept the tag that transformers adds, and keep what it encloses."""

    tags = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Any) -> Any:
        """Parse up to the end tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def limit(seconds: int, num_bytes: int) -> None:
    """Bound processor time and memory, where the platform can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def refuse(message: str) -> None:
    """Stand in for the function that templates call to refuse a conversation."""
    raise TemplateError(message)


def render_all(request: dict[str, Any]) -> dict[str, Any]:
    """Render every conversation and return the lengths, -1 where the template refuses a conversation."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: form
    template = environment.from_string(request["template"])
    lengths = []
    for messages in request["conversations"]:
        for prompt in (False, True):
            try:
                text = template.render(
                    messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
                )
            except SecurityError as error:
                return {"refused": str(error)}
            except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
                lengths.append(-1)
            else:
                lengths.append(len(text))
    return {"lengths": lengths}


if __name__ == "__main__":
    content = json.loads(sys.stdin.read())
    limit(content["seconds"], content["bytes"])
    try:
        answer = render_all(content)
    except TemplateError as error:
        answer = {"refused": str(error)}
    except (MemoryError, RecursionError) as error:
        answer = {"refused": type(error).__name__}
    print(json.dumps(answer))
