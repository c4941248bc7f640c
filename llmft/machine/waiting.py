"""How torch's threads wait for each other: how that was set, and what it does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from llmft.config.choice import Choice
from llmft.process import WAITING_VARIABLES, spinning

_SECONDS = 0.15
_BUSY = "print(flush=True)\nwhile True: pass"


def choice() -> Choice:
    """Return how threads wait, and who has set it (``process.limit_spinning``)."""
    given = {n: os.environ[n] for n in WAITING_VARIABLES if n in os.environ}
    names = ", ".join(f"{name}={value}" for name, value in given.items())
    if given == spinning():
        said = f"other programs slow the threads less; by {names}, of llmft"
        return Choice("waiting", "spins briefly", said)
    if given:
        return Choice("waiting", "as given", f"{names} was given")
    said = "torch was there before it could be limited; other programs slow it much"
    return Choice("waiting", "spins", said)


def rows(busy: bool) -> list[tuple[str, str, str]]:
    """Measure for 0.3 s, unless ``busy``; return rows for ``llmft doctor``."""
    found = choice()
    row = found.name, found.value, found.reason
    if busy:  # alone is what cannot be measured
        return [row]
    said = "of the speed of a step alone, with a program busy"
    return [("beside others", f"{share_beside_a_program():.0%}", said), row]


def share_beside_a_program(seconds: float = _SECONDS) -> float:
    """Return which part of its speed a training step keeps beside a busy program.

    The step is that of a small layer, since a large product alone hardly waits. The
    program is a process that computes on one thread; each speed is measured for
    ``seconds``.
    """
    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
    inputs = torch.randn(8, 64, 256)

    def step() -> None:
        layer(inputs).sum().backward()

    alone = _speed(step, seconds)
    command = [sys.executable, "-I", "-S", "-c", _BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()  # it has begun
            return _speed(step, seconds) / alone
        finally:
            busy.kill()


def _speed(work: Callable[[], object], seconds: float) -> float:
    """Return how often a second ``work`` is done, on the mean of ``seconds``."""
    work()
    count, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        work()
        count += 1
    return count / took
