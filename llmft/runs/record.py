"""Reading run folders: what ran, its metrics, curves and predictions. Without torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.errors import ConfigError, DataError, EnvironmentFault, listed
from llmft.files import read_object, try_lock

OUTPUTS = "outputs"  # where runs are, unless --output_dir says otherwise
TIME = "%Y-%m-%dT%H:%M:%S%z"  # in run.json
KILLED = "killed"  # a status that no process could write


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
        return self.folder.name

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
    def seconds(self) -> float | None:
        """What all its legs took together; None where the last one was killed."""
        legs = [*self.record.get("legs", []), self.record]
        if any("seconds" not in leg for leg in legs):
            return None
        return float(sum(leg["seconds"] for leg in legs))

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
            if not entry["from"].startswith(("default", "follows"))
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

    def events(self) -> list[dict[str, Any]]:
        """Return what was logged, in order; of steps that a resume did again, once."""
        found = list(rows_of(self.folder / "metrics.jsonl"))
        legs = [*self.record.get("legs", []), self.record]
        for leg, record in enumerate(legs, start=1):
            step = Path(str(record.get("resumed") or "")).name.partition("-")[2]
            if step.isdigit():  # checkpoint-N, from which this leg went on
                found = [e for e in found if e["leg"] >= leg or e["step"] <= int(step)]
        return found

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``predictions.jsonl``; none where there is no such file."""
        yield from rows_of(self.folder / "predictions.jsonl")

    def size(self) -> int:
        """Return the bytes of all its files."""
        files = (path for path in self.folder.rglob("*") if not path.is_symlink())
        return sum(path.stat().st_size for path in files if path.is_file())


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file; what a kill left half written ends it."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return
                raise DataError("not JSON", path=f"{path}:{number}") from error


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
        os.close(descriptor)


def read_run(folder: Path) -> RunRecord:
    """Return the run in a folder. Raises ConfigError where there is none."""
    record = read_object(folder / "run.json")
    if not record:
        raise ConfigError("no run: there is no run.json", path=folder)
    return RunRecord(folder, record, read_object(folder / "metrics.json"))


def find_runs(root: Path) -> list[RunRecord]:
    """Return all runs in and below a folder, the oldest first."""
    found = []
    for folder, below, files in os.walk(root):
        if "run.json" in files:
            below.clear()  # folds and checkpoints are parts of the run
            with suppress(ConfigError):
                found.append(read_run(Path(folder)))
    return sorted(found, key=lambda run: (str(run.record.get("started")), run.name))


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
    found = runs[-1:] if name is None else [r for r in runs if name in r.name]
    if len(found) == 1:
        return found[0]
    if found:
        names = listed([run.name for run in found], 5, str)
        raise ConfigError(f"{name!r} is in the name of {len(found)} runs: {names}")
    what = "no runs yet" if name is None or not runs else f"no run {name!r}"
    raise ConfigError(f"{what}; runs are looked for in {root}", path=name)
