"""``llmft doctor``: this machine, what was measured, and what follows for a run."""

from __future__ import annotations

from llmft.config.choice import Choice
from llmft.console import say, table
from llmft.machine import detect, waiting
from llmft.machine.choose import BF16_MUST_GAIN, Given, choose, choose_threads
from llmft.machine.detect import Machine, gib
from llmft.machine.measure import Measurement, measure

LENGTH = 128


def report() -> None:
    """Print the whole table; takes a few seconds."""
    machine = detect.detect()
    threads = int(choose_threads(machine, None).value)
    found = measure(machine, threads, LENGTH)
    say("found\n" + table(_found(machine), ["", ""]))
    how = "disturbed by other programs" if found.busy else "best of a few runs"
    measured = _measured(found) + waiting.rows()
    say(f"\nmeasured ({how})\n" + table(measured, ["", "", ""]))
    choices = choose(machine, found, Given())
    say("\nchosen for training at length 128 (flags override it: --num_threads,")
    say("--precision, --attn_implementation)\n" + table(_rows(choices), ["", "", ""]))
    sampling = choose(machine, found, Given(trains=False))
    say("\nchosen for generate --prompt\n" + table(_rows(sampling), ["", "", ""]))
    missing = detect.warnings(machine)
    say("\nwhat holds this machine back")
    for line in missing or ["nothing that was found"]:
        say(f"  - {line}")


def _found(m: Machine) -> list[tuple[str, str]]:
    cores = f"{m.cores} usable of {m.logical_cores}"
    if m.physical_cores < m.cores:
        cores += f", which are {m.physical_cores} whole ones with several threads each"
    features = ", ".join(m.features) or "none that matter"
    return [
        ("processor", f"{m.cpu} ({m.architecture})"),
        ("cores", cores),
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
            f"numbers of 16 bits; chosen from {BF16_MUST_GAIN} times as fast on",
        ),
        (
            "copy memory",
            f"{m.bandwidth_gb_s:.0f} GB/s",
            "limits how fast text is generated",
        ),
        (
            "attention",
            f"eager {m.eager_ms:.1f} ms, sdpa {m.sdpa_ms:.1f} ms",
            f"two codes for the same; a layer, {m.length} tokens, in training",
        ),
    ]


def _rows(choices: list[Choice]) -> list[tuple[str, str, str]]:
    return [(c.name, c.value, c.reason) for c in choices]
