"""One page that opens offline, without a script: of a run, a comparison, of data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from llmft import __version__
from llmft.errors import escape
from llmft.runs.report.parts import Section


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
        finalize=_harmless,
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


def _harmless(value: Any) -> Any:
    return value if isinstance(value, Markup) else escape(value)
