"""Chat templates of strangers: stopped in a process of their own, and questions must survive them."""

from __future__ import annotations

import pytest

from falcon_unlearn.errors import DataError, ModelError
from falcon_unlearn.examples import Example
from falcon_unlearn.models.safety import templates
from falcon_unlearn.models.safety.templates import check_length, check_template
from falcon_unlearn.models.text import TextEncoder
from pico import pico_tokenizer

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set ns = namespace(x=messages[0]['content']) %}"
    "{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)
CHATML = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def encode(template: str):
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = template
    encoder = TextEncoder(tokenizer, chat_template=True, maximum_tokens=256)
    return encoder.encode(Example.of_question("Where is it?", "There."))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__'"),
        ("{{ ''.__class__.__base__ }}", "access to attribute '__class__'"),
        ("{{ cycler.__init__.__globals__ }}", "access to attribute '__init__'"),
        ("{{ messages.clear() }}", "stopped"),
        ("{% for x in %}", "stopped"),
        (DOUBLING, "stopped: MemoryError"),
        ("{{ 'a' * 10000000000 }}", "stopped: MemoryError"),
        ("x" * 2**18 + "y", "characters, at most"),
        ("{% for i in range(99999) %}0123456789abcdefghij{% endfor %}", "makes 1999980 characters"),
    ],
)
def test_hostile_templates_are_refused(template, words):
    with pytest.raises(ModelError) as caught:
        encode(template)
    assert words in caught.value.message
    assert "data.chat_template" in caught.value.hint


@pytest.mark.parametrize("name", ["/etc/passwd", "../config.json"])
def test_a_template_reads_no_files(name):
    with pytest.raises(DataError, match="no loader"):
        encode(f"{{% include {name!r} %}}")


@pytest.mark.parametrize("template", [LOOP, "{{ 9**(9**9) }}"], ids=["loop", "power"])
def test_a_template_without_end_is_stopped(template, monkeypatch):
    """Test 7: the second one never returns to Python, so no timer inside the process could stop it."""
    monkeypatch.setattr(templates, "PROCESSOR_SECONDS", 1)
    with pytest.raises(ModelError, match="did not end within 1 seconds of processor time"):
        encode(template)


def test_a_template_that_sleeps_on_the_wall_is_stopped(monkeypatch):
    monkeypatch.setattr(templates, "WALL_SECONDS", 0.5)
    with pytest.raises(ModelError, match=r"did not end within 0\.5 seconds"):
        encode(LOOP + "wall")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "message 1, a question"),
        ("ab", "message 1, a question"),
        (
            CHATML.replace("{{ m['content'] }}", "{{ m['content'][:3] if m['role'] == 'user' else 'x' }}"),
            "message 1",
        ),
    ],
)
def test_a_template_that_loses_the_question_is_refused(template, words):
    with pytest.raises(DataError, match=words) as caught:
        encode(template)
    assert "chat_template" in caught.value.hint


@pytest.mark.parametrize("rewrite", ["| upper", "| trim", "| replace(' ', '\n')"])
def test_harmless_rewriting_is_no_loss(rewrite):
    assert encode(
        CHATML.replace(
            "m['content'] }}", f"m['content'] {rewrite} if m['role'] == 'user' else m['content'] }}}}"
        )
    )


def test_tags_of_transformers_and_loop_controls_are_understood():
    check_template(
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}"
    )
    check_template(
        "{{ strftime_now('%Y') }}{{ tools | tojson(indent=2) if tools }}{{ raise_exception('no') if x }}"
    )


def test_a_template_is_tried_once(monkeypatch):
    check_template(CHATML + "once")
    monkeypatch.setattr(templates.subprocess, "run", lambda *a, **k: pytest.fail("tried again"))
    check_template(CHATML + "once")
    check_template(None)


def test_expansion_is_measured_against_what_was_given():
    check_length(2**20, 0)
    with pytest.raises(ModelError, match="characters of 5"):
        check_length(2**20 + 81, 5)
