"""What pandas, R and spreadsheets write for lists, gaps and several labels."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from llmft.errors import LabelError, shorten

# What R, pandas, Excel and SQL write where there is no value.
MISSING = {*"NA N/A n/a #N/A <NA> NaN nan null NULL".split()}
_THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2}(,\d{3})+\s*")
_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")  # a decimal one
_ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?\d[\w.]*|[Tt]rue|[Ff]alse"""
# Items with commas or, as numpy writes them, spaces between.
_LIST = re.compile(rf"\[\s*(?:(?:{_ITEM})(?:\s*,\s*|\s+|(?=\])))*\]")
_BITS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}


def with_point(text: str) -> str | None:
    """Return a number that has a decimal comma with a point, None of anything else.

    Raises:
        LabelError: the comma may stand for thousands; without its place.
    """
    if _THOUSANDS.fullmatch(text):
        said = f"{shorten(text)} may be {text.replace(',', '')}, or a fraction"
        hint = "write numbers with a point, or without commas"
        raise LabelError(said, hint=f"{hint}; of classes, say so by --problem_type")
    return text.replace(",", ".") if _COMMA.fullmatch(text) else None


def list_in(text: str) -> list[Any] | None:
    """Return the list that a text is, as JSON, Python or numpy writes one, or None."""
    if not text.startswith("["):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return [*map(_item, re.findall(_ITEM, text))] if _LIST.fullmatch(text) else None


def _item(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # true, 007
        return text


def of_columns(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return of columns that are 1 or 0 the names of those that are 1.

    Raises:
        LabelError: one is something else; without its place.
    """
    found = {name: _BITS.get(str(row.get(name)).strip().lower()) for name in names}
    for name, bit in found.items():
        if bit is None:
            said = f"{shorten(name)} is {shorten(row.get(name))}"
            raise LabelError(said, "expected 0 or 1 in each column of labels")
    return [name for name, bit in found.items() if bit]


def turns_in(value: Any) -> list[Any] | None:
    """Return the list that a text is, as JSON or Python writes it, or None."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(value.strip())
    return None
