"""Choosing the fast path: threads, allocator, precision and attention of a run.

``choose`` decides and gives reasons, ``choose_fast_path`` also applies. What the user
gave always wins.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmft.config.choice import Choice
from llmft.config.fields import ModelArguments, TrainingArguments
from llmft.console import warn
from llmft.machine import detect
from llmft.machine.detect import Machine
from llmft.machine.measure import LONGEST, Measurement, measure

# bf16 autocast also casts weights and activations: below this, fp32 wins.
BF16_MUST_GAIN = 1.3
# Where other programs disturb the measurement, only a clear difference counts.
BF16_MUST_GAIN_BUSY = 3.0
# Where nothing can be measured; AMX was seen faster with eager at 128.
EAGER_UP_TO = 256
_SLOWER = "; the other is faster here"
_NO_GAIN = "; that does not pay for its conversions"
# They decide in which order and how precisely numbers add up: a resume with others does
# not go on to the same bytes.
_OF_SUMS = ("threads", "precision", "attention")
_BUSY = "other programs run, so that little can be measured"


@dataclass(frozen=True)
class Given:
    """What the user asked for; None leaves the choice to the measurement.

    Attributes:
        precision: fp32 or bf16. attn_implementation: eager or sdpa.
        trains: False for sampling only, where attention has no backward; a model is
            evaluated with the attention that it was trained with.
    """

    threads: int | None = None
    precision: str | None = None
    attn_implementation: str | None = None
    trains: bool = True


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
    return Choice("threads", str(m.physical_cores), reason)


def choose_precision(m: Measurement, given: str | None) -> Choice:
    """Choose bf16 where it multiplies at least ``BF16_MUST_GAIN`` times as fast."""
    must_gain = BF16_MUST_GAIN_BUSY if m.busy else BF16_MUST_GAIN
    pays = m.bf16_gflops >= must_gain * m.fp32_gflops
    measured = (
        f"bf16 multiplies {m.bf16_gflops / m.fp32_gflops:.2g} times as fast as fp32:"
        f" {m.bf16_gflops:,.0f} and {m.fp32_gflops:,.0f} GFLOP/s"
    )
    if m.busy:
        measured += f"; {_BUSY}"
    if given is None:
        return Choice("precision", "bf16" if pays else "fp32", measured)
    slow = _SLOWER if pays != (given == "bf16") else ""
    if slow and given == "bf16" and m.bf16_gflops > m.fp32_gflops:
        slow = "" if m.busy else _NO_GAIN
    return Choice("precision", given, f"was given; {measured}{slow}")


def choose_attention(m: Measurement, given: Given) -> Choice:
    """Choose the attention code that is faster at the run's length, backward too."""
    if given.attn_implementation:
        return Choice("attention", given.attn_implementation, "was given")
    if not given.trains:
        return Choice(
            "attention", "sdpa", "without a backward pass sdpa is fast; not measured"
        )
    if m.busy:
        likely = "eager" if m.length <= EAGER_UP_TO else "sdpa"
        return Choice("attention", likely, f"{_BUSY}; chosen by the length")
    faster = "eager" if m.eager_ms < m.sdpa_ms else "sdpa"
    measured = (
        f"forward and backward at length {m.length}: eager {m.eager_ms:.1f} ms,"
        f" sdpa {m.sdpa_ms:.1f} ms"
    )
    return Choice("attention", faster, measured)


def choose(machine: Machine, m: Measurement, given: Given) -> list[Choice]:
    """Return every choice for a run on ``machine``, whose speeds are ``m``."""
    return [
        choose_threads(machine, given.threads),
        choose_precision(m, given.precision),
        choose_attention(m, given),
    ]


def choose_fast_path(
    args: TrainingArguments, model_args: ModelArguments, length: int
) -> list[Choice]:
    """Measure, choose and set for this run; return what and why.

    Sets torch's threads, the allocator, ``args.bf16`` with ``args.mixed_precision``,
    and ``model_args.attn_implementation``. A run that is resumed keeps precision and
    attention, and warns of what is another than before.
    """
    before = _choices_of(args.resume_from_checkpoint)
    asked = "bf16" if args.bf16 else args.precision
    kept = before.get("precision")
    kept = None if kept == "fp16" else kept  # that was on a GPU
    given = Given(
        threads=args.num_threads,
        precision=kept if asked == "auto" else asked,
        attn_implementation=model_args.attn_implementation or before.get("attention"),
        trains=args.do_train or args.do_eval or args.do_predict,
    )
    on_cpu = args.device.type == "cpu"
    choices = _on_cpu(args, given, length) if on_cpu else [_as_asked(args)]
    choices = [_compared(choice, before) for choice in choices]
    values = {choice.name: choice.value for choice in choices}
    for choice in choices:
        if asked == "bf16" and choice.reason.endswith((_SLOWER, _NO_GAIN)):
            warn(f"precision bf16 {choice.reason}")
    if values["precision"] == "bf16":
        args.bf16, args.mixed_precision = True, "bf16"
    if values.get("attention") == "eager":  # else transformers takes the best it has
        model_args.attn_implementation = "eager"
    return choices


def _on_cpu(args: TrainingArguments, given: Given, length: int) -> list[Choice]:
    """Measure and choose; set torch's threads and the allocator."""
    machine = detect.detect()
    threads = int(choose_threads(machine, given.threads).value)
    torch.set_num_threads(threads)
    choices = choose(machine, measure(machine, threads, min(length, LONGEST)), given)
    if machine.busy:
        held = f"{machine.load:.1f} of {machine.logical_cores} cores"
        said = f"other programs keep {held}: this run will be slower"
        choices.append(Choice("machine", "busy", said))
    if not args.use_cpu:
        choices.append(Choice("device", "cpu", "use_cpu is false, but there is no GPU"))
    if tune_allocator():
        choices.append(Choice("allocator", "keeps memory", "fewer page faults (glibc)"))
    return choices


def _as_asked(args: TrainingArguments) -> Choice:
    """Return the precision on a GPU, where nothing is measured."""
    wants_bf16 = args.bf16 or args.precision == "bf16"
    value = "fp16" if args.fp16 else "bf16" if wants_bf16 else "fp32"
    return Choice("precision", value, f"not measured on {args.device.type}")


def _choices_of(checkpoint: Any) -> dict[str, str]:
    """Return what the run chose that goes on from ``checkpoint``, by name."""
    if not checkpoint:
        return {}
    try:
        text = (Path(checkpoint).parent.parent / "run.json").read_text("utf-8")
        found = json.loads(text)["choices"]
        return {name: found[name]["value"] for name in _OF_SUMS if name in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _compared(choice: Choice, before: Mapping[str, str]) -> Choice:
    """Return the choice of a resumed run; warn where it is not the one of before."""
    was = before.get(choice.name, choice.value)
    if was != choice.value:
        is_now = f"is {choice.value} from now on"
        warn(f"{choice.name} was {was} before this resume, {is_now}: other sums")
    elif choice.name in before and choice.name != "threads":
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
