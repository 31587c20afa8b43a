"""Progress and tables: readable, bounded in length, and safe against hostile text."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from falcon_unlearn.cli.console import PlainSink, format_seconds, make_console, progress_sink
from falcon_unlearn.cli.tables import (
    BAR_WIDTH,
    interval_bar,
    show_comparison,
    show_plan,
    show_run,
    show_selection,
)
from falcon_unlearn.cli.terminal import clean
from falcon_unlearn.events import Progress, StageStarted, TrainingStepped, ignore_events


class Terminal(io.StringIO):
    """Text that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(show, *records, **keywords) -> str:
    stream = io.StringIO()
    show(*records, make_console(stream), **keywords)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;aGk=\x07x", "x"),
        ("\x9b31mred", "red"),
        ("a\x00b\x07c\x08d\x7fe", "abcde"),
        ("a\rb", "ab"),
        ("a\u202eb\u2066c", "abc"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1bPq\x1b\\x", "x"),
        ("\x1b", ""),
        ("\u4f60\u597d \u00e9 \U0001f600", "\u4f60\u597d \u00e9 \U0001f600"),
    ],
)
def test_escape_sequences_are_removed(text, result):
    assert clean(text) == result


@given(st.text(st.sampled_from("\x1b[]0;m\x07\x9bab\\P\u202e\r\n")))
def test_nothing_that_drives_a_terminal_survives(text):
    assert not set(clean(text)) & set("\x1b\x9b\x07\r\u202e")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 00 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_plain_progress_of_a_long_training_is_short():
    stream, now = io.StringIO(), [0.0]
    sink = PlainSink(stream, clock=lambda: now[0])
    for step in range(1, 1001):
        now[0] += 0.01
        sink(TrainingStepped(step=step, total=1000, metrics={"forget_loss": 1.0, "conflict_share": 0.5}))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "[train] step 1/1000  forget 1.000  conflicts 50%"
    assert lines[5] == "[train] step 500/1000  forget 1.000  conflicts 50%  5.0 s left"
    assert lines[-1].startswith("[train] step 1000/1000")
    assert "left" not in lines[-1]


def test_plain_progress_speaks_up_in_slow_stages():
    stream, now = io.StringIO(), [0.0]
    sink = PlainSink(stream, clock=lambda: now[0])
    sink(StageStarted(stage="cache", message="Caching"))
    for done in range(1, 101):
        now[0] += 1.0
        sink(Progress(stage="cache", done=done, total=100))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["[cache] Caching", "[cache] 5/100"]
    assert lines[-1] == "[cache] 100/100"
    assert len(lines) == 21


def test_the_sink_follows_flags_and_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    with progress_sink(quiet=True, verbose=False, stream=Terminal()) as sink:
        assert sink is ignore_events
    with progress_sink(quiet=False, verbose=False, stream=io.StringIO()) as sink:
        assert isinstance(sink, PlainSink)
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    monkeypatch.setenv("TERM", "dumb")
    with progress_sink(quiet=False, verbose=False, stream=Terminal()) as sink:
        assert isinstance(sink, PlainSink)


@pytest.mark.parametrize("verbose", [False, True])
def test_the_live_display_shows_losses_and_escapes_hostile_text(monkeypatch, emit_everything, verbose):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with progress_sink(quiet=False, verbose=verbose, stream=stream) as sink:
        emit_everything(sink)
    text = stream.getvalue()
    assert "warning: careful now" in text
    assert "by the way" in text
    assert "[train] 4 steps (1 min 01 s)" in text
    assert ("step 3/4" in text) is verbose
    assert "\x1b[31m" not in text
    assert "\x1b]0" not in text


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    stream = Terminal()
    make_console(stream).print("x", style="red")
    assert "\x1b[31m" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    make_console(stream).print("x", style="red")
    assert "\x1b[31m" not in stream.getvalue()


def test_the_comparison_shows_both_values_with_intervals(records):
    text = shown(
        show_comparison, records.evaluation_result("before", 0.9), records.evaluation_result("after", 0.3)
    )
    row = next(line for line in text.splitlines() if "symbols" in line)
    assert row.split() == [
        "symbols", "forget", "accuracy", "text", "(chance", "0.25)", "falls",
        "0.900", "[0.850,", "0.950]", "0.300", "[0.250,", "0.350]",
    ]  # fmt: skip
    assert "stays" in next(line for line in text.splitlines() if "capitals" in line)
    assert text.count("not measured: letters: none") == 1
    assert all(len(line) <= 120 for line in text.splitlines())


def test_markup_in_names_is_text(records):
    before = records.evaluation_result("before", 0.9)
    hostile = before.sets[0].model_copy(update={"name": "[bold red]x[/] :smile:"})
    before = before.model_copy(update={"sets": [hostile]})
    assert "[bold red]x[/] :smile:" in shown(show_comparison, before, before)


def test_the_selection_marks_the_chosen_layer_and_draws_intervals(records):
    lines = shown(show_selection, records.selection_result()).splitlines()
    row = next(line for line in lines if "chosen" in line)
    assert row.split()[0] == "2"
    assert "#" in row and "-" in row and "|" in row
    assert "fixed" in shown(
        show_selection, records.selection_result(fixed=True).model_copy(update={"explanation": ""})
    )


numbers = st.floats(-5, 5)


@given(st.lists(numbers, min_size=3, max_size=3), st.none() | numbers)
def test_interval_bars_keep_their_width_and_order(values, null):
    low, value, high = sorted(values)
    bar = interval_bar(value, low, high, null, -5.0, 5.0)
    assert len(bar) == BAR_WIDTH
    assert set(bar) <= set("#-| ")
    if null is None:
        assert bar.count("#") >= 1
    assert len(interval_bar(value, low, high, null, 1.0, 1.0)) == BAR_WIDTH


def test_plan_and_run_fit_an_ascii_pipe(records):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=stream, width=120)
    show_plan(records.plan_result(), console)
    show_run(records.summary("out"), console)
    show_selection(records.selection_result(), console)
    stream.flush()
    assert b"Trained: 884,736 parameters" in raw.getvalue()
