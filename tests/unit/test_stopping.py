"""Signals: a step is finished, handlers come back, and a second signal ends the process at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from falcon_unlearn.stopping import SIGNALS, Terminated, current_stop, stop_signals

KINDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize(("number", "kind"), KINDS)
def test_outside_a_step_a_signal_raises_at_once_and_handlers_come_back(number, kind):
    before = handlers()
    with pytest.raises(kind), stop_signals():
        os.kill(os.getpid(), number)
        pytest.fail("went on")
    assert handlers() == before


@pytest.mark.parametrize(("number", "kind"), KINDS)
def test_inside_a_step_a_signal_waits_for_its_end(number, kind):
    finished = []
    with pytest.raises(kind), stop_signals():
        stop = current_stop()
        with stop.postponed():
            os.kill(os.getpid(), number)
            finished.append(stop.number)
        stop.check()
        pytest.fail("went on")
    assert finished == [number]


def test_without_the_command_line_nothing_is_installed():
    before = handlers()
    stop = current_stop()
    with stop.postponed():
        pass
    stop.check()
    assert handlers() == before


def test_in_another_thread_python_allows_no_handlers_and_none_is_needed():
    problems = []

    def work():
        try:
            with stop_signals() as stop:
                stop.check()
        except ValueError as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == []


@pytest.mark.parametrize(
    ("first", "second", "code"), [("SIGTERM", "SIGTERM", 143), ("SIGTERM", "SIGINT", 130)]
)
def test_a_second_signal_ends_the_process_at_once(first, second, code):
    script = (
        "import os, signal\n"
        "from falcon_unlearn.stopping import stop_signals\n"
        "with stop_signals() as stop, stop.postponed():\n"
        f"    os.kill(os.getpid(), signal.{first})\n"
        "    print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), signal.{second})\n"
        "    print('too late', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "still here\n")
