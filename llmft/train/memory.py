"""The memory that a training needs, before it is taken, and the batch that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from llmft.config.choice import Choice
from llmft.config.fields import TrainingArguments
from llmft.errors import EnvironmentFault, out_of_memory
from llmft.machine.detect import allowed_bytes, allowed_text, gib
from llmft.machine.plan import Forecast
from llmft.machine.trial import Candidate
from llmft.train.batches import Batches
from llmft.train.objectives import CausalLM
from llmft.train.steps import Steps

# Of what is counted here: the rest are intermediate results.
MARGIN = 1.15
# What the heap of a training grows by beside that, in gaps between tensors that change
# their size: a guess, not measured since free memory is given back.
GAPS = 2**26
# What a training held beside what was expected of it (2 cores, AMD EPYC; before free
# memory was given back, seven of nine runs: the others held more).
LEAST, MOST = 0.9, 1.1


@dataclass(frozen=True)
class Need:
    """Bytes that a training holds whatever its batch, and more for each example."""

    fixed: int
    example: int

    def of(self, examples: int) -> int:
        """Return the bytes with a batch of so many examples."""
        return self.fixed + examples * self.example

    def fitting(self, allowed: int, among: int) -> int:
        """Return the largest divisor of ``among`` that fits as a batch; 0: none."""
        fits = [n for n in range(1, among + 1) if self.of(n) <= allowed]
        return max((n for n in fits if among % n == 0), default=0)


def read_weights(model: Any) -> None:
    """Read all weights, so that memory holds them: those of a mapped file it does not.

    A trial reads few embeddings, a training comes to all: of Gemma 3 270M, 0.6 GiB.
    """
    for weight in model.parameters():
        weight.detach().sum()


def saved_bytes(steps: Steps, candidate: Candidate, examples: list[Any]) -> int:
    """Return the bytes that a forward pass keeps for the backward one, but weights."""
    weights = {p.untyped_storage().data_ptr() for p in steps.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        steps.run(candidate, examples)
    return sum(kept.values())


def need_of(
    steps: Steps, candidate: Candidate, batches: Batches, optimizer_bytes: int
) -> Need:
    """Return what the training needs, from what one and two of the longest do.

    Args:
        optimizer_bytes: what the optimizer keeps.
    """
    longest = batches.longest()
    candidate = candidate._replace(compiled=False)  # not for batches of one and two
    before = psutil.Process().memory_info().rss
    steps.run(candidate, [longest])  # the first of a model also tries what it allows
    one, two = (saved_bytes(steps, candidate, [longest] * n) for n in (1, 2))
    row = max(two - one, 1)
    gradients = sum(p.nbytes for p in steps.model.parameters() if p.requires_grad)
    # The heap keeps what it held at the most, where it is glibc's.
    held = max(
        psutil.Process().memory_info().rss - 2 * row, before + gradients + one - row
    )
    return Need(held + optimizer_bytes + GAPS, int(MARGIN * row))


def require_memory(need: Need, steps: Steps, length: int) -> int:
    """Return the bytes that the process will hold with the batch that was asked for.

    Args:
        length: tokens of the longest example.

    Raises:
        EnvironmentFault: that is more than this process may hold; says what fits.
    """
    args, allowed = steps.args, allowed_bytes()
    needed = need.of(args.train_batch_size)
    if needed <= allowed:
        return needed
    total = args.train_batch_size * args.gradient_accumulation_steps
    hint = "use a smaller model or a shorter max_seq_length"
    if isinstance(steps.objective, CausalLM):
        hint += ", or --lora_r 8, which trains few weights"
    if rows := need.fitting(allowed, total):
        hint = (
            f"--per_device_train_batch_size {rows} --gradient_accumulation_steps"
            f" {total // rows} fits, and learns the same (auto finds it); shorter"
            " max_seq_length or --activation_checkpointing true help, too"
        )
    raise EnvironmentFault(
        f"training would take about {gib(needed)} of memory, and may use"
        f" {allowed_text()}: {gib(need.fixed)} whatever the batch, with Python and its"
        f" libraries, and {gib(need.example)} for each example of {length} tokens",
        hint=hint,
    )


def out_of_memory_fault(
    error: BaseException,
    step: int,
    shape: tuple[int, int],
    args: TrainingArguments,
    forecast: Forecast | None = None,
) -> EnvironmentFault | None:
    """Return what to say of an error of memory in a training; None of any other.

    Args:
        step: the one that ended so. shape: rows and tokens of its last batch.
        forecast: tells what an example takes.
    """
    if not out_of_memory(error):
        return None
    rows, tokens = shape
    total = args.train_batch_size * args.gradient_accumulation_steps
    held = psutil.Process().memory_info().rss
    fits, least = args.train_batch_size // 2, "takes half of that for its examples"
    if forecast and (row := forecast.example_bytes):
        # It took more than was expected: no more than nine tenths are counted on.
        over = max(forecast.peak_bytes, held) - int(0.9 * allowed_bytes())
        fits = args.train_batch_size - max(-(-over // row), 1)
        least = f"takes {gib(row)} less for each example, which would fit"
    smaller = max((n for n in range(1, fits + 1) if total % n == 0), default=0)
    hint = "use a shorter --max_seq_length, or a smaller model"
    if smaller:
        hint = (
            f"--per_device_train_batch_size {smaller} --gradient_accumulation_steps"
            f" {total // smaller} {least}, and learns the same;"
            " --auto_find_batch_size finds the batch; a shorter --max_seq_length or"
            " --activation_checkpointing true help, too"
        )
    return EnvironmentFault(
        f"out of memory in step {step}, with a batch of {rows} x {tokens} tokens: the"
        f" process holds {gib(held)}, and may hold {allowed_text()}",
        hint=hint,
    )


def fit_batch_size(need: Need, args: TrainingArguments) -> Choice:
    """Set the largest batch that fits, and the parts that make up the same step.

    Where not even one example fits, all stays, for ``require_memory`` to refuse.
    """
    total = args.train_batch_size * args.gradient_accumulation_steps
    rows = need.fitting(int(allowed_bytes() / MOST), total) or args.train_batch_size
    args.per_device_train_batch_size = rows
    args.gradient_accumulation_steps = total // rows
    said = f"{rows} of {total} fit at once" if rows < total else "all fit at once"
    said += f": {gib(need.fixed)}, and {gib(need.example)} an example"
    return Choice("batch", f"{rows} x {total // rows}", said)
