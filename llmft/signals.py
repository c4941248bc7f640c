"""Ctrl-C and SIGTERM: an exception at once, or later where work has to be whole.

A training is ``postponed``: a signal is noted, and raised where nothing is lost by it,
in what is ``interruptible``. A second Ctrl-C ends a command at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llmft.console import logger

# Seconds in which a Ctrl-C is the same one still: a terminal sends it to a program and
# to what started it (uv, docker, timeout), which hands it on.
_SAME = 0.2


class Terminated(BaseException):
    """Raised in the main thread when the process receives SIGTERM."""


class _Stop:
    """The handler of Ctrl-C and SIGTERM: raises, and remembers that it did.

    The exception can get lost: Python ignores it inside ``__del__`` and in what runs
    after a fork. Or another one follows, of the data loader whose workers end too.

    Args:
        at_once: whether a second Ctrl-C ends the process.
    """

    def __init__(self, at_once: bool) -> None:
        self.process, self.at_once = os.getpid(), at_once
        self.received: type[BaseException] | None = None
        self.postponed, self.when = False, 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker, forked with this handler
            os._exit(128 + number)
        now, interrupts = time.monotonic(), number == signal.SIGINT
        if self.received is None:
            # What workers say from now on, and ``__del__`` about them, is noise of
            # ending.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sys.unraisablehook = lambda lost: logger.debug(
                "ignored: %r", lost.exc_value
            )
            self.received = KeyboardInterrupt if interrupts else Terminated
            self.when = now
        elif interrupts and now < self.when + _SAME:
            return
        elif interrupts and self.at_once:
            # Python's own streams may be what it interrupts.
            os.write(2, b"\nllmft: interrupted\n")
            os._exit(128 + number)
        elif interrupts:
            raise KeyboardInterrupt
        if not self.postponed:
            raise self.received


def of_workers(process: int) -> Callable[[Any, Any, Any], None]:
    """Return an excepthook that lets a worker whose parent has gone end in silence."""

    def hook(kind: Any, error: Any, trace: Any) -> None:
        if os.getpid() == process or not issubclass(kind, ConnectionError):
            sys.__excepthook__(kind, error, trace)

    return hook


@contextmanager
def terminable(at_once: bool = False) -> Iterator[None]:
    """Turn SIGTERM into ``Terminated`` inside the block; restore the handlers after.

    Ctrl-C stays ``KeyboardInterrupt``; a second one ends the process where ``at_once``.
    Whatever other exception ends the block after one of these signals becomes that of
    the signal. Only the main thread may handle signals; in another, nothing is changed.
    """
    if not in_main_thread():
        yield
        return
    stop, ours = _Stop(at_once), [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        ours.append(signal.SIGINT)
    previous = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    except Exception as error:
        if stop.received:
            raise stop.received from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def in_main_thread() -> bool:
    """Return whether this is the thread that handles signals."""
    return threading.current_thread() is threading.main_thread()


def _stop() -> _Stop | None:
    stop = signal.getsignal(signal.SIGTERM)
    return stop if isinstance(stop, _Stop) and in_main_thread() else None


def stopped_by() -> type[BaseException] | None:
    """Return what Ctrl-C or SIGTERM has raised in this ``terminable`` block, if any."""
    stop = signal.getsignal(signal.SIGTERM)
    return stop.received if isinstance(stop, _Stop) else None


def signal_of(error: BaseException) -> str | None:
    """Return what stopped the work, Ctrl-C or SIGTERM; None where an error did.

    ``error`` may have come after the signal, of the data loader for one.
    """
    names = {KeyboardInterrupt: "Ctrl-C", Terminated: "SIGTERM"}
    return names.get(stopped_by() or type(error))


@contextmanager
def postponed() -> Iterator[None]:
    """Note signals in the block; what is ``interruptible`` in it raises them.

    So does its end, unless it is inside of another one.
    """
    stop = _stop()
    if stop is None:
        yield
        return
    before, stop.postponed = stop.postponed, True
    try:
        yield
    finally:
        stop.postponed = before
    if stop.received and not before:
        raise stop.received


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise a signal that was noted, and in the block also those to come."""
    stop = _stop()
    if stop is None or not stop.postponed:
        yield
        return
    if stop.received:
        raise stop.received
    try:
        stop.postponed = False
        yield
    finally:
        stop.postponed = True
