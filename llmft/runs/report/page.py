"""``report.html``: what a run was, and what came of it."""

from __future__ import annotations

from typing import Any

from llmft.runs.listing import notes_of
from llmft.runs.record import RunRecord
from llmft.runs.report import classify, facts, lm
from llmft.runs.report.advice import Seen, advice, ladder_of
from llmft.runs.report.answers import read_answers
from llmft.runs.report.charts import curves
from llmft.runs.report.label_errors import label_errors, suspects
from llmft.runs.report.parts import Section, html
from llmft.runs.report.segments import segments
from llmft.runs.report.verdict import verdict

_RECIPES = {
    "classify": "Classification",
    "generate": "Causal language model",
    "mlm": "Masked language model",
}
_FOOT = (
    "Figures of 95 % are ± 1.96 standard errors, of shares Wilson's interval. Made from"
    " the files of the run."
)


def render(run: RunRecord) -> str:
    """Return the page of a run."""
    events = run.events()
    began = f"{run.started:%Y-%m-%d %H:%M}" if run.started else "unknown time"
    said, notes = [f"Run of {began}, {run.status}."], notes_of(run.folder)
    if notes["tags"]:
        said.append(f"Tags: {', '.join(notes['tags'])}.")
    return html(
        f"{_RECIPES.get(run.recipe, run.recipe)}: {run.name}",
        verdict(run, events),
        _sections(run, events),
        bad=run.status != "complete",
        below=" ".join([*said, notes["note"]]),
        foot=_FOOT,
    )


def _sections(run: RunRecord, events: list[dict[str, Any]]) -> list[Section]:
    contrast = run.record.get("choices", {}).get("contrast", {}).get("value", "0")
    saved = ladder_of(run).get("saved", "")
    found = [curves(events, contrast != "0", saved), classify.ladder(run)]
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
