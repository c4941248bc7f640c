"""The frame around every command: signals, exit codes, and what an error stands for.

Neither this module nor what it imports loads torch: ``limit_spinning`` comes first.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import psutil

from llmft import __version__
from llmft.console import LIBRARIES, crashes_to, lenient_stderr, logger
from llmft.errors import (
    ConfigError,
    EnvironmentFault,
    LlmftError,
    escape,
    nearest,
    out_of_memory,
)
from llmft.files import cache_home
from llmft.signals import Terminated, in_main_thread, of_workers, stopped_by, terminable

INTERRUPTED, TERMINATED = 130, 143
RECIPES = ("mlm", "classify", "generate")
PACKED = "_recipes"  # their folder in the package of an installed wheel
_PACKAGES = ("transformers", "torch", "datasets", "accelerate", "tokenizers")
_SPACE, _NETWORK = "free some space", "check network and proxy"
_NO_SPACE = 2**18  # bytes; an error comes before the last of them is taken
_NO_SHARED = "(allocate|out of) shared memory"  # of torch
_SHARED = Path("/dev/shm")
# What is written beside the folder of a run, and what helps where that is full.
_PLACES: list[tuple[Callable[[], Path | None], str]] = [
    (
        lambda: _SHARED,
        "--dataloader_num_workers 0 needs hardly any; a container gets more by"
        " --shm-size",
    ),
    (cache_home, "`llmft cache clear` frees some, LLMFT_HOME names another folder"),
    (lambda: Path(tempfile.gettempdir()), "free some, or name another in TMPDIR"),
]
_HINTS = {  # by the names of errno
    "ENOSPC EDQUOT": _SPACE,
    "EACCES EPERM": "check the permissions",
    "EROFS": "choose a folder that can be written",
    "EMFILE ENFILE": "raise the limit of open files (`ulimit -n`), or lower"
    " dataloader_num_workers",
    "ENOENT ENOTDIR EISDIR": "check the path",
    "ECONNREFUSED ETIMEDOUT ENETUNREACH EHOSTUNREACH": _NETWORK,
}


# When what a time limit is of began; None: with this process.
began: ContextVar[float | None] = ContextVar("began", default=None)
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@cache
def spinning(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return how long OpenMP's threads wait for each other before they sleep, by name.

    Rounds of spinning (libgomp), milliseconds (Intel and LLVM, not measured). In
    samples/s of masked LM, alone, beside a busy program, and the sum of two trainings,
    on 2 cores. AMD EPYC with AVX512-BF16: libgomp's own 51, 2, 4; 10,000 51, 17, 34;
    3,000 49, 24, 48; 1,000 49, 27, 53; 0 44, 30, 55; on a quiet one alone, in turns,
    libgomp's own 49.8 and 48.1, 1,000 50.9 and 50.6. Intel Xeon with AMX, virtual:
    10,000 49.3 alone, two 40; 3,000 45.5, 48; 1,000 43.0, 48; a step of classification
    alone and beside a program 188 and 455 ms, 196 and 342, 216 and 311. So a thread is
    woken late there: what loses least in the worst case.
    """
    rounds = "3000"
    with suppress(OSError), cpuinfo.open() as lines:
        if re.search(r"^vendor_id\s*: AuthenticAMD$", lines.read(4096), re.M):
            rounds = "1000"
    return {"GOMP_SPINCOUNT": rounds, "KMP_BLOCKTIME": "1"}


def limit_spinning() -> None:
    """Let threads that wait spin only shortly, unless the user has set how they wait.

    OpenMP reads it when torch loads it: once torch is there, nothing is changed.
    """
    if "torch" not in sys.modules and not os.environ.keys() & {*WAITING_VARIABLES}:
        os.environ.update(spinning())


def quiet_libraries() -> None:
    """Keep log lines and warnings of the libraries loaded so far off the terminal."""
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets)\b.*")
    if "transformers" in sys.modules:  # bars for loading and saving weights
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


