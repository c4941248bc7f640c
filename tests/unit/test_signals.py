"""When Ctrl-C and SIGTERM are raised, and what a second one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmft.signals import (
    Terminated,
    interruptible,
    postponed,
    stopped_by,
    terminable,
)

ROOT = Path(__file__).parents[2]


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.001)


def test_a_signal_waits_for_the_end_of_what_is_postponed():
    seen = []

    def body():
        with terminable(), postponed():
            with interruptible():
                seen.append("a")
            send()
            send()
            with postponed():
                seen.append(stopped_by())
            seen.append("b")

    with pytest.raises(Terminated):
        body()
    assert seen == ["a", Terminated, "b"]


@pytest.mark.parametrize("when", ["before", "inside"])
def test_what_is_interruptible_raises_it(when):
    seen = []

    def step():
        with interruptible():
            seen.append("inside")
            send()
            seen.append("never")

    def body():
        with terminable(), postponed():
            if when == "before":
                send()
            with pytest.raises(Terminated):
                step()
            send()  # again postponed
            seen.append("after")

    with pytest.raises(Terminated):
        body()
    assert seen == ["inside"] * (when == "inside") + ["after"]


def test_nothing_is_postponed_without_handlers():
    with pytest.raises(KeyboardInterrupt), postponed(), interruptible():
        send(signal.SIGINT)


def test_a_second_ctrl_c_of_a_notebook_interrupts_what_is_postponed():
    seen = []

    def body():
        with terminable(), postponed():
            send(signal.SIGINT)
            send(signal.SIGINT)  # the same one
            time.sleep(0.25)
            seen.append("first")
            send(signal.SIGINT)
            seen.append("second")

    with pytest.raises(KeyboardInterrupt):
        body()
    assert seen == ["first"]


PROGRAM = """
import sys, time
from llmft.process import run_command
from llmft.signals import postponed
def main(argv):
    try:
        print("ready", flush=True)
        {wait}
    finally:
        time.sleep(30)
        print("cleaned up", flush=True)
sys.exit(run_command(main, []))
"""


@pytest.mark.parametrize(
    "wait", ["time.sleep(30)", "\n        with postponed(): time.sleep(30)"]
)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_leaves_at_once(wait, first):
    """Whether the first is being cleaned up after, or still waits."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(wait=wait)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.05)
        running.send_signal(first)
        time.sleep(0.3)
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(5) == 130
        assert running.stderr.read().endswith("llmft: interrupted\n")
        assert running.stdout.read() == ""
