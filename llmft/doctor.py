"""``llmft doctor``: this machine, what was measured, and what follows for a run."""

from __future__ import annotations

from dataclasses import dataclass

from llmft import hardware
from llmft.console import say, table
from llmft.fastpath import Choice, Given, choose, choose_threads
from llmft.hardware import Machine, gib
from llmft.measure import Measurement, measure

LENGTH = 128


@dataclass(frozen=True)
class Job:
    """A default job of a recipe.

    Attributes:
        unit: what its speed counts. operations: that one unit takes, 6 for each
            multiply-add of the forward pass (the formula is in scripts/bench.py).
        units: in the whole job.
        fraction: of the matrix-multiply speed that the job reached where it was
            measured, in fp32.
    """

    recipe: str
    unit: str
    operations: float
    units: int
    fraction: float


JOBS = (
    Job("mlm", "tokens", 78e6, 400_000, 0.55),
    Job("classify", "texts", 30 * 67e6, 10_283, 0.5),
    Job("generate --do_train", "tokens", 820e6, 147_000, 0.55),
)


def report() -> None:
    """Print the whole table; takes a few seconds."""
    machine = hardware.detect()
    threads = int(choose_threads(machine, None).value)
    found = measure(machine, threads, LENGTH)
    say("found\n" + table(_found(machine), ["", ""]))
    say("\nmeasured (best of a few runs)\n" + table(_measured(found), ["", "", ""]))
    choices = choose(machine, found, Given())
    say("\nchosen for training at length 128 (flags: --num_threads, --precision,")
    say("--attn_implementation)\n" + table(_rows(choices), ["", "", ""]))
    sampling = choose(machine, found, Given(trains=False))
    say("\nchosen for generate --prompt\n" + table(_rows(sampling), ["", "", ""]))
    say("\nexpected on the default jobs, by the measured multiplication\n")
    say(table(_expected(found, choices), ["recipe", "speed", "training takes"]))
    missing = hardware.warnings(machine)
    say("\nwhat holds this machine back")
    for line in missing or ["nothing that was found"]:
        say(f"  - {line}")


def _found(m: Machine) -> list[tuple[str, str]]:
    return [
        ("processor", f"{m.cpu} ({m.architecture})"),
        ("cores", f"{m.cores} usable, {m.physical_cores} whole, of {m.logical_cores}"),
        ("features", ", ".join(m.features) or "none that matter"),
        ("memory", f"{gib(m.memory_bytes)}, {gib(m.available_bytes)} free"),
    ]


def _measured(m: Measurement) -> list[tuple[str, str, str]]:
    return [
        ("multiply fp32", f"{m.fp32_gflops:,.0f} GFLOP/s", "the limit of training"),
        ("multiply bf16", f"{m.bf16_gflops:,.0f} GFLOP/s", "used where clearly faster"),
        (
            "copy memory",
            f"{m.bandwidth_gb_s:.0f} GB/s",
            "the limit of generating text, one token at a time",
        ),
        (
            "attention",
            f"eager {m.eager_ms:.1f} ms, sdpa {m.sdpa_ms:.1f} ms",
            f"length {m.length}, forward and backward",
        ),
    ]


def _rows(choices: list[Choice]) -> list[tuple[str, str, str]]:
    return [(c.name, c.value, c.reason) for c in choices]


def _expected(m: Measurement, choices: list[Choice]) -> list[tuple[str, str, str]]:
    bf16 = any(c.value == "bf16" for c in choices)
    speed = m.bf16_gflops if bf16 else m.fp32_gflops
    rows = []
    for job in JOBS:
        rate = job.fraction * speed * 1e9 / job.operations
        minutes = job.units / rate / 60
        rows.append(
            (job.recipe, f"about {rate:,.0f} {job.unit}/s", f"{minutes:.1f} min")
        )
    return rows