@contextmanager
def libraries_as_before() -> Iterator[None]:
    """Undo after the block what ``quiet_libraries`` and ``load_script`` do in it."""
    from transformers.utils import logging as theirs

    before, shown = [], theirs.is_progress_bar_enabled()
    for library in map(logging.getLogger, LIBRARIES):
        before.append((library, [*library.handlers], library.propagate, library.level))
    scripts = {name: sys.modules.get(name) for name in RECIPES}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if shown:
            theirs.enable_progress_bar()
        for library, handlers, propagate, level in before:
            library.handlers, library.propagate = handlers, propagate
            library.setLevel(level)
        for name, script in scripts.items():
            if script is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = script


def run_script(path: str, argv: list[str]) -> int:
    """Run ``main(argv)`` of the script at ``path``, as ``run_command`` does.

    The script is imported for that, with threads that do not spin and inside the frame:
    so it begins with this call, above its other imports.
    """

    limit_spinning()
    return run_command(lambda argv: run_main(Path(path), argv), argv)


def run_main(script: Path, argv: list[str]) -> None:
    """Run ``main(argv)`` of a script; ``--help`` of llmft's own comes at once."""
    if {"-h", "--help"} & {*argv} and (text := help_of(script)):
        print(text, end="")
    else:
        main = load_script(str(script)).main
        gc.freeze()  # what imports left: 0.6 s of going through it, on an AMD EPYC
        main(argv)


