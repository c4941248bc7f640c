"""Where predictions go: lines of JSON or csv, a file that a kill does not cost."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any

from llmft.console import say
from llmft.errors import CheckpointError, ConfigError, DataError, EnvironmentFault
from llmft.files import placed, read_object, sync, to_json, try_lock, write_json

ENDINGS = (".csv", ".jsonl")
# How a csv is written, as the flags are called.
OF_CSV = ("escape_formulas", "bom", "output_delimiter", "output_decimal")
# What a spreadsheet takes for a formula, also in quotes (OWASP, "CSV Injection").
_FORMULA = (*"=+-@\t\r\n", *"＝＋－＠")


def check_target(target: Path) -> None:
    """Raise ConfigError unless predictions can be written there."""
    if target.suffix.lower() not in ENDINGS:
        said = f"output_file is {target.name}, expected a name that ends in"
        raise ConfigError(f"{said} {' or '.join(ENDINGS)}")
    if target.exists() or target.is_symlink():
        raise ConfigError(
            "output_file is there: name another, or remove it", path=target
        )
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        said = "output_file: its folder is not there, or cannot be written"
        raise ConfigError(said, path=target)


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as lines of JSON."""
    return "".join(to_json(row) + "\n" for row in rows)


def is_formula(cell: Any) -> bool:
    """Return whether a spreadsheet would run what stands in a cell."""
    return isinstance(cell, str) and cell.startswith(_FORMULA)


def _escaped(cell: Any) -> Any:
    return f"'{cell}" if is_formula(cell) else cell


def _with_decimal(cell: Any, decimal: str) -> Any:
    return str(cell).replace(".", decimal) if isinstance(cell, float) else cell


