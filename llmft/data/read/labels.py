"""What a label is: the rule by which the values of a label column become labels.

Text, whole numbers and true/false are classes, a list is several classes at once,
and numbers of which some have a fraction are scores. ``--problem_type`` overrules it.
What spreadsheets, pandas and R make of these is read as what it was, and noted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmft.config.convert import label_separator
from llmft.data.read.notes import Notes
from llmft.data.read.similar import NUMBER, refuse_similar
from llmft.data.read.written import list_in, with_point
from llmft.errors import LabelError, counted, listed, shorten
from llmft.files import to_json

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
_TRUTHS = ("true", "false")
_WHOLE = re.compile(r"([-+]?\d{1,15})\.0+")  # of a column that has gaps, in pandas
_EXPECTED = {
    None: "a label: text that is not empty, a number, true/false, or a list of them",
    SINGLE: "a label: text that is not empty, a whole number, or true/false",
    MULTI: "a list of labels, or text with --label_delimiter",
    REGRESSION: "a finite number, such as 3.5",
}


def class_name(value: Any) -> str | None:
    """Return the text that stands for a class, or None where it is not one.

    Text stands for itself, 3 for "3", true for "true"; None, "", fractions, lists and
    numbers of more than 64 bits are not classes.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value if isinstance(value, str) and value.strip() else None


_KNOWN = 10_000
_IDS, _CLASSES = 0.9, 100  # more than this part of the rows, and than so many, are ids


