"""From a batch back to the rows that it was made of, and where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from llmft.data.read.store import Source
from llmft.data.tokens.collate import examples_by_row


def rows_of_example(data: Any, place: int) -> list[int]:
    """Return the rows of the source that an example of a data set was made of."""
    if "documents" in data.column_names:  # of blocks
        first, last = data[place]["documents"]
        return list(range(first, last + 1))
    # A text may be several examples; without ``row``, each is one.
    return [data[place]["row"] if "row" in data.column_names else place]


def places_of(data: Any, place: int, source: Source | None) -> list[str]:
    """Return where the rows of an example stand, as path:line; [] if not known."""
    if source is None:
        return []
    with suppress(LookupError, TypeError):  # a source without files and lines
        rows = rows_of_example(data, place)
        return [source.place(row) for row in rows]
    return []


def places_of_rows(
    batch: Mapping[str, torch.Tensor], data: Any, source: Source | None
) -> list[list[str]]:
    """Return for each row of a batch where it stands; its examples where not known."""
    found = []
    for examples in examples_by_row(batch, data):
        places = [p for i in examples for p in places_of(data, i, source)]
        found.append(places or [f"example {i} of train" for i in examples])
    return found
