"""Labels that are probably wrong: those that all methods speak against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmft.runs.report.answers import MULTI, REGRESSION, SINGLE, Answers, places_of
from llmft.runs.report.parts import Section, Table, named, shown_of

SHOWN = 50
_TWICE = 20  # groups of equal texts that are shown
_LEAST = 1e-6  # a probability
STRONG = 0.02  # of a label that is less probable, one should know


@dataclass(frozen=True)
class Suspect:
    """A row whose label is doubtful.

    Attributes:
        answers: the row's. row: its place there.
        chance: how probable the label is to the methods together.
        instead: what the methods say. against: how many of them, of how many.
    """

    answers: Answers
    row: int
    chance: float
    instead: Any
    against: tuple[int, int]


def suspects(parts: Mapping[str, Answers]) -> list[Suspect]:
    """Return the rows whose label the model contradicts, the most doubtful first."""
    found: list[Suspect] = []
    for answers in parts.values():
        if answers.kind == SINGLE:
            found += _of_one_label(answers)
        elif answers.kind == MULTI:
            found += _of_several(answers)
    return sorted(found, key=lambda suspect: suspect.chance)


def _of_one_label(answers: Answers) -> list[Suspect]:
    """Return each row that the model answers otherwise, with the chance of its label.

    That is the geometric mean of its probabilities by all methods, each weighed by what
    it knows: the square of its gain over the most frequent label, the model's being 1.
    """
    rungs = [row.get("rungs", {}) for row in answers.rows]
    names = list(rungs[0])
    own = answers.probabilities.clip(_LEAST)
    logs, voted = [np.log(own)], [~answers.right]
    for name in names:
        found = [rung[name] for rung in rungs]
        votes = np.array([f["prediction"] for f in found]) != answers.column("label")
        p = [_of_label(*pair) for pair in zip(found, votes, strict=True)]
        logs.append(np.log(np.clip(p, _LEAST, None)))
        voted.append(votes)
    most = np.bincount(answers.given).max() / len(answers)
    gain = np.array([1 - v.mean() for v in voted]) - most
    weights = (gain / gain[0]).clip(0) ** 2 if gain[0] > 0 else np.ones(len(gain))
    chance = np.exp(weights @ np.array(logs) / weights.sum())
    return [
        Suspect(
            answers,
            int(i),
            float(chance[i]),
            answers.rows[i]["prediction"],
            (int(sum(v[i] for v in voted)), len(voted)),
        )
        for i in np.flatnonzero(~answers.right)
    ]


def _of_label(rung: dict[str, Any], against: bool) -> float:
    """Return how probable the label of a row is to a method; at the most, if unsaid."""
    p = float(rung["probability"])
    return float(rung.get("label_probability", 1 - p)) if against else p


def _of_several(answers: Answers) -> Iterator[Suspect]:
    """Yield rows with a label too many, or one that is missing, the worst of each."""
    for i, row in enumerate(answers.rows):
        given, said = {*row["label"]}, {*row["prediction"]}
        rungs = list(row.get("rungs", {}).values())
        best: Suspect | None = None
        for label in given ^ said:
            p = float(answers.probabilities[i, answers.names.index(label)])
            votes = [
                (label in given) != (label in rung["prediction"]) for rung in rungs
            ]
            chance = p if label in given else 1 - p
            chance = (chance + len(votes) - sum(votes)) / (1 + len(votes))
            if best is None or chance < best.chance:
                said_ = f"{'not' if label in given else 'also'} {label}"
                against = (1 + sum(votes), 1 + len(votes))
                best = Suspect(answers, i, chance, said_, against)
        if best is not None:
            yield best


def label_errors(parts: Mapping[str, Answers], found: Sequence[Suspect]) -> Section:
    """Return the rows whose label should be looked at, and texts with two labels."""
    section = Section("Probable label errors")
    if not parts or next(iter(parts.values())).kind == REGRESSION:
        return section
    rows = [
        (
            *(f"{s.chance:.2g}", named(row["label"]), named(s.instead)),
            *(f"{s.against[0]} of {s.against[1]}", s.answers.text(row)),
            s.answers.place(row),
        )
        for s in found[:SHOWN]
        for row in [s.answers.rows[s.row]]
    ]
    if rows:
        folds = any("fold" in s.answers.rows[s.row] for s in found)
        model = "the saved model" + " (of folds: their own)" * folds
        single = found[0].answers.kind == SINGLE
        weighed = ", of which one counts the more the more often it is right" * single
        section.said.append(
            f"Rows that {model} answers otherwise (rather), ranked by how probable"
            f" their label is to all methods together{weighed}. Where simpler methods"
            " are for a label, its chance can be above 0.5. Some of these labels are"
            " right and the methods wrong: look at them before changing one."
        )
        header = [
            "chance of the label",
            "labelled",
            "rather",
            "methods against",
            "text",
            "where",
        ]
        note = shown_of(len(rows), len(found), "rows that were answered otherwise")
        table = Table("Labels to look at", header, rows, note)
        section.blocks.append(table)
    twice = [group for part in parts.values() for group in contradictions(part)]
    if twice:
        shown = [
            (
                answers.text(answers.rows[places[0]]),
                "; ".join(named(answers.rows[i]["label"]) for i in places[:5]),
                "; ".join(answers.place(answers.rows[i]) for i in places[:5]),
            )
            for answers, places in twice[:_TWICE]
        ]
        note = shown_of(len(shown), len(twice), "texts")
        header = ["text", "labels", "where"]
        table = Table("The same text with different labels", header, shown, note)
        section.blocks.append(table)
    return section


def contradictions(answers: Answers) -> list[tuple[Answers, list[int]]]:
    """Return the rows of each text that is there with more than one label."""
    texts = (
        tuple(" ".join(str(row.get(n, "")).casefold().split()) for n in _OF_TEXT)
        for row in answers.rows
    )
    found = []
    for places in places_of(texts).values():
        if len({str(answers.rows[i]["label"]) for i in places}) > 1:
            found.append((answers, places))
    return found


_OF_TEXT = ("text", "text_pair")