class LabelRule:
    """Spells each label as text, and decides by all of them what they are.

    Args:
        problem_type: as in a config of transformers; None decides by the values.
        delimiter: between the labels of a text, where the labels are several.
        notes: are told what was no label as it stood, and was read as one.
    """

    def __init__(
        self,
        problem_type: str | None = None,
        delimiter: str | None = None,
        notes: Notes | None = None,
    ) -> None:
        self.problem_type, self.delimiter = problem_type, delimiter
        self.notes = notes or Notes()
        if delimiter is not None:
            self.delimiter = label_separator(delimiter)
            self.problem_type = problem_type or MULTI
        # The first place where each kind of value was seen, and what it looked like.
        self._seen: dict[str, tuple[str, str]] = {}
        # Texts that are numbers, some with a fraction; and names.
        self._numbers = self._fractions = self._names = 0
        self._name = ("", "")  # the first, and its place
        self._truths: dict[str, str] = {}  # how true and false are written
        self._known: set[str] = set()  # texts that stand for themselves
        self._commas = 0  # decimal ones
        self._whole = ""  # where the first 1.0 is, that is stored as 1
        # Of the lists so far: whether there is one without, and with the delimiter;
        # how long all are that hold nothing but 0 and 1, 0 where they are no such rows.
        self._plain = self._split = False
        self._hot: int | None = None

    @property
    def undelimited(self) -> bool:
        """Whether there were labels, and none of them held the delimiter."""
        return self._plain and not self._split

    @property
    def expected(self) -> str:
        """What ``spell`` accepts."""
        return "expected " + _EXPECTED[self.problem_type]

    def spell(self, value: Any, place: str) -> str | None:
        """Return the text to store for a label, or None where it is not one.

        A list is stored as JSON, a number of a regression as Python writes it.
        """
        spelled, kind = self._spelled(value, place)
        if spelled is not None and kind not in self._seen:
            seen = spelled if isinstance(value, bool) else repr(value)[:40]
            self._seen[kind] = (place, seen)
        return spelled

    def _spelled(self, value: Any, place: str) -> tuple[str | None, str]:
        if isinstance(value, str):
            value = self._read_text(value, place)
        if self.problem_type == REGRESSION:
            return _finite(value), "number"
        if self.delimiter is not None and isinstance(value, str):
            parts = [part.strip() for part in value.split(self.delimiter)]
            self._plain |= len(parts) == 1 and parts != [""]
            self._split |= len(parts) > 1
            value = [part for part in parts if part]
        if isinstance(value, list | tuple):
            names = [class_name(part) for part in value]
            flat = len(names) > 1 and {*names} <= {"0", "1", "true", "false"}
            self._hot = len(names) * (flat and self._hot in (None, len(names)))
            good = None not in names and self.problem_type != SINGLE
            return (to_json(names) if good else None), "list"
        if self.problem_type == MULTI:
            return None, "list"
        if isinstance(value, float):
            if not math.isfinite(value):
                return None, "number"
            kind = "whole" if value.is_integer() else "fraction"
            self._whole = self._whole or (place if kind == "whole" else "")
            if self.problem_type == SINGLE:
                return class_name(value), kind
            return class_name(value) or repr(value), kind
        if isinstance(value, str):
            self._note_number(value, place)
            whole = _WHOLE.fullmatch(value)
            self._whole = self._whole or (place if whole else "")
            return class_name(whole[1] if whole else value), "text"
        kind = "true/false" if isinstance(value, bool) else "whole number"
        return class_name(value), kind

    def _read_text(self, text: str, place: str) -> Any:
        """Return what a text was before a spreadsheet or a program wrote it."""
        if text in self._known:
            return text
        kind, lower = self.problem_type, text.lower()
        if kind in (None, REGRESSION) and (number := with_point(text)):
            self.notes.add("numbers with a decimal comma", place)
            self._commas += 1
            return number
        if kind in (None, MULTI) and self.delimiter is None:
            found = list_in(text.strip())
            if found is not None:
                self.notes.add("labels are lists written as text", place)
                return found
        if kind in (None, SINGLE) and lower in _TRUTHS:
            first = self._truths.setdefault(lower, text)
            if first != text:
                what = f"labels that differ from {first!r} by case alone, taken for it"
                self.notes.add(what, place)
                return first
        if len(self._known) < _KNOWN:
            self._known.add(text)
        return text

    def _note_number(self, text: str, place: str) -> None:
        if NUMBER.fullmatch(text) is None:
            self._name = self._name if self._names else (place, text)
            self._names += 1
        else:
            self._numbers += 1
            self._fractions += not float(text).is_integer()

    def decide(self, source: str) -> str:
        """Return the problem type of the labels that were spelled.

        Raises:
            LabelError: they are of kinds that do not go together, such as 1 and "1"; or
                each is a row of 0 and 1.
        """
        refused = partial(LabelError, path=source)
        if self._hot:  # with names 0 and 1, all rows would have both
            raise refused(
                f"each label is a list of {self._hot} values that are 0 or 1",
                "expected the names of the classes that a text has",
                "write the names for which the value is 1",
            )
        if self.problem_type is not None:
            return self._noted(self.problem_type)
        kinds = set(self._seen)
        whole = "whole" in kinds and kinds <= {"whole", "whole number"}
        if kinds == {"list"}:
            return MULTI
        if kinds == {"text"} and self._fractions and not self._names:
            return REGRESSION
        several = 2 * self._fractions > self._numbers + self._names
        if self._names and (several or self._commas):
            place, text = self._name
            raise refused(
                f"{shorten(text)} at {place} among {self._numbers:,} numbers",
                "expected numbers with a fraction in all rows, or names",
                f"mend it, or say what they are: --problem_type {SINGLE}",
            )
        if "fraction" in kinds and kinds <= {"fraction", "whole", "whole number"}:
            return REGRESSION
        shown = ", ".join(f"{value} at {place}" for place, value in self._seen.values())
        if len(kinds) > 1 and not whole:
            raise refused(
                f"labels of different kinds: {shown}",
                "expected one way to write them",
                "write them alike, or say what they are with --problem_type",
            )
        return self._noted(SINGLE)

    def _noted(self, problem_type: str) -> str:
        if self._whole and problem_type == SINGLE:  # as of a column with gaps in pandas
            what = "labels such as 1.0 taken for the class 1, no number"
            self.notes.add(f"{what}, the first at {self._whole}")
        return problem_type