def cells(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a row in csv.

    Each probability has its own, ``probabilities.NAME``; lists and objects are JSON.
    """
    for name, value in row.items():
        if name == "probabilities":
            yield from ((f"{name}.{key}", x) for key, x in value.items())
        else:
            yield name, to_json(value) if isinstance(value, list | dict) else value


def as_csv(
    rows: Sequence[Mapping[str, Any]],
    header: bool,
    escape_formulas: bool,
    delimiter: str,
    decimal: str = ".",
) -> str:
    """Return rows as csv, every text in quotes, with a line of ``header`` or without.

    With ``escape_formulas``, an apostrophe stands before what ``is_formula``. Numbers
    with a ``decimal`` of their own are in quotes, too.
    """
    flat = [dict(cells(row)) for row in rows]
    if escape_formulas:
        flat = [{_escaped(n): _escaped(x) for n, x in row.items()} for row in flat]
    if decimal != ".":
        flat = [{n: _with_decimal(x, decimal) for n, x in row.items()} for row in flat]
    written = io.StringIO()
    # In quotes: csv does not put them around a lone carriage return by itself.
    how: Any = {"quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n"}
    writer = csv.DictWriter(written, [*flat[0]], delimiter=delimiter, **how)
    if header:
        writer.writeheader()
    writer.writerows(flat)
    return written.getvalue()


class Printed:
    """Standard output, as lines of JSON; ``over`` where its reader has gone."""

    rows = 0

    def __init__(self) -> None:
        self.stream, self.over = sys.stdout, False
        self.counts: dict[str, int] = {}
        self.choices: dict[str, Any] = {}

    def write(
        self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]
    ) -> None:
        """Print rows; a terminal gets no control characters of the data."""
        if self.stream.isatty():
            with redirect_stdout(self.stream):  # it may be sent elsewhere meanwhile
                for row in rows:
                    say(to_json(row))
            return
        try:
            # Bytes: a line is UTF-8 also where the locale is not.
            self.stream.flush()
            raw = as_jsonl(rows).encode("utf-8", "backslashreplace")
            self.stream.buffer.write(raw)
            self.stream.buffer.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            self.over = True

    def finish(self) -> None:
        """Do nothing: all is out."""


class Part:
    """A file beside the target that holds whole blocks, and becomes it in the end.

    Attributes:
        rows: how many are in it. counts: what was noted of them.
        choices: what they were made with, {} at the start; set it before writing.
        state: the file that says so.
    """

    over = False

    def __init__(self, target: Path, stream: IO[bytes], made_of: Mapping[str, Any]):
        self.target, self.stream = target, stream
        self.path = Path(stream.name)
        self.state = target.with_name(f"{target.name}.part.state")
        self.made_of = json.loads(to_json(made_of))
        self.is_csv = target.suffix.lower() == ".csv"
        formulas, self.bom, self.delimiter, decimal = map(made_of.get, OF_CSV)
        self.decimal = decimal or "."
        self.escape_formulas = bool(formulas)
        self.rows, self.size = 0, 0
        self.counts: dict[str, int] = {}
        self.choices: dict[str, Any] = {}

    def take_up(self) -> None:
        """Go on after the last whole block of a run that was stopped.

        Raises CheckpointError where that was another one, or blocks are missing.
        """
        held = os.fstat(self.stream.fileno()).st_size
        known = read_object(self.state)
        if not held:  # what the state says has been taken away
            self.state.unlink(missing_ok=True)
            return
        anew = f"remove {self.path.name} to start anew"
        if not known:
            said = "nothing says what this part was made of"
            raise CheckpointError(said, hint=anew, path=self.path)
        before = known.get("made_of", {})
        differ = [n for n in self.made_of if before.get(n) != self.made_of[n]]
        if differ:
            said = f"this part was made with other {' and '.join(differ)}"
            hint = f"give the same as before, or {anew}"
            raise CheckpointError(said, hint=hint, path=self.path)
        if held < known["size"]:
            said = f"the part has {held:,} bytes of {known['size']:,}"
            raise CheckpointError(said, hint=anew, path=self.path)
        self.rows, self.size = known["rows"], known["size"]
        self.counts, self.choices = known["counts"], known["choices"]
        self.stream.truncate(self.size)
        self.stream.seek(self.size)

    def write(
        self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]
    ) -> None:
        """Write a block to the disk, then how far the part goes."""
        text = as_jsonl(rows)
        if self.is_csv:
            how = self.escape_formulas, self.delimiter or ",", self.decimal
            text = as_csv(rows, not self.rows, *how)
            text = "\ufeff" + text if self.bom and not self.rows else text
        try:
            # Half a character, in a column that goes along, is written as JSON has it.
            raw = text.encode("utf-8", "backslashreplace")
            self.size += self.stream.write(raw)
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise placed(error, self.path) from None
        self.rows += len(rows)
        known = {"made_of": self.made_of, "choices": self.choices}
        known |= {"rows": self.rows, "size": self.size, "counts": dict(counts)}
        write_json(self.state, known)

    def finish(self) -> None:
        """Let the part become the target.

        Raises EnvironmentFault where there is one by now.
        """
        if self.target.exists():
            said = f"it came while the predictions were made, which are in {self.path}"
            raise EnvironmentFault(said, hint="move one of them", path=self.target)
        os.replace(self.path, self.target)
        self.state.unlink(missing_ok=True)
        sync(self.target.parent)


@contextmanager
def opened_part(target: Path, made_of: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the part of a target, taken up where one is there.

    It goes where no row is in it, or bad data keep it from becoming anything.

    Raises:
        CheckpointError: see ``Part.take_up``.
        EnvironmentFault: another process writes it.
    """
    path = target.with_name(f"{target.name}.part")
    with open(path, "r+b" if path.exists() else "w+b") as stream:
        if not try_lock(stream.fileno()):
            said = "another process is writing there"
            raise EnvironmentFault(said, hint="wait until it ends", path=path)
        part = Part(target, stream, made_of)
        part.take_up()
        try:
            yield part
        except DataError:
            part.rows = 0
            raise
        except BaseException:
            if part.rows:
                said = f"the same command goes on after {part.rows:,} rows"
                say(f"stopped    {said}")
            raise
        finally:
            if not part.rows:
                path.unlink(missing_ok=True)
                part.state.unlink(missing_ok=True)
