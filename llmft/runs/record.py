"""Reading run folders: what ran, its metrics, curves and predictions. Without torch."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.console import warn
from llmft.errors import (
    ConfigError,
    DataError,
    EnvironmentFault,
    listed,
    nearest,
    shorten,
)
from llmft.files import read_object, to_json, try_lock, write_text

# What a run makes, but for folds/ and notes.json; whatever else is there stays.
OF_RUN = (
    *("run.json", "metrics.json", "metrics.jsonl", "predictions.jsonl"),
    *("examples.json", "probe.safetensors", "report.html"),
    *("checkpoints", "logs", "model", "artifacts", "debug_batch", "profile"),
)
STOPPED = "stopped"  # where a run that starts anew puts what it did before
FOLDS = "folds"  # what a cross-validation keeps beside the run that ends it
OUTPUTS = "outputs"  # where runs are, unless --output_dir says otherwise
TIME = "%Y-%m-%dT%H:%M:%S%z"  # in run.json
_STATE = "trainer_state.json"  # of a checkpoint
KILLED = "killed"  # a status that no process could write
# Origins of arguments that nobody gave.
_CHOSEN = ("default", "follows", "auto", "auto_find_batch_size", "k_folds")
# By what a run is judged: the first part of metrics.json that is there, and in it the
# first metric.
PARTS = ("test", "folds", "eval")
HEADLINES = ("accuracy", "f1_micro", "r2", "perplexity", "loss")
_SHAPES: dict[str, Any] = {
    **dict.fromkeys(("data", "arguments", "choices", "versions", "model"), dict),
    **dict.fromkeys(("plan", "cpu"), dict),
    **dict.fromkeys(("started", "status", "recipe", "command"), str),
    "legs": list,
    "seconds": (int, float),
}


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        folder: of the run.
        record: what ``run.json`` holds.
        metrics: what ``metrics.json`` holds; empty where the run did not get there.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return os.path.basename(os.path.abspath(self.folder))  # also of "."

    @property
    def recipe(self) -> str:
        """``mlm``, ``classify`` or ``generate``."""
        return str(self.record.get("recipe", "unknown"))

    @cached_property
    def status(self) -> str:
        """``complete``, ``failed``, ``interrupted``, ``running`` or ``killed``."""
        said = str(self.record.get("status", "unknown"))
        return KILLED if said == "running" and not _is_held(self.folder) else said

    @property
    def started(self) -> datetime | None:
        """When its last leg began."""
        with suppress(KeyError, TypeError, ValueError):
            return datetime.strptime(self.record["started"], TIME)
        return None

    @property
    def began(self) -> str | None:
        """When its first leg began, as it stands in the record."""
        first: dict[str, Any] = next(iter(self.record.get("legs", [])), self.record)
        return first.get("started") or self.record.get("started")

    @property
    def seconds(self) -> float | None:
        """What all its legs took together, and the folds before them.

        None where the last leg was killed.
        """
        legs = [*self.record.get("legs", []), self.record]
        if any("seconds" not in leg for leg in legs):
            return None
        folds = self.metrics.get("k_folds", {}).get("seconds", 0.0)
        return float(sum(leg["seconds"] for leg in legs)) + folds

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument with its value."""
        found = self.record.get("arguments", {})
        return {name: entry["value"] for name, entry in found.items()}

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that were given: by flag, or in a file."""
        return {
            name: entry["value"]
            for name, entry in self.record.get("arguments", {}).items()
            if origin(entry) not in _CHOSEN
        }

    def measured(self) -> dict[str, dict[str, Any]]:
        """Return the parts of ``metrics.json`` that hold metrics: ``eval``, ``test``.

        Each is metrics by name, with value, n, standard error and split.
        """
        return {
            part: found
            for part, found in self.metrics.items()
            if isinstance(found, dict)
            if found
            and all(isinstance(x, dict) and "value" in x for x in found.values())
        }

    def headline(self) -> tuple[str, str, dict[str, Any]] | None:
        """Return part, name and entry of the metric that the run is judged by."""
        measured = self.measured()
        for part in (*PARTS, *measured):
            found = measured.get(part, {})
            for name in (*HEADLINES, *found):
                if found.get(name, {}).get("value") is not None:
                    return part, name, found[name]
        return None

    def events(self) -> list[dict[str, Any]]:
        """Return what was logged, in order; see ``drop_later``."""
        return list(rows_of(self.folder / "metrics.jsonl"))

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``predictions.jsonl``; none where there is no such file."""
        yield from rows_of(self.folder / "predictions.jsonl")


