"""The errors that llmft reports to its user, each with the exit code of its kind."""

from __future__ import annotations

import difflib
import errno
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Overrides of the writing direction can show a text as another one.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NO_MEMORY = (  # of torch, oneDNN and safetensors
    "DefaultCPUAllocator|out of memory|could not create a primitive|unable to mmap"
)


def escape(text: object, limit: int | None = None) -> str:
    """Return ``text`` on one line, control characters escaped, cut to ``limit``.

    Data, file names and labels go through here before they reach a terminal, so
    that none of them can move the cursor or start a new line.
    """
    shown = "".join(
        c.encode("unicode_escape").decode("ascii")
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTION
        else c
        for c in str(text)
    )
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 3] + "..."
    return shown


def shorten(value: object) -> str:
    """Return ``repr`` of a value for a message, cut to 80 characters."""
    return escape(repr(value), 80)


def brief(error: BaseException, limit: int | None = 200) -> str:
    """Return what an error says on one line, its kind where it says nothing."""
    return escape(" ".join(str(error).split()) or type(error).__name__, limit)


_NOUNS = {
    *("rows", "texts", "lines", "labels", "files", "blocks", "steps", "examples"),
    *("tokens", "cells", "documents"),
}
_VERBS = {"are": "is", "have": "has"} | {
    verb: f"{verb}s" for verb in ("hold", "end", "lose", "differ", "repeat", "look")
}


def counted(count: int, what: str) -> str:
    """Return a number with ``what`` there is so often, which is given in the plural.

    Of one, a noun and its verb among the first three words become singular.
    """
    if count != 1:
        return f"{count:,} {what}"
    words = what.split(" ")
    for i, word in enumerate(words[:3]):
        words[i] = word[:-1] if word in _NOUNS else _VERBS.get(word, word)
    return " ".join(["1", *words])


def listed(
    names: Iterable[object], limit: int = 20, show: Callable[[Any], str] = shorten
) -> str:
    """Return names for a message, each quoted; those above ``limit`` are counted."""
    shown = [show(name) for name in names]
    more = f" and {len(shown) - limit:,} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``, did you mean X?`` for the name most like ``name``, or nothing."""
    by_lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    found = by_lower[close[0]] if close else ""
    shown = repr(found) if found != found.strip() else found  # blanks could not be seen
    return f", did you mean {shown}?" if close else ""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no more memory."""
    in_torch = isinstance(error, RuntimeError) and re.search(_NO_MEMORY, str(error))
    by_number = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(in_torch) or by_number


class LlmftError(Exception):
    """A fault that the user can mend; printed as one line, without a traceback.

    ``line`` of ``path`` counts from 1; of a list, it is the item, from 0. ``column``,
    the character of the line, counts from 1. ``hint`` is what to do.
    """

    exit_code = 1

    def __init__(
        self,
        found: str,
        expected: str = "",
        hint: str = "",
        *,
        path: str | Path | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        self.found, self.expected, self.hint = found, expected, hint
        self.path, self.line, self.column = path, line, column
        super().__init__(str(self))

    @property
    def kind(self) -> str:
        """What its line begins with."""
        return type(self).__name__

    def __str__(self) -> str:
        place = (self.path, self.line, self.column if self.line else None)
        where = ":".join(str(part) for part in place if part is not None)
        parts = (self.found, self.expected, self.hint)
        said = "; ".join(part for part in parts if part)
        text = f"{self.kind} {where}: {said}" if where else f"{self.kind}: {said}"
        return escape(text)


class ConfigError(LlmftError):
    """Arguments that are unknown, mistyped, out of range or do not fit together."""

    exit_code = 2

    def __init__(self, *problems: str, path: str | Path | None = None) -> None:
        self.problems = problems
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        super().__init__(count + "; ".join(problems), path=path)


class DataError(LlmftError):
    """Data that cannot be read, or that does not hold what the task needs.

    It is not of a bad row where it is ``unusual`` only, and nothing unusual is allowed.
    """

    exit_code = 3
    unusual = False


class EncodingError(DataError):
    """Bytes that are not text in the encoding that was expected.

    ``guess`` is the encoding that the file looks like.
    """

    guess: str | None = None


class DataFormatError(DataError):
    """A file that is damaged, or not what its ending says."""


class SchemaError(DataError):
    """Columns that are missing or hold values of another type."""


class LabelError(DataError):
    """Labels that are missing, unknown, or look like one another."""


class LengthError(DataError):
    """A text that is longer than the run allows."""


class LeakageError(DataError):
    """Rows of the evaluation data that are in the training data, too."""


class CheckpointError(LlmftError):
    """A checkpoint that is missing, incomplete or does not belong to the run."""

    exit_code = 4


class EnvironmentFault(LlmftError):
    """Trouble around the run: output folder, disk, memory, network, cache, lock."""

    exit_code = 5


class NonFiniteError(LlmftError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 6


class UnsafeArtifactError(LlmftError):
    """A model or archive that would have to run foreign code, or fails its hash."""

    exit_code = 7
