"""What follows for a run from the machine alone: threads, and the allocator.

Precision and attention are found by trying, see ``train.fast_path``.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmft.config.choice import Choice
from llmft.config.fields import TrainingArguments
from llmft.machine import detect, waiting
from llmft.machine.detect import Machine

# They decide in which order and how precisely numbers add up: a resume with others does
# not go on to the same bytes.
OF_SUMS = ("threads", "batch", "precision", "attention", "layers")


def choose_threads(machine: Machine, given: int | None) -> Choice:
    """Choose the threads of torch: one for each whole core."""
    if given:
        return Choice("threads", str(given), "num_threads was given")
    m = machine
    reason = "the cores that this process may use"
    if m.physical_cores < m.cores:
        reason = f"whole cores; {m.cores} with both threads of each gain nothing"
    elif m.quota and m.quota < m.logical_cores:
        reason = f"the cgroup grants {m.quota:g} of {m.logical_cores} cores"
    asked = m.variables.get("OMP_NUM_THREADS", str(m.physical_cores))
    if asked.isdigit() and int(asked) != m.physical_cores:
        reason += f"; OMP_NUM_THREADS is {asked}, which --num_threads {asked} follows"
    return Choice("threads", str(m.physical_cores), reason)


def prepare_machine(args: TrainingArguments) -> list[Choice]:
    """Set torch's threads and the allocator for this run; return what and why."""
    if args.device.type != "cpu":
        return []
    machine = detect.detect()
    threads = choose_threads(machine, args.num_threads)
    torch.set_num_threads(int(threads.value))
    choices = [threads, waiting.choice()]
    if machine.busy:
        held = f"{machine.load:.1f} of {machine.logical_cores} cores"
        said = f"other programs keep {held}: this run is slower, what it tries not kept"
        choices.append(Choice("machine", "busy", said))
    if not args.use_cpu:
        choices.append(Choice("device", "cpu", "use_cpu is false, but there is no GPU"))
    if tune_allocator():
        choices.append(Choice("allocator", "keeps memory", "fewer page faults (glibc)"))
    return choices


def choices_of(checkpoint: Any) -> dict[str, str]:
    """Return what the run chose that goes on from ``checkpoint``, by name."""
    if not checkpoint:
        return {}
    try:
        text = (Path(checkpoint).parent.parent / "run.json").read_text("utf-8")
        found = json.loads(text)["choices"]
        return {name: found[name]["value"] for name in OF_SUMS if name in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def compared(choice: Choice, before: Mapping[str, str]) -> Choice:
    """Return the choice of a resumed run, which says where it is the one of before.

    Of another one, ``train.agreement`` warns.
    """
    if before.get(choice.name) == choice.value:
        return replace(choice, reason="as before the resume")
    return choice


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


def release_memory() -> bool:
    """Give free memory of the heap back, which ``tune_allocator`` keeps; once a while.

    Before batches of other sizes: the gaps that the last ones left do not fit them.
    """
    try:
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    except (OSError, AttributeError):
        return False
