"""Labels that are probably wrong: those that all methods speak against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmft.runs.report.answers import MULTI, REGRESSION, SINGLE, Answers, places_of
from llmft.runs.report.parts import Section, Table, named, shown_of

SHOWN = 50


@dataclass(frozen=True)
class Suspect:
    """A row whose label is doubtful.

    Attributes:
        row: its place among the answers. score: the more the likelier wrong.
        instead: what the methods say. why: in words.
    """

    row: int
    score: float
    instead: Any
    why: str


def suspects(answers: Answers) -> list[Suspect]:
    """Return the rows whose label the model contradicts, the most doubtful first."""
    if answers.kind == REGRESSION:
        return []
    return sorted(_suspects(answers), key=lambda s: -s.score)


def _suspects(answers: Answers) -> Iterator[Suspect]:
    for i, row in enumerate(answers.rows):
        if row["label"] == row["prediction"]:
            continue
        yield Suspect(i, 0.5, row["prediction"], "")


def label_errors(
    parts: Mapping[str, Answers], doubted: Sequence[tuple[Answers, Suspect]]
) -> Section:
    return Section("Probable label errors")
