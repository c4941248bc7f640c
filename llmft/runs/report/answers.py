"""What a classifier said of labelled rows, as arrays: from ``predictions.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llmft.errors import escape
from llmft.runs.record import RunRecord
from llmft.runs.report.parts import TEXT

SINGLE, MULTI, REGRESSION = "one label", "several labels", "numbers"
ORDER = ("test", "validation", "train")  # on which rows a result is judged: the first


@dataclass
class Answers:
    """Labelled rows of one split.

    Attributes:
        kind: of the labels: ``SINGLE``, ``MULTI`` or ``REGRESSION``.
        split: of the rows. names: of the labels; of numbers, none.
        rows: as in the file, without ``probabilities``.
        probabilities: of several labels, of all: (rows, labels); of one label the
            given one's, (rows,).
        rest: rows of the file that have no label.
    """

    kind: str
    split: str
    names: list[str]
    rows: list[dict[str, Any]]
    probabilities: np.ndarray
    sources: dict[str, Any]
    rest: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """Return one value of each row."""
        return [row[name] for row in self.rows]

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each row was answered as labelled; of numbers, nothing."""
        return np.array([row["label"] == row["prediction"] for row in self.rows])

    @cached_property
    def given(self) -> np.ndarray:
        """The place of the label of each row; of several: (rows, labels), 0 and 1."""
        return self._places("label")

    @cached_property
    def said(self) -> np.ndarray:
        """The same of what the model said."""
        return self._places("prediction")

    def _places(self, name: str) -> np.ndarray:
        place = {label: i for i, label in enumerate(self.names)}
        if self.kind == MULTI:
            found = np.zeros((len(self.rows), len(place)), int)
            for i, row in enumerate(self.rows):
                found[i, [place[label] for label in row[name]]] = 1
            return found
        dtype = float if self.kind == REGRESSION else int
        values = self.column(name)
        return np.array(values if dtype is float else [place[v] for v in values], dtype)

    def text(self, row: dict[str, Any]) -> str:
        """Return the text of a row, and of a pair both, on one line."""
        both = [row[n] for n in ("text", "text_pair") if row.get(n) is not None]
        return escape(" / ".join(text[:TEXT] for text in both), TEXT)

    def place(self, row: dict[str, Any]) -> str:
        """Return where a row stands, as path:line; of a data set, its number there."""
        source = row.get("path") or self.sources.get(row["split"], {}).get("source", "")
        return escape(f"{source}:{row.get('line', row.get('row'))}", 120)


def read_answers(run: RunRecord) -> dict[str, Answers]:
    """Return the labelled rows of each split that has some, the most telling first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    numbers: dict[str, list[Any]] = {}
    rest: dict[str, int] = {}
    names: dict[str, None] = {}
    kind = REGRESSION
    for row in run.predictions():
        split, label = str(row.get("split")), row.get("label")
        if label is None or "prediction" not in row:
            rest[split] = rest.get(split, 0) + 1
            continue
        found = row.pop("probabilities", None)
        if found is not None:
            kind = MULTI if isinstance(label, list) else SINGLE
            several = kind == MULTI
            names |= dict.fromkeys([*found, *(label if several else [label])])
            values = list(found.values()) if several else found.get(label, 0.0)
            if not several:
                row.setdefault("probability", max(found.values(), default=0.0))
            numbers.setdefault(split, []).append(values)
        rows.setdefault(split, []).append(row)
    sources = run.record.get("data", {})
    return {
        split: Answers(
            kind,
            split,
            list(names),
            rows[split],
            np.array(numbers.get(split, []), float),
            sources,
            rest.get(split, 0),
        )
        for split in sorted(rows, key=lambda split: (*ORDER, split).index(split))
    }


def places_of(values: Iterable[Any]) -> dict[Any, list[int]]:
    """Return where each value stands."""
    found: dict[Any, list[int]] = {}
    for i, value in enumerate(values):
        found.setdefault(value, []).append(i)
    return found