def drop_later(folder: Path, record: dict[str, Any]) -> None:
    """Leave in ``metrics.jsonl`` what was logged before the checkpoint that is resumed.

    Lines that are damaged, as the last one after a kill, go with a warning.

    Args:
        folder: of the run that the checkpoint is of.
        record: what its ``run.json`` holds now.
    """
    path, state = folder / "metrics.jsonl", Path(record["resumed"]) / _STATE
    saved = read_object(state)
    if not path.is_file() or not saved:
        return
    last, events, lost = saved["global_step"], list[dict[str, Any]](), 0
    for line in path.read_bytes().splitlines():
        event = None
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
        if isinstance(event, dict) and {"step", "leg"} <= event.keys():
            events.append(event)
        else:
            lost += 1
    if lost:
        warn(f"{path}: {lost} damaged lines are left out, as a kill leaves one")
    # Of its own step, what came after it was saved: the end of the run.
    at_last = [e for e in events if e["step"] == last]
    known = [e for e in saved["log_history"] if e.get("step") == last]
    gone = [*map(id, at_last[len(known) :])]
    kept = [e for e in events if e["step"] <= last and id(e) not in gone]
    write_text(path, "".join(to_json(event) + "\n" for event in kept))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file; what a kill left half written ends it.

    Raises DataError for a line that is none.
    """
    if not path.is_file():
        return
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            found = None
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
            if not isinstance(found, dict):
                if not line.endswith(b"\n"):
                    return
                raise DataError("not a JSON object", path=f"{path}:{number}")
            yield found


def _is_held(folder: Path) -> bool:
    """Return whether a process is at work in the folder, as ``folder.held`` says it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return True
    try:
        return not try_lock(descriptor)
    except OSError:  # a file system without locks
        return True
    finally:
        os.close(descriptor)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder of a run, as long as this one lives."""
    if sys.platform == "win32":  # it opens no folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    # Workers live a while longer than what was killed, and would hold it, too.
    ours = [descriptor]

    def let_go() -> None:
        while ours:
            os.close(ours.pop())  # once: its number may be another's later

    os.register_at_fork(after_in_child=let_go)
    try:
        free = True
        with suppress(OSError):  # a file system without locks
            free = try_lock(descriptor)
        if not free:
            raise EnvironmentFault(
                "another process is training there",
                hint="wait until it ends, or name another output_dir",
                path=folder,
            )
        yield
    finally:
        ours.clear()
        os.close(descriptor)


def read_run(folder: Path) -> RunRecord:
    """Return the run in a folder.

    Raises:
        ConfigError: there is none.
        DataError: its ``run.json`` is not what a run writes.
    """
    record = read_object(folder / "run.json")
    if not record:
        said = "no run: there is no run.json"
        if (folder / "run.json").exists():
            said = "no run: run.json is empty, damaged or cannot be read"
        raise ConfigError(said, path=folder)
    if wrong := _misshapen(record):
        raise DataError(f"no record of a run: {wrong}", path=folder / "run.json")
    return RunRecord(folder, record, read_object(folder / "metrics.json"))


def _misshapen(record: dict[str, Any]) -> str:
    """Return what of a record is not of its type, or ""."""
    for name, kind in _SHAPES.items():
        if name in record and not isinstance(record[name], kind):
            return f"{name} is {shorten(record[name])}"
    for name in ("data", "arguments", "choices"):
        for key, entry in record.get(name, {}).items():
            if not isinstance(entry, dict):
                return f"{name}.{key} is {shorten(entry)}"
            if name == "arguments" and not {"value", "from"} <= entry.keys():
                return f"{name}.{key} is {shorten(entry)}"
    wrong = [leg for leg in record.get("legs", []) if not isinstance(leg, dict)]
    return f"a leg is {shorten(wrong[0])}" if wrong else ""


def origin(argument: Mapping[str, Any]) -> str:
    """Return where an argument of a record is from, without the reason behind it."""
    return str(argument["from"]).split(": ")[0]


def in_force(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with no epochs where steps or a time limit overrule them."""
    overruled = values.get("time_limit") or (values.get("max_steps") or -1) > 0
    return {**values, **({"num_train_epochs": None} if overruled else {})}


def find_runs(root: Path) -> list[RunRecord]:
    """Return all runs in and below a folder, the oldest first.

    A folder whose ``run.json`` is damaged is warned of, and left out.
    """
    found = []

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # of a root that is not there
            warn(f"left out: {error.filename}: {error.strerror}")

    for folder, below, files in os.walk(root, onerror=tell):
        if "run.json" in files:
            below.clear()  # folds and checkpoints are parts of the run
            try:
                found.append(read_run(Path(folder)))
            except (ConfigError, DataError) as error:
                warn(f"left out: {error}")

    def when(run: RunRecord) -> tuple[float, str]:  # zones differ between containers
        return run.started.timestamp() if run.started else math.inf, run.name

    return sorted(found, key=when)


def find_run(name: str | None, root: Path = Path(OUTPUTS)) -> RunRecord:
    """Return the run that a user names.

    Args:
        name: its folder, or one in it as ``RUN/model``; or part of its folder's name
            that only one run below ``root`` has; None is the newest there.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if name is not None:
        path = Path(name).expanduser()
        for folder in (path, *path.absolute().parents[:2]) if path.exists() else ():
            if (folder / "run.json").is_file():
                return read_run(folder)
    runs = find_runs(root)
    if name is None:
        found = runs[-1:]
    else:
        found = [run for run in runs if name == run.name]
        found = found or [run for run in runs if name in run.name]
    if len(found) == 1:
        return found[0]
    if found:
        names = listed([run.name for run in found], 5, str)
        raise ConfigError(f"{name!r} is in the name of {len(found)} runs: {names}")
    what = "no runs yet"
    if name is not None and runs:
        what = f"no run {name!r}{nearest(name, [run.name for run in runs])}"
    said = f"{what}; runs are looked for in {root}, `llmft runs` lists them"
    raise ConfigError(said, path=name)
