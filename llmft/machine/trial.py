"""Choosing by trying: candidates take turns at the same work, the slow leave early.

What the work is, its caller knows: a step of a training, a token of a text.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llmft.files import read_object, write_json
from llmft.machine.detect import Machine
from llmft.sources import catalog

# A candidate this many times as slow as the best in its first run has lost; that run
# also makes kernels and fills caches, which is seldom half of it.
LOST = 2.0
# A run of so many seconds is not warmed up for: what that changes is little of it.
LONG = 5.0
# What is so near the best is tried once more.
NEAR = 1.15
ROUNDS = 3
_CACHE_VERSION = 5


class Candidate(NamedTuple):
    """Settings that change how fast a model runs, and not what it computes."""

    precision: str  # fp32 or bf16
    attention: str  # eager, sdpa, ...
    compiled: bool = False  # whether its repeated layers are
    packed: bool = False  # whether its linear layers are, to write text


def contest(
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], object],
    budget: Callable[[float], float],
) -> tuple[dict[Candidate, float], bool]:
    """Return the seconds of each candidate that was tried, and whether all were.

    Each runs once to warm up and once in earnest, those near the best again; one alone
    runs once. What raises takes for ever; where all do, the first one's error is
    raised. A precision that has lost with one attention is not tried with others.

    Args:
        candidates: the likely best first: it is tried whatever it costs.
        run: does the work with a candidate's settings.
        budget: how many seconds all of it may take, of the seconds of the best.
    """
    began, seconds = time.perf_counter(), dict[Candidate, float]()
    if len(candidates) == 1:
        run(candidates[0])
        return {candidates[0]: time.perf_counter() - began}, True
    errors: list[Exception] = []

    def timed(candidate: Candidate) -> float:
        start = time.perf_counter()
        try:
            run(candidate)
        except Exception as error:  # whatever a model says that cannot do it
            errors.append(error)
            return math.inf
        return time.perf_counter() - start

    def is_over() -> bool:
        best = min(seconds.values(), default=math.inf)
        spent = time.perf_counter() - began
        return math.isfinite(best) and spent + best > budget(best)

    for candidate in candidates:
        if is_over():
            return seconds, False
        best = min(seconds.values(), default=math.inf)
        alike = [c for c in seconds if c.precision == candidate.precision]
        if any(seconds[c] > LOST * best for c in alike):
            continue
        first = timed(candidate)
        lost = math.isinf(first) or first > LOST * best
        seconds[candidate] = first if lost or first > LONG else timed(candidate)
    if all(map(math.isinf, seconds.values())):
        raise errors[0]
    for _ in range(1, ROUNDS):
        near = [c for c in seconds if seconds[c] <= NEAR * min(seconds.values())]
        if len(near) < 2:
            break
        for candidate in near:
            if is_over():
                return seconds, True
            seconds[candidate] = min(seconds[candidate], timed(candidate))
    return seconds, True


def recall(key: Any) -> dict[str, Any]:
    """Return what ``keep`` stored for ``key``; {} where nothing is."""
    return read_object(_path(key)).get("found", {})


def keep(
    key: Any, found: Mapping[str, Any], machine: Machine, row: Sequence[str] = ()
) -> None:
    """Store in the cache folder what was found for ``key``, which is any JSON.

    Nothing is stored of a busy machine.

    Args:
        row: for ``llmft doctor``: the job, what was chosen for it, and its speed.
    """
    if machine.busy:
        return
    with suppress(OSError):  # a cache that cannot be written costs a trial a run
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {"machine": _name(machine), "row": list(row), "found": dict(found)}
        write_json(path, known)


def rows(machine: Machine) -> list[list[str]]:
    """Return the rows that were kept on this machine, by their jobs."""
    stored = [read_object(path) for path in _folder().glob("trial-*.json")]
    own = [s for s in stored if s.get("machine") == _name(machine)]
    return sorted(s["row"] for s in own if s["row"])


def _name(machine: Machine) -> str:
    return f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.features)}"


def _folder() -> Path:
    return catalog.cache_home() / "hardware"


def _path(key: Any) -> Path:
    text = json.dumps([_CACHE_VERSION, key], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return _folder() / f"trial-{digest}.json"
