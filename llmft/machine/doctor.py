"""``llmft doctor``: this machine, what was measured, and what follows for a run."""

from __future__ import annotations

import torch

from llmft.config.choice import Choice
from llmft.console import say, table
from llmft.machine import detect, trial, waiting
from llmft.machine.choose import choose_threads
from llmft.machine.detect import Machine, gib
from llmft.machine.measure import Measurement, measure

_TRIED = ["job", "chosen", "speed"]


def report() -> None:
    """Print the whole table; takes a second."""
    machine = detect.detect()
    threads = choose_threads(machine, None)
    torch.set_num_threads(int(threads.value))
    found = measure(machine, torch.get_num_threads())
    say("found\n" + table(_found(machine, threads), ["", ""]))
    how = "disturbed by other programs" if found.busy else "best of a few runs"
    measured = _measured(found) + waiting.rows(machine.busy)
    say(f"\nmeasured ({how})\n" + table(measured, ["", "", ""]))
    tried = trial.rows(machine)
    say("\ntried by runs on this machine, which choose by it\n" + table(tried, _TRIED))
    if not tried:
        say("  nothing yet")
    say("`llmft plan RECIPE.py ...` tries another job, and tells its time and memory")
    missing = detect.warnings(machine)
    say("\nwhat holds this machine back")
    for line in missing or ["nothing that was found"]:
        say(f"  - {line}")


def _found(m: Machine, threads: Choice) -> list[tuple[str, str]]:
    cores = f"{m.cores} usable of {m.logical_cores}"
    if m.physical_cores < m.cores:
        cores += f", which are {m.physical_cores} whole ones with several threads each"
    features = ", ".join(m.features) or "none that matter"
    return [
        ("processor", f"{m.cpu} ({m.architecture})"),
        ("cores", cores),
        ("threads", f"{threads.value} ({threads.reason}); --num_threads changes that"),
        ("instructions", f"{features} (for fast arithmetic)"),
        ("memory", f"{gib(m.memory_bytes)}, {gib(m.available_bytes)} free"),
    ]


def _measured(m: Measurement) -> list[tuple[str, str, str]]:
    return [
        (
            "multiply fp32",
            f"{m.fp32_gflops:,.0f} GFLOP/s",
            "numbers of 32 bits; what training does without bf16",
        ),
        (
            "multiply bf16",
            f"{m.bf16_gflops:,.0f} GFLOP/s",
            "numbers of 16 bits; what training does where it is faster",
        ),
        (
            "copy memory",
            f"{m.bandwidth_gb_s:.0f} GB/s",
            "limits how fast text is generated",
        ),
    ]
