"""A page that opens offline, without a script: its parts, numbers and texts on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

from llmft import __version__
from llmft.errors import escape

_NARROW = 14  # characters of the head of a narrow column
LABEL, TEXT = 60, 300  # characters of a name, and of a text, that are shown


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first cell of a row names it.

    ``bars`` adds to each row a bar, as long as its number.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    kind: str = "table"
    # The columns of longer texts, and those of names, which may take several lines.
    wide: Sequence[str] = (
        *("text", "where", "from", "notes", "reason", "value", "as read"),
        *("what was seen", "what may help"),
    )
    names: Sequence[str] = ("labelled", "said", "said instead", "rather", "labels")
    bars: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing, which says in words what it shows; its title and its numbers."""

    svg: Markup
    title: str
    numbers: Table
    kind: str = "chart"


@dataclass(frozen=True)
class Cells:
    """A table of counts whose shade says how large each is: a confusion matrix.

    ``rows`` has the name of each row, and of each cell the shade, 0 to 5, and text.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, str]]]]
    kind: str = "cells"


@dataclass(frozen=True)
class Texts:
    """Longer texts, each below a line that says what it is."""

    caption: str
    texts: Sequence[tuple[str, str]]
    kind: str = "texts"


@dataclass
class Section:
    """A part of the page: a heading, sentences, tables and charts."""

    title: str
    said: list[str] = field(default_factory=list)
    blocks: list[Table | Chart | Cells | Texts] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """What links lead to it."""
        return self.title.lower().replace(" ", "-").replace(",", "")

    def __bool__(self) -> bool:
        return bool(self.said or self.blocks)


def number(value: object) -> str:
    """Return a number in four digits, and anything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "-"
    if isinstance(value, int) or (value == round(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def between(limits: tuple[float, float]) -> str:
    """Return two limits of shares."""
    return f"{limits[0]:.3f} to {limits[1]:.3f}"


def named(value: object) -> str:
    """Return a label, or several, short enough for a cell."""
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    text = number(value) if isinstance(value, float) else str(value)
    return escape(text[: LABEL + 1], LABEL)


def brief_name(value: object) -> str:
    """Return the beginning of a label, for the head of a narrow column."""
    name = named(value)
    return name if len(name) <= _NARROW else name[: _NARROW - 1] + "…"


def shown_of(shown: int, of: int, what: str) -> str:
    """Return ``20 of 340 rows``, or "" where nothing is left out."""
    return f"{shown:,} of {of:,} {what}" if shown < of else ""


def listed_words(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def html(
    title: str,
    verdict: Sequence[str],
    sections: Sequence[Section],
    bad: bool = False,
    below: str = "",
    foot: str = "",
) -> str:
    """Return the page.

    Args:
        verdict: the sentences at the top; ``bad`` marks them.
        sections: empty ones are left out.
        below, foot: a sentence below the verdict, and one at the end.
    """
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: x if isinstance(x, Markup) else escape(x),
    )
    jinja.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    page = jinja.get_template("page.html.j2").render(
        title=title,
        verdict=verdict,
        sections=[section for section in sections if section],
        bad=bad,
        below=below,
        foot=foot,
        version=__version__,
    )
    return "\n".join(filter(None, map(str.strip, page.splitlines()))) + "\n"