def recipe_file(name: str) -> Path:
    """Return the file of a recipe: of the checkout, or as the wheel carries it.

    Raises:
        ConfigError: there is no recipe of that name.
        EnvironmentFault: it is in neither.
    """
    if name not in RECIPES:
        said = f"no recipe {name!r}, expected one of {', '.join(RECIPES)}"
        raise ConfigError(f"{said}{nearest(name, RECIPES)}")
    package = Path(__file__).parent
    for folder in (package / PACKED, package.parent / "recipes"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise EnvironmentFault("the recipes are not there", hint="install llmft again")


def by_llmft(script: Path) -> bool:
    """Return whether `llmft NAME` starts a recipe: a wheel's own, or as it was now."""
    now = Path(sys.argv[0])
    if script.parent.name == PACKED:
        return True
    began = now.stem == "llmft" or now.parts[-2:] == ("llmft", "__main__.py")
    return began and script.stem in RECIPES and _ours(script)


def _ours(script: Path) -> bool:
    return script.resolve() == recipe_file(script.stem)


def help_of(script: Path) -> str | None:
    """Return the ``--help`` of a recipe that is one of llmft's own, else None.

    It is kept as a text (scripts/write_help.py), since the parser that says the same
    needs transformers: 5 seconds on two cores of an AMD EPYC.
    """
    kept = Path(__file__).parent / "config" / "help" / f"{script.stem}.txt"
    if script.stem not in RECIPES or not _ours(script):
        return None
    said, name = kept.read_text("utf-8"), f"llmft {script.stem}"
    if by_llmft(script):
        said = said.replace(f"python recipes/{script.name}", name)
        said = said.replace(f"usage: {script.name}", f"usage: {name}")
    return said


def load_script(path: str) -> Any:
    """Import the script at ``path`` and return it as a module."""
    # By this name, a worker in a new process finds what the script defines.
    loader = SourceFileLoader(Path(path).stem, path)
    spec = importlib.util.spec_from_file_location(loader.name, loader=loader)
    assert spec is not None  # as it could be without a loader
    script = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    with uncollected():
        loader.exec_module(script)
    quiet_libraries()  # those that came with it
    if stopped := stopped_by():  # and an import has swallowed it
        raise stopped
    return script


@contextmanager
def uncollected() -> Iterator[None]:
    """Do without the garbage collector in the block, which is one of imports.

    They leave next to none, and it would look through all of transformers again and
    again: 4.0 s instead of 5.0 to import a recipe, of two cores of an AMD EPYC.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run_command(main: Callable[[list[str]], object], argv: list[str]) -> int:
    """Run ``main(argv)`` and return the exit code of the contract in DESIGN.

    An ``LlmftError`` becomes one line on standard error; so does anything
    unforeseen, with the traceback in the debug log. ``--debug`` shows tracebacks.
    """
    if in_main_thread():
        # The work is done then: Ctrl-C could only interrupt Python's own end.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with lenient_stderr(), _quiet_end(), crashes_to():
        try:
            quiet_libraries()
            with terminable(at_once=True):
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
    sys.excepthook = of_workers(os.getpid())
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = unraisable, excepthook
        if in_main_thread():
            signal.signal(signal.SIGCHLD, child)


def _say_why(error: BaseException, debug: bool) -> int:
    """Report what ended a command; return the exit code."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        by_user = isinstance(error, KeyboardInterrupt)
        print(f"llmft: {'interrupted' if by_user else 'terminated'}", file=sys.stderr)
        return INTERRUPTED if by_user else TERMINATED
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


def as_fault(error: BaseException, place: Path | None = None) -> LlmftError | None:
    """Return ``error`` as an ``LlmftError`` if it is one or clearly stands for one.

    ``place`` is what to name where writing failed and the error names no file.
    """
    if isinstance(error, LlmftError):
        if "DataLoader worker process" in error.found:  # and its traceback, as text
            said = error.found.strip().splitlines()[-1].partition(": ")[2]
            error.found = said.removeprefix(error.kind).strip(": ")
        return error
    said = str(error)
    number, path = _number(error), getattr(error, "filename", None)
    if named := re.search(r"\[Errno \d+\] .*: '(.*)'$", said.strip()):  # of a worker
        path = path or named[1]
    if out_of_memory(error) or number == errno.ENOMEM:
        held = psutil.Process().memory_info().rss / 2**30
        return EnvironmentFault(
            f"out of memory: the process holds {held:.1f} GiB",
            hint="lower per_device_train_batch_size (raise gradient_accumulation_steps"
            " to keep the same total), per_device_eval_batch_size or max_seq_length",
        )
    cause = error.__cause__ or error.__context__
    if isinstance(error, ValueError) and "closed file" in said and cause:
        return as_fault(cause, place)  # what closed it, as a full disk under datasets
    if isinstance(error, socket.gaierror):
        reason, hint = str(error.strerror), _NETWORK
    elif number is not None:
        reason, name = os.strerror(number), errno.errorcode.get(number)
        hint = next((_HINTS[names] for names in _HINTS if name in names.split()), "")
    elif "PytorchStreamWriter failed" in said or "unexpected pos" in said:  # torch.save
        reason, hint = "writing failed, as without space on the device", _SPACE
    else:
        return None
    if hint == _SPACE and not path:
        path, hint = _full_place(said, place)
    elif hint != _NETWORK:
        path = path or place
    return EnvironmentFault(reason, hint=hint, path=path)


def _full_place(said: str, place: Path | None) -> tuple[Path | None, str]:
    """Return where there is no space left, and what helps, of an error without a path.

    ``place`` is where it is taken to be if there is some everywhere, as after the
    process that failed has ended.
    """
    if re.search(_NO_SHARED, said):
        return _SHARED, _PLACES[0][1]
    for find, hint in (*_PLACES, (lambda: place, _SPACE)):
        with suppress(OSError, EnvironmentFault):
            if (folder := find()) and shutil.disk_usage(folder).free < _NO_SPACE:
                return folder, hint
    return place, _SPACE


def _number(error: BaseException) -> int | None:
    """Return the system's number of an error, which some give in their text only.

    These are what Rust raises, torch, and what a worker of a data loader passes on.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = str(error)
    if isinstance(error, RuntimeError) and re.search(_NO_SHARED, said):
        return errno.ENOSPC
    known = r"\(os error (\d+)\)"  # safetensors, tokenizers
    if "DataLoader worker process" in said:
        known += r"|OSError: \[Errno (\d+)\]"
    found = re.findall(known, said)
    return int("".join(found[-1])) if found else None


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, "unknown" without metadata."""
    found = {"python": platform.python_version(), "llmft": __version__}
    for name in _PACKAGES:
        found[name] = "unknown"
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
