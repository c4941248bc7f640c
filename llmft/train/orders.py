"""The order of examples in training and in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler


class LongestFirst(Dataset):
    """The examples of a data set by length, where it has a column ``length``.

    Args:
        examples: a ``datasets.Dataset``.
    """

    def __init__(self, examples: Any) -> None:
        self.examples = examples
        lengths = np.zeros(len(examples))
        if "length" in examples.column_names:
            lengths = np.asarray(examples["length"][:])
        self.order = np.argsort(-lengths, kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.examples[int(self.order[place])]

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        return self.examples.__getitems__(self.order[places].tolist())

    def undo(self, values: Any) -> Any:
        """Return an array of one row an example in the order of the data set."""
        if values is None:
            return None
        ordered = np.empty_like(values)
        ordered[self.order] = values
        return ordered


class GroupedByLength(LengthGroupedSampler):
    """Draws its order from seed and epoch, as accelerate does for a random order.

    That of Trainer goes on with torch's generator, which in the middle of an epoch is
    not where it was at its start. Trainer also hands over a column of the data set,
    from which the sampler reads each length by itself: 2.8 s an epoch for 50,000 rows,
    0.01 s with a list.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        lengths, generator = sampler.lengths[:], torch.Generator()
        super().__init__(sampler.batch_size, lengths=lengths, generator=generator)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the order of an epoch; Trainer calls this."""
        self.generator.manual_seed(self.seed + epoch)
