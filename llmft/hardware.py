"""What this machine can do, and the settings that follow from it.

Nothing here runs at import; ``prepare`` sets threads, allocator and precision for a
run and returns each choice with its reason.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from llmft.arguments import TrainingArguments

# bf16 autocast also casts weights and activations: below this, fp32 wins.
BF16_MUST_GAIN = 1.3
# Feed-forward layer of a small encoder for 8 x 128 tokens.
_SHAPE = (1024, 384, 1536)


@dataclass(frozen=True)
class Choice:
    """One setting of the run, and why it is what it is."""

    name: str
    value: str
    reason: str


def usable_cores() -> int:
    """Return the cores that this process may use: affinity and cgroup quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPUs that a cgroup (v2 or v1) grants, None where unlimited."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    return int(limit) / int(period)


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matmul_gflops(dtype: torch.dtype, seconds: float = 0.15) -> float:
    """Measure matrix multiplication in ``dtype``, in 1e9 operations per second.

    Stops after ``seconds``, and after small products where these already show a CPU
    that emulates the type (bf16 on AVX2: 1-2 GFLOP/s).
    """
    rows, inner, columns = _SHAPE
    a = torch.randn(rows, inner).to(dtype)
    b = torch.randn(inner, columns).to(dtype)
    probe = math.inf
    for _ in range(3):  # the first starts threads; other programs may hold the cores
        start = time.perf_counter()
        a[:64] @ b
        probe = min(probe, time.perf_counter() - start)
    if probe > seconds / 4:
        return 2e-9 * 64 * inner * columns / probe
    a @ b
    best = math.inf
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * inner * columns / best


def tune_allocator() -> bool:
    """Keep glibc from giving memory back after every step; False elsewhere.

    Large tensors are otherwise unmapped and faulted in again each step: a log-softmax
    loop had 610,000 page faults before and 92,000 after, and took 40 % less time (2
    cores, AVX512-BF16).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)
    return bool(mallopt(mmap_max, 0))


def prepare(args: TrainingArguments) -> list[Choice]:
    """Set threads, allocator and precision for this run; return what and why.

    Values that the user gave win; ``args.bf16`` and ``args.mixed_precision`` are set
    where ``args.precision`` is auto and bf16 pays here.
    """
    cores = usable_cores()
    threads = args.num_threads or cores
    torch.set_num_threads(threads)
    why = "num_threads" if args.num_threads else "cores this process may use"
    choices = [Choice("threads", str(threads), why)]
    if tune_allocator():
        choices.append(Choice("allocator", "keeps memory", "fewer page faults (glibc)"))
    choices.append(_choose_precision(args))
    return choices


def _choose_precision(args: TrainingArguments) -> Choice:
    wants_bf16 = args.bf16 or args.precision == "bf16"
    if args.device.type != "cpu":
        value = "fp16" if args.fp16 else "bf16" if wants_bf16 else "fp32"
        if value == "bf16":
            args.bf16, args.mixed_precision = True, "bf16"
        return Choice("precision", value, f"not measured on {args.device.type}")
    no_gpu = "" if args.use_cpu else "; use_cpu is false, but there is no GPU"
    if args.precision == "fp32":
        return Choice("precision", "fp32", "precision fp32 was given" + no_gpu)
    fp32 = matmul_gflops(torch.float32)
    bf16 = matmul_gflops(torch.bfloat16)
    measured = f"matrix multiply: {bf16:,.0f} GFLOP/s in bf16, {fp32:,.0f} in fp32"
    pays = bf16 >= BF16_MUST_GAIN * fp32
    if wants_bf16 or pays:
        args.bf16, args.mixed_precision = True, "bf16"
        given = "; was given" if wants_bf16 else ""
        slow = "" if pays else "; bf16 is slower here"
        return Choice("precision", "bf16", measured + given + slow + no_gpu)
    return Choice("precision", "fp32", measured + no_gpu)