@dataclass(frozen=True)
class LabelNames:
    """Class names by id. Numbers are in numeric order, other names in alphabetical.

    The one output of a regression has the name that transformers gives it, LABEL_0.
    """

    names: tuple[str, ...]
    problem_type: str = SINGLE

    @classmethod
    def of(
        cls,
        labels: list[str],
        allow: Collection[str] = (),
        problem_type: str = SINGLE,
        path: str | None = None,
        place: Callable[[int], str] | None = None,
    ) -> LabelNames:
        """Collect the classes of training labels, as ``Source`` has them.

        ``path`` names them in a message, ``place`` gives path:line of a row.

        Raises:
            LabelError: all rows have the same label, but for ``one_class`` in
                ``allow``; or nearly each its own, but for ``many_classes``; or classes
                such as Yes and yes, but for ``similar_labels``.
        """
        if problem_type == REGRESSION:
            counts = Counter({"LABEL_0": 1})
            same = len(set(map(float, labels))) < 2
        elif problem_type == MULTI:
            of_rows = (dict.fromkeys(names_in(label)) for label in labels)
            counts = Counter(name for names in of_rows for name in names)
            same = all(count == len(labels) for count in counts.values())
        else:
            counts = Counter(labels)
            same = len(counts) < 2
        rows = f"{len(labels):,} training rows"
        if not counts:
            raise LabelError(f"none of {rows} has a label", path=path)
        if same and "one_class" not in allow:
            one, more = (
                ("number", "s") if problem_type == REGRESSION else ("class", "es")
            )
            raise LabelError(
                f"all {rows} have the label {shorten(labels[0])}",
                f"expected at least two {one}{more}",
                f"give rows of another {one}; --allow one_class trains all the same",
                path=path,
            )
        ids = nearly_ids(problem_type, len(counts), len(labels))
        if ids and "many_classes" not in allow:
            raise LabelError(
                f"{rows} have {len(counts):,} classes, nearly one each: it looks like"
                " an id",
                "expected classes of several rows",
                "is --label_column_name right? --allow many_classes trains on them",
                path=path,
            )
        if "similar_labels" not in allow:
            several = problem_type == MULTI
            named = map(names_in, labels) if several else ([n] for n in labels)
            refuse_similar(counts, named, path, place)
        numeric = all(n.removeprefix("-").isdecimal() and len(n) < 20 for n in counts)
        # "1" and "01" are two classes: their order must not be that of a set.
        names = sorted(counts, key=lambda n: (int(n) if numeric else 0, n))
        return cls(tuple(names), problem_type)

    def targets(
        self, labels: list[str], split: str, place: Callable[[int], str] | None = None
    ) -> np.ndarray:
        """Return what a model is trained to give for each label.

        That is the class id, int64 of shape (rows,); or for several labels a row 1 for
        each that it has and else 0, float32 of shape (rows, classes); or for a
        regression the number, float32 of shape (rows,).

        Raises:
            LabelError: as ``ids``; or a number is too large for 32 bits.
        """
        if self.problem_type == SINGLE:
            return np.array(self.ids(labels, split, place), np.int64)
        if self.problem_type == REGRESSION:
            with np.errstate(over="ignore"):
                numbers = np.array(labels, np.float64).astype(np.float32)
            if len(bad := np.flatnonzero(~np.isfinite(numbers))):
                said = f"the label {labels[bad[0]]} is too large"
                where = place(int(bad[0])) if place else None
                expected = "expected a number of less than 3.4e38"
                raise LabelError(said, expected, path=where)
            return numbers
        named = [names_in(label) for label in labels]
        rows = np.repeat(np.arange(len(named)), [len(names) for names in named])
        flat = [name for names in named for name in names]
        of_row = (lambda i: place(int(rows[i]))) if place else None
        found = np.zeros((len(labels), len(self.names)), np.float32)
        found[rows, self.ids(flat, split, of_row)] = 1
        return found

    def ids(
        self, labels: list[str], split: str, place: Callable[[int], str] | None = None
    ) -> list[int]:
        """Return class ids; raise LabelError for labels that training does not have.

        A number also stands for the class of a model that calls it LABEL_number.
        ``place`` gives path:line of a row, for the message.
        """
        known = {str(i): i for i, n in enumerate(self.names) if n == f"LABEL_{i}"}
        known |= {name: i for i, name in enumerate(self.names)}
        truths = {n.lower(): i for n, i in known.items() if n.lower() in _TRUTHS}
        for label in {*labels} - known.keys():
            if label.lower() in truths:
                known[label] = truths[label.lower()]
        unknown = Counter(label for label in labels if label not in known)
        if unknown:
            pairs = sorted(unknown.items())
            rows = (f"{shorten(n)} ({counted(c, 'rows')})" for n, c in pairs)
            row = next(i for i, label in enumerate(labels) if label in unknown)
            raise LabelError(
                f"{split} has labels that train has not: {listed(rows, 5, str)}",
                f"known are {listed(self.names)}",
                "correct them, name other data, or add rows with them to train",
                path=place(row) if place else None,
            )
        return [known[label] for label in labels]


def names_in(label: str) -> list[str]:
    """Return the class names of a label of several, which is a JSON list of them."""
    return json.loads(label)


def nearly_ids(problem_type: str | None, classes: int, rows: int) -> bool:
    """Return whether so many classes of so many training rows look like ids."""
    return problem_type == SINGLE and classes > max(_IDS * rows, _CLASSES)


def _finite(value: Any) -> str | None:
    """Return a number as text that gives it back exactly, None where it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return repr(number) if math.isfinite(number) else None
