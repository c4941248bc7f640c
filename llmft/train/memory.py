"""The memory that a training needs, before it is taken."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from llmft.config.fields import TrainingArguments
from llmft.errors import EnvironmentFault
from llmft.machine.detect import allowed_bytes, gib
from llmft.machine.trial import Candidate
from llmft.train.batches import Batches
from llmft.train.steps import Steps

# Of what is counted here: the rest are intermediate results, and gaps in the heap.
MARGIN = 1.15


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


def require_memory(
    steps: Steps, candidate: Candidate, batches: Batches, optimizer_bytes: int
) -> int:
    """Return the bytes that the process will hold in training, by one and two examples.

    What a forward pass keeps grows with the examples of a batch; two of the longest
    are tried.

    Args:
        optimizer_bytes: what the optimizer will keep.

    Raises:
        EnvironmentFault: that is more than this process may hold; says what fits.
    """
    longest, size = len(batches) - 1, steps.args.train_batch_size
    examples = batches.examples(longest)
    steps.run(candidate, examples[:1])  # the first of a model also tries what it allows
    one = saved_bytes(steps, candidate, examples[:1])
    two = saved_bytes(steps, candidate, (examples * 2)[:2])
    row = max(two - one, 1)
    gradients = sum(p.nbytes for p in steps.model.parameters() if p.requires_grad)
    fixed = psutil.Process().memory_info().rss + gradients + optimizer_bytes
    fixed += max(one - row, 0)
    allowed = allowed_bytes()
    needed = fixed + int(MARGIN * row * size)
    if needed <= allowed:
        return needed
    fits = int((allowed - fixed) / (MARGIN * row))
    raise EnvironmentFault(
        f"training would take about {gib(needed)} of memory, {gib(allowed)} may be used"
        f" (weights, gradients and optimizer {gib(fixed)}, each example of"
        f" {batches.lengths[longest]} tokens {gib(MARGIN * row)})",
        hint=_what_fits(steps.args, fits),
    )


def _what_fits(args: TrainingArguments, rows: int) -> str:
    """Return what to change, where so many examples fit at once."""
    total = args.train_batch_size * args.gradient_accumulation_steps
    smaller = [n for n in range(rows, 0, -1) if total % n == 0]
    if smaller:
        parts = total // smaller[0]
        return (
            f"--per_device_train_batch_size {smaller[0]} --gradient_accumulation_steps"
            f" {parts} fits, and learns the same; shorter max_seq_length or"
            " --activation_checkpointing true help, too"
        )
    return (
        "use a smaller model, or for generate.py --lora_r 8, which trains few weights"
    )
