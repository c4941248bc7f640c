"""``report.html``: one page that opens offline, without a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from llmft import __version__
from llmft.errors import escape
from llmft.files import write_text
from llmft.runs.record import RunRecord
from llmft.runs.report import classify, facts, lm
from llmft.runs.report.advice import Seen, advice
from llmft.runs.report.answers import read_answers
from llmft.runs.report.curves import curves
from llmft.runs.report.label_errors import label_errors, suspects
from llmft.runs.report.parts import Section
from llmft.runs.report.segments import segments
from llmft.runs.report.verdict import verdict

REPORT = "report.html"
_RECIPES = {
    "classify": "Classification",
    "generate": "Causal language model",
    "mlm": "Masked language model",
}


def write_report(run: RunRecord, target: Path | None = None) -> Path:
    """Write the page of a run, by default into its folder; return where it is.

    Raises:
        DataError: a file of the run is damaged.
    """
    target = target or run.folder / REPORT
    write_text(target, render(run))
    return target


def render(run: RunRecord) -> str:
    """Return the page of a run."""
    events = run.events()
    sections = [section for section in _sections(run, events) if section]
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    jinja.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    page = jinja.get_template("page.html.j2").render(
        run=run,
        title=f"{_RECIPES.get(run.recipe, run.recipe)}: {run.name}",
        verdict=verdict(run, events),
        sections=sections,
        version=__version__,
    )
    return "\n".join(filter(None, map(str.strip, page.splitlines()))) + "\n"


def _harmless(value: Any) -> Any:
    return value if isinstance(value, Markup) else escape(value)


def _sections(run: RunRecord, events: list[dict[str, Any]]) -> list[Section]:
    contrast = run.record.get("choices", {}).get("contrast", {}).get("value", "0")
    found = [curves(events, contrast != "0"), classify.ladder(run)]
    parts = read_answers(run)
    groups = []
    if parts:
        answers = next(iter(parts.values()))
        groups = segments(answers)
        found.append(classify.answers_section(answers))
        found.append(classify.weak_section(groups, answers.kind))
        found.append(classify.mistakes(answers))
    doubted = suspects(parts)
    found += [label_errors(parts, doubted), *lm.sections(run)]
    found += [facts.cost(run), facts.data(run), facts.machine(run)]
    found.append(advice(Seen(run, events, groups, doubted)))
    return found
