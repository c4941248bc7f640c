"""Items in lists that are not too long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_parts(
    items: Iterable[T], length: Callable[[T], int], most: int, characters: int
) -> Iterator[list[T]]:
    """Yield items in lists of at most ``most``, and of about so many characters."""
    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += length(item)
        if len(part) == most or size > characters:
            yield part
            part, size = [], 0
    if part:
        yield part
