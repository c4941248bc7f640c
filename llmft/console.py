"""Terminal output, the debug log, and the frame around every command.

What a user should read goes to standard output through ``say``; problems go to
standard error. The libraries' own log lines go to ``debug.log`` of the run only.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import signal
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any

from llmft.errors import EnvironmentFault, LlmftError, escape

logger = logging.getLogger("llmft")
_LIBRARIES = ("llmft", "transformers", "datasets", "accelerate", "huggingface_hub")
INTERRUPTED, TERMINATED = 130, 143
_NARROWEST = 12  # columns that a cell of a table keeps at the least


class Terminated(BaseException):
    """Raised in the main thread when the process receives SIGTERM."""


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
        print(
            text.encode(encoding, "backslashreplace").decode(encoding),
            end=end,
            flush=True,
        )


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
        try:
            return self._stream.write(text)
        except OSError as error:
            return self._give_up(error, len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError, written: int = 0) -> int:
        _silence(self._stream)
        logger.warning("standard error cannot be written: %s", error.strerror)
        return written


def warn(text: str) -> None:
    """Print a line that the user should not miss to standard error."""
    print(f"llmft: warning: {escape(text)}", file=sys.stderr, flush=True)
    logger.warning("%s", text)


def width(text: str) -> int:
    """Return the columns of a terminal that ``text`` takes; a wide letter takes two."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


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
    levels = {}
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        levels[name] = library.level
        library.setLevel(logging.DEBUG if name == "llmft" else logging.INFO)
        library.addHandler(handler)
    try:
        yield
    except BaseException:
        logger.error("the run ended here", exc_info=True)
        raise
    finally:
        for name, level in levels.items():
            library = logging.getLogger(name)
            library.removeHandler(handler)
            library.setLevel(level)
        handler.close()


def quiet_libraries() -> None:
    """Keep the libraries' log lines and warnings off the terminal."""
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets)\b.*")
    if "transformers" in sys.modules:  # bars for loading and saving weights
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


class _Stop:
    """The handler of Ctrl-C and SIGTERM: raises, and remembers that it did.

    The exception can get lost: Python ignores it inside ``__del__`` and in what runs
    after a fork. Or another one follows, of the data loader whose workers end too.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.received: type[BaseException] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker, forked with this handler
            os._exit(128 + number)
        # What workers say from now on, and ``__del__`` about them, is noise of ending.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.unraisablehook = lambda lost: logger.debug("ignored: %r", lost.exc_value)
        self.received = KeyboardInterrupt if number == signal.SIGINT else Terminated
        raise self.received

    def excepthook(self, kind: Any, error: Any, trace: Any) -> None:
        """Let a thread of a worker whose parent has gone end in silence."""
        if os.getpid() == self.process or not issubclass(kind, ConnectionError):
            sys.__excepthook__(kind, error, trace)


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into ``Terminated`` inside the block; restore the handlers after.

    Ctrl-C stays ``KeyboardInterrupt``. Whatever other exception ends the block after
    one of these signals becomes that of the signal.
    """
    stop, ours = _Stop(), [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        ours.append(signal.SIGINT)
    previous = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    except Exception as error:
        if stop.received:
            raise stop.received from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped_by() -> type[BaseException] | None:
    """Return what Ctrl-C or SIGTERM has raised in this ``terminable`` block, if any."""
    stop = signal.getsignal(signal.SIGTERM)
    return stop.received if isinstance(stop, _Stop) else None


@contextmanager
def _lenient_stderr() -> Iterator[None]:
    standard = sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stderr = _LenientError(standard or nowhere)  # None where it was closed
        try:
            yield
        finally:
            sys.stderr = standard


def run_command(main: Callable[[list[str]], object], argv: list[str]) -> int:
    """Run ``main(argv)`` and return the exit code of the contract in DESIGN.

    An ``LlmftError`` becomes one line on standard error; so does anything
    unforeseen, with the traceback in the debug log. ``--debug`` shows tracebacks.
    """
    # The work is done then: Ctrl-C could only interrupt Python's own end.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with _lenient_stderr(), _quiet_end():
        try:
            quiet_libraries()
            with terminable():
                main(argv)
            return 0
        except SystemExit as stop:  # argparse, after --help
            return stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:
            return _say_why(error, "--debug" in argv)


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Restore what a stop by signal changes, so that commands can follow each other."""
    unraisable, excepthook = sys.unraisablehook, sys.excepthook
    child = signal.getsignal(signal.SIGCHLD)
    sys.excepthook = _Stop().excepthook
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = unraisable, excepthook
        signal.signal(signal.SIGCHLD, child)


def _say_why(error: BaseException, debug: bool) -> int:
    """Report what ended a command; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("llmft: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, Terminated):
        print("llmft: terminated", file=sys.stderr)
        return TERMINATED
    fault = as_fault(error)
    logger.error("%s\n%s", error, traceback.format_exc())
    if debug:
        traceback.print_exc()
    if fault is None:
        said = f"{type(error).__name__}: {error}"
        print(f"llmft: InternalError: {escape(said, 400)}", file=sys.stderr)
        print("llmft: run again with --debug for details", file=sys.stderr)
        return 1
    print(f"llmft: {fault}", file=sys.stderr)
    return fault.exit_code


def as_fault(
    error: BaseException, place: str | Path | None = None
) -> LlmftError | None:
    """Return ``error`` as an ``LlmftError`` if it is one or clearly stands for one.

    ``place`` is what to name where writing failed and the error names no file.
    """
    if isinstance(error, LlmftError):
        if "DataLoader worker process" in error.found:  # and its traceback, as text
            said = error.found.strip().splitlines()[-1].partition(": ")[2]
            error.found = said.removeprefix(error.kind).strip(": ")
        return error
    said = str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in said:
        return EnvironmentFault(
            "out of memory",
            hint="lower per_device_train_batch_size (raise gradient_accumulation_steps"
            " to keep the same total) or max_seq_length",
        )
    reason, path = None, None
    cause = error.__cause__ or error.__context__
    if isinstance(error, ValueError) and "closed file" in said and cause:
        return as_fault(cause, place)  # what closed it, as a full disk under datasets
    if isinstance(error, OSError) and error.errno is not None:
        reason, path = os.strerror(error.errno), error.filename
    elif number := re.search(r"\(os error (\d+)\)", said):  # safetensors, tokenizers
        reason = os.strerror(int(number[1]))
    elif "PytorchStreamWriter failed" in said or "unexpected pos" in said:  # torch.save
        reason = "writing failed, as without space on the device"
    if reason is None:
        return None
    hint = "check free space and permissions there"
    return EnvironmentFault(reason, hint=hint, path=path or place)
