"""What reading met and went on with: counted, and said once for each kind."""

from __future__ import annotations

from collections import Counter

from llmft.errors import DataError, DataFormatError, counted, escape

SHOWN = 4  # bad rows that a message names


class Notes:
    """Counts what is unusual in files and was read all the same.

    Args:
        strict: what may be a fault is an error.

    Attributes:
        file: the path that is being read.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict, self.file = strict, ""
        self._told: dict[str, None] = {}
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def tell(self, what: str) -> None:
        """Note what was asked for, or harms nobody, as it is."""
        self._told[what] = None

    def count(self, what: str, place: int | str = "") -> None:
        """Count one of ``what``, at a line of the file, or path:line, or in the file.

        It is as it should be, and yet worth to know.
        """
        if isinstance(place, int):
            place = f"{self.file}:{place}"
        self._counts[what] += 1
        self._first.setdefault(what, place)

    def add(self, what: str, place: int | str = "") -> None:
        """Do the same of what may be a fault.

        Raises:
            DataFormatError: where all has to be as it should.
        """
        self.count(what, place)
        if self.strict:
            path = self._first[what] or self.file
            hint = "mend it, or allow it by leaving strict out"
            error = DataFormatError(what, hint=hint, path=path)
            error.unusual = True
            raise error

    def of_files(self) -> list[str]:
        """Return the notes that are no counts of rows."""
        return [*self._told, *(n for n in self._counts if not self._first[n])]

    def said(self) -> list[str]:
        """Return a note for each kind."""
        notes = [*self._told]
        for what, count in self._counts.items():
            place, several = self._first[what], count > 1
            if place:
                more = ", ..." * several
                notes.append(f"{counted(count, what)} ({escape(place)}{more})")
            else:
                notes.append(what + f", in {count:,} files" * several)
        return notes


def refusal(first: list[DataError], count: int, most: int | str | None) -> DataError:
    """Return the first of bad rows as an error that tells of the others.

    Args:
        first: some of them. count: how many they are. most: what max_bad_rows would
            leave them out; None: there would be no row left.
    """
    error = first[0]
    if count > 1:
        lines = [f"{e.path}:{e.line}" for e in first[1:SHOWN]]
        more = ", ..." if count > SHOWN else ""
        others = f"{count:,} rows are bad ({', '.join(lines)}{more})"
        error.expected = "; ".join(filter(None, [error.expected, others]))
    if most is not None:
        leave = f"--max_bad_rows {most} leaves bad rows out"
        error.hint = "; or ".join(filter(None, [error.hint, leave]))
    error.args = (str(error),)
    return error
