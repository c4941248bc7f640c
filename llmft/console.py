"""Terminal output and the debug log.

What a user should read goes to standard output through ``say``; problems go to
standard error. The libraries' own log lines go to ``debug.log`` of the run only.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from llmft.errors import EnvironmentFault, escape

logger = logging.getLogger("llmft")
LIBRARIES = "llmft transformers datasets accelerate huggingface_hub matplotlib".split()
_crashes: list[Any] = []  # where ``crashes_to`` has them written, the innermost last
_once: list[Counter[str]] = []  # warnings of ``warned_once``, the innermost last
_NARROWEST = 12  # columns that a cell of a table keeps at the least


def say(text: str = "", end: str = "\n") -> None:
    """Print ``text`` for the user and keep it in the debug log.

    Line breaks of ``text`` are kept; other control characters are escaped. A reader
    that has gone, such as `head`, changes nothing. Where standard output cannot take
    more, a run goes on with a warning: its debug log has the lines.

    Raises:
        EnvironmentFault: standard output cannot be written, and no run has begun.
    """
    shown = "\n".join(escape(line) for line in text.split("\n"))
    logger.debug("%s", shown)
    try:
        _print(shown, end)
    except OSError as error:
        _silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return
        said = f"standard output cannot be written: {error.strerror}"
        if not any(isinstance(h, logging.FileHandler) for h in logger.handlers):
            raise EnvironmentFault(said, hint="send it elsewhere") from error
        warn(f"{said}; the run goes on, the rest is in its logs/debug.log")


def _print(text: str, end: str) -> None:
    try:
        print(text, end=end, flush=True)
    except UnicodeEncodeError:  # a terminal that is not UTF-8, as under LANG=C
        encoding = sys.stdout.encoding or "ascii"
        _print(text.encode(encoding, "backslashreplace").decode(encoding), end)


def _silence(stream: Any) -> None:
    """Let ``stream`` lead nowhere, also what is still in its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _LenientError:
    """Standard error that falls silent where it cannot be written.

    Progress bars go there: a full disk under a log file, or a reader that has gone,
    must not end the training. The debug log says it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._lenient(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._lenient(self._stream.flush)

    def _lenient(self, call: Callable[..., Any], *given: str) -> None:
        try:
            call(*given)
        except OSError as error:
            _silence(self._stream)
            logger.warning("standard error cannot be written: %s", error.strerror)


@contextmanager
def lenient_stderr() -> Iterator[None]:
    """Let standard error fall silent in the block where it cannot be written."""
    standard = sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stderr = _LenientError(standard or nowhere)  # None where it was closed
        try:
            yield
        finally:
            sys.stderr = standard


def warn(text: str) -> None:
    """Print a line that the user should not miss to standard error."""
    if _once:
        _once[-1][text] += 1
        if _once[-1][text] > 1:
            logger.warning("%s", text)
            return
    print(f"llmft: warning: {escape(text)}", file=sys.stderr, flush=True)
    logger.warning("%s", text)


@contextmanager
def warned_once() -> Iterator[None]:
    """Print each warning of the block the first time only, and how many came again."""
    _once.append(Counter())
    try:
        yield
    finally:
        again = (found := _once.pop()).total() - len(found)
        if again:
            say(f"warnings   {again:,} more, each the same as one above")


def width(text: str) -> int:
    """Return the columns of a terminal that ``text`` takes; a wide letter takes two."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def short(path: Path) -> str:
    """Return ``path`` relative to the working directory where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def cut(text: str, columns: int) -> str:
    """Return ``text``; its start and ``...`` where it is wider than ``columns``."""
    if width(text) <= columns:
        return text
    taken = accumulate(map(_columns, text))
    return text[: sum(t <= columns - 3 for t in taken)] + "..."


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Lay out ``rows`` under ``header``; numbers are set to the right.

    On a terminal, the longest cells are cut so that a row takes one line.
    """
    cells = [[escape(c) for c in row] for row in (header, *rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(header))]
    room = terminal_columns() - 2 * len(widths)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    right = [
        all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))
    ]
    lines = []
    for row in cells:
        line = ""
        for cell, columns, to_right in zip(row, widths, right, strict=True):
            shown = cut(cell, columns)
            space = " " * (columns - width(shown))
            line += "  " + (space + shown if to_right else shown + space)
        lines.append(line.rstrip())
    return "\n".join(lines)


def terminal_columns() -> int:
    """Return the width of the terminal; no limit where the output goes elsewhere."""
    shown = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if shown else sys.maxsize


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Send the log of llmft and of the libraries under it to ``path`` in the block.

    What ends the block goes there with its traceback.
    """
    handler = logging.FileHandler(path, "a", "utf-8", errors="backslashreplace")
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    levels = {library: library.level for library in map(logging.getLogger, LIBRARIES)}
    for library in levels:
        library.setLevel(logging.DEBUG if library is logger else logging.INFO)
        library.addHandler(handler)
    try:
        yield
    except BaseException:
        logger.error("the run ended here", exc_info=True)
        raise
    finally:
        for library, level in levels.items():
            library.removeHandler(handler)
            library.setLevel(level)
        handler.close()


@contextmanager
def crashes_to(path: Path | None = None) -> Iterator[None]:
    """Have a crash in C code write where Python was to a file, or standard error.

    Within another one it takes the place of that for the while. Where somebody else has
    asked for that already (PYTHONFAULTHANDLER), it stays as it is.
    """
    if faulthandler.is_enabled() and not _crashes:
        yield
        return
    with ExitStack() as stack:
        # Standard error may be no file.
        with suppress(OSError, ValueError, AttributeError):
            stream: Any = sys.__stderr__
            if path:
                stream = stack.enter_context(open(path, "a"))
            faulthandler.enable(stream)
            _crashes.append(stream)
            stack.callback(_crashes_as_before)
        yield


def _crashes_as_before() -> None:
    _crashes.pop()
    if _crashes:
        faulthandler.enable(_crashes[-1])
    else:
        faulthandler.disable()
