"""Class names that readers take for one another, and where the rarer one stands."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from llmft.errors import LabelError, counted, shorten

# A number that a float holds; one of hundreds of digits is a name.
NUMBER = re.compile(r"(?=.{1,25}$)[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?")


def refuse_similar(
    counts: Mapping[str, int],
    rows: Iterable[list[str]],
    path: str | None = None,
    place: Callable[[int], str] | None = None,
) -> None:
    """Raise LabelError for classes such as Yes and yes.

    Args:
        counts: the rows of each class.
        rows: the classes of each row.
        path: the data, for the message where ``place`` is not given.
        place: returns path:line of a row; the first one of the rarer class is named.
    """
    pairs = similar(counts)
    if not pairs:
        return
    if place:
        name = rarer(pairs[0], counts)
        path = place(next(i for i, names in enumerate(rows) if name in names))
    shown = [f"{shorten(n)} ({counted(counts[n], 'rows')})" for n in pairs[0]]
    more = f"; {len(pairs) - 1:,} more such pairs" if len(pairs) > 1 else ""
    raise LabelError(
        f"the labels {' and '.join(shown)} look like one class{more}",
        "expected each class in one spelling",
        "write them alike; if they differ, --allow similar_labels",
        path=path,
    )


def rarer(pair: tuple[str, str], counts: Mapping[str, int]) -> str:
    """Return the class of the two that has fewer rows, else the second."""
    return min(reversed(pair), key=counts.__getitem__)


def similar(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs of class names that readers take for one.

    They differ by case, space, in how Unicode writes them, or as 7 and 007 do.
    """
    first: dict[str | Decimal, str] = {}
    pairs = []
    for name in counts:
        composed = unicodedata.normalize("NFKC", name)
        seen = "".join(c for c in composed if unicodedata.category(c) != "Cf")
        key: str | Decimal = " ".join(seen.split()).casefold()
        if NUMBER.fullmatch(str(key)):
            key = Decimal(key)  # a float would take long numbers for one another
        if key in first:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs
