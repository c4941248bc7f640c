"""How fast this machine multiplies and reads memory: measured, then kept.

Together under a second, once per machine, thread count and version of torch; the
figures are in the cache folder.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llmft.machine.detect import Machine
from llmft.machine.trial import keep, recall

# rows x inner x columns: the feed-forward layers of MiniLM and of SmolLM2-135M for
# batches of 8 x 128 tokens.
SHAPES = ((1024, 384, 1536), (1024, 576, 1536))
_SECONDS = 0.12


@dataclass(frozen=True)
class Measurement:
    """Speeds of this machine.

    Attributes:
        fp32_gflops, bf16_gflops: matrix multiplication, 1e9 operations per second.
        bandwidth_gb_s: of copying memory, read and written bytes together.
        busy: other programs held the cores meanwhile: take the figures with care.
    """

    fp32_gflops: float
    bf16_gflops: float
    bandwidth_gb_s: float
    busy: bool = False


def measure(machine: Machine, threads: int) -> Measurement:
    """Return the speeds with ``threads`` threads.

    Measured figures are kept in the cache folder, but not those of a busy machine.
    torch's thread count is ``threads`` afterwards.
    """
    torch.set_num_threads(threads)
    known = [machine.cpu, machine.features, machine.cores, threads]
    key = ["speeds", torch.__version__, *known]
    with suppress(AttributeError, TypeError):  # none, or damaged
        kept = recall(key)
        if all(isinstance(value, int | float) for value in kept.values()):
            return Measurement(**kept)
    fp32, bf16 = matmul_gflops(torch.float32, torch.bfloat16)
    found = Measurement(
        fp32_gflops=fp32,
        bf16_gflops=bf16,
        bandwidth_gb_s=bandwidth_gb_s(),
        busy=machine.busy,
    )
    keep(key, asdict(found), machine)
    return found


def matmul_gflops(*dtypes: torch.dtype, seconds: float | None = None) -> list[float]:
    """Measure matrix multiplication in each of ``dtypes``, in 1e9 operations a second.

    The geometric mean over ``SHAPES``, of at most ``seconds`` for each shape and type.
    A small product already shows a CPU that emulates a type (bf16 on AVX2: 1-2
    GFLOP/s): large ones are not tried then.
    """
    seconds = _SECONDS if seconds is None else seconds
    logs = [0.0] * len(dtypes)
    for rows, inner, columns in SHAPES:
        operands = [
            (torch.randn(rows, inner).to(t), torch.randn(inner, columns).to(t))
            for t in dtypes
        ]
        # Three, since the first starts threads, and other programs may hold the cores.
        probes = best_seconds([_product(a[:64], b) for a, b in operands], 0.0, least=3)
        slow = [probe > seconds / 4 for probe in probes]
        chosen = [
            _product(a[:64] if emulated else a, b)
            for (a, b), emulated in zip(operands, slow, strict=True)
        ]
        found = best_seconds(chosen, 0.0 if all(slow) else seconds * len(dtypes))
        for i, took in enumerate(found):
            size = 2e-9 * (64 if slow[i] else rows) * inner * columns
            logs[i] += math.log(size / took) / len(SHAPES)
    return [math.exp(x) for x in logs]


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: a @ b


def best_seconds(
    works: Sequence[Callable[[], Any]], seconds: float, least: int = 2
) -> list[float]:
    """Return the fastest run of each of ``works`` within ``seconds`` in all.

    They take turns, so that a pause of the machine hits all alike; at least ``least``.
    """
    best, rounds = [math.inf] * len(works), 0
    deadline = time.perf_counter() + seconds
    while rounds < least or time.perf_counter() < deadline:
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
        rounds += 1
    return best


def bandwidth_gb_s(seconds: float | None = None) -> float:
    """Measure copying of memory, in 1e9 bytes per second, read and written."""
    source = torch.ones(2**25)  # 128 MiB, beyond most caches
    target = torch.ones_like(source)
    size = 2 * source.numel() * source.element_size()
    (took,) = best_seconds([lambda: target.copy_(source)], seconds or _SECONDS)
    return 1e-9 * size / took


def write_seconds(size: int) -> float:
    """Return how long a checkpoint of ``size`` bytes takes: to write, sync and hash.

    Tried with 16 MiB in the folder for temporary files; where these do not fit, or
    there is none, it is taken for 100 MB/s.
    """
    sample, took = os.urandom(2**24), 0.16
    with suppress(OSError), tempfile.TemporaryFile() as file:
        start = time.perf_counter()
        file.write(sample)
        file.flush()
        os.fsync(file.fileno())
        hashlib.sha256(sample)
        took = time.perf_counter() - start
    return took * size / len(sample)
