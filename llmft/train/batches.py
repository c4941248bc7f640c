"""Which examples share a batch, and how long each batch is, before a training."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from llmft.data.tokens.stream import Stream


def lengths_of(data: Any) -> np.ndarray:
    """Return the tokens of each example of a ``datasets.Dataset``."""
    column = data.with_format("arrow")["input_ids"][:]
    return pc.list_value_length(column).to_numpy()


def lengths_in_brief(data: Any | None) -> dict[str, int]:
    """Return how long examples are, for ``run.json``; of a stream, nothing."""
    if data is None or not hasattr(data, "__len__") or not len(data):
        return {}
    lengths = lengths_of(data)
    half, nearly, longest = np.quantile(lengths, (0.5, 0.9, 1), method="lower")
    found = {"examples": len(lengths), "50 %": half, "90 %": nearly, "longest": longest}
    found["as long as the longest"] = (lengths == longest).sum()
    return {name: int(value) for name, value in found.items()}


class Batches:
    """The batches of an epoch, the shortest first.

    Args:
        data: a ``datasets.Dataset`` or a ``Stream``, of which only the first are read.
        size: examples of a batch. strategy: as ``train_sampling_strategy``.
        seed: of the order.

    Attributes:
        lengths: the padded length of each. sizes: how many examples each has; int64.
    """

    def __init__(self, data: Any, size: int, strategy: str, seed: int) -> None:
        self.data = data
        if isinstance(data, Stream):
            self.data = list(islice(data.in_order(), size))
            lengths = np.array([len(block["input_ids"]) for block in self.data])
        else:
            lengths = lengths_of(data)
        generator = torch.Generator().manual_seed(seed)
        if strategy == "group_by_length":
            found = get_length_grouped_indices(lengths, size, generator=generator)
            order = np.array(found)
        elif strategy == "longest_first":
            order = np.argsort(-lengths, kind="stable")
        else:
            order = torch.randperm(len(lengths), generator=generator).numpy()
        starts = np.arange(0, len(order), size)
        sizes = np.minimum(len(order) - starts, size)
        longest = np.maximum.reduceat(lengths[order], starts)
        # The last one may have fewer examples: it is not typical, nor the longest.
        by_length = np.lexsort((sizes, longest))
        self.order, self.starts = order, starts[by_length]
        self.sizes, self.lengths = sizes[by_length], longest[by_length]

    def __len__(self) -> int:
        return len(self.sizes)

    def longest(self) -> dict[str, Any]:
        """Return the example with the most tokens."""
        return max(self.examples(len(self) - 1), key=lambda e: len(e["input_ids"]))

    def examples(self, place: int, tokens: int | None = None) -> list[dict[str, Any]]:
        """Return the examples of a batch; of no more than so many ``tokens``."""
        start, size = self.starts[place], self.sizes[place]
        if tokens is not None:
            size = min(size, max(tokens // self.lengths[place], 1))
        return [self.data[int(i)] for i in self.order[start : start + size]]
