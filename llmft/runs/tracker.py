"""Run folders of your own scripts, for ``llmft runs`` and all that reads them.

    with ExperimentTracker("outputs/mine/first", {"learning_rate": 0.1}) as tracker:
        tracker.log({"loss": 0.7}, step=10)
        tracker.result("test", "accuracy", 0.91, stderr=0.01, n=1000)
        tracker.artifact("vocabulary.txt")

It needs no torch. ``run.json`` says how the block ended, as that of a recipe does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from llmft.errors import ConfigError, DataError, EnvironmentFault, shorten
from llmft.files import file_sha256, finite, to_json, write_json, write_text
from llmft.process import terminable, versions
from llmft.runs.record import OUTPUTS, TIME, held
from llmft.signals import signal_of

_OF_ROW = ("row", "text", "label", "prediction")


class ExperimentTracker:
    """Records one run in a folder of its own.

    Args:
        folder: new or empty; by default one in ``outputs/RECIPE``, named by the time.
        config: what the run is asked, by name.
        recipe: what kind of run it is.
        data: files of the run by split, whose hashes are kept.

    Raises:
        EnvironmentFault: the folder holds something, or is in use.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        recipe: str = "own",
        data: Mapping[str, str | Path] | None = None,
    ) -> None:
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.folder = Path(folder or Path(OUTPUTS) / recipe / stamp).expanduser()
        arguments = {name: plain(value) for name, value in (config or {}).items()}
        self.record: dict[str, Any] = {
            "recipe": recipe,
            "data": {
                split: {"source": str(path), "sha256": file_sha256(Path(path))}
                for split, path in (data or {}).items()
            },
            "arguments": {
                name: {"value": value, "from": "config"}
                for name, value in arguments.items()
            },
        }
        to_json(self.record)  # what JSON does not know ends here, not in the folder
        self.metrics: dict[str, Any] = {}

    def __enter__(self) -> ExperimentTracker:
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise EnvironmentFault(
                "the folder is not empty", hint="name a new one", path=self.folder
            )
        self.block = ExitStack()
        self.block.enter_context(held(self.folder))
        self.block.enter_context(terminable())
        self.began = time.perf_counter()
        facts = {"status": "running", "command": shlex.join(sys.argv)}
        self._save(**facts, started=time.strftime(TIME), versions=versions())
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        seconds = round(time.perf_counter() - self.began, 1)
        with self.block:
            if error is None:
                self._save_metrics(run={"wall_seconds": seconds, "legs": 1})
                self._save(status="complete", seconds=seconds)
                return
            stopped = signal_of(error)
            status = "interrupted" if stopped else "failed"
            with suppress(OSError):  # a full disk is what ended the run
                self._save(status=status, seconds=seconds, error=stopped or repr(error))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Append values to ``metrics.jsonl``; those that are not finite become null."""
        event = {"step": plain(step), "leg": 1, "time": round(time.time(), 3)}
        event |= {name: plain(value) for name, value in values.items()}
        line = to_json(event)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def result(
        self,
        part: str,
        name: str,
        value: Any,
        stderr: Any = None,
        n: int | None = None,
    ) -> None:
        """Write a final metric to ``metrics.json``.

        Args:
            part: what it is of: ``test``, or ``eval`` for validation.

        Raises:
            DataError: it is no number.
        """
        split = {"eval": "validation"}.get(part, part)
        entry = {"value": plain(value), "n": plain(n), "stderr": plain(stderr)}
        for given in entry.values():
            if not isinstance(given, int | float | None):
                said = f"{part} {name} is {shorten(given)}, expected a number"
                raise DataError(said)
        entry["split"] = split
        self.metrics.setdefault(part, {})[name] = entry
        self._save_metrics()

    def predictions(self, rows: Iterable[Mapping[str, Any]], split: str) -> None:
        """Write ``predictions.jsonl``, by which ``llmft runs compare`` pairs runs.

        Args:
            rows: each with ``row``, ``text``, ``label`` and ``prediction``; of classes
                also ``probabilities`` by name.

        Raises:
            DataError: a row lacks one of them.
        """
        lines = []
        for place, row in enumerate(rows):
            found, needed = plain({"split": split, **row}), [*_OF_ROW]
            if not isinstance(found.get("prediction"), int | float):
                needed.append("probabilities")
            if lacks := [name for name in needed if name not in found]:
                raise DataError(f"row {place} lacks {', '.join(lacks)}")
            if "probabilities" in found:  # by name: 1 would be a number, not a class
                found |= {n: _named(found[n]) for n in ("label", "prediction")}
            lines.append(to_json(found) + "\n")
        write_text(self.folder / "predictions.jsonl", "".join(lines))

    def artifact(self, path: str | Path, name: str | None = None) -> Path:
        """Copy a file to ``artifacts/`` under its own or another name; return where."""
        source, name = Path(path), name or Path(path).name
        if name != Path(name).name or name.startswith("."):
            raise ConfigError(f"name is {name!r}, expected one without folders")
        target = self.folder / "artifacts" / name
        target.parent.mkdir(exist_ok=True)
        staging = target.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
        try:
            shutil.copyfile(source, staging)
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)
        return target

    def _save(self, **changes: Any) -> None:
        self.record |= changes
        write_json(self.folder / "run.json", self.record)

    def _save_metrics(self, **more: Any) -> None:
        self.metrics |= more
        write_json(self.folder / "metrics.json", self.metrics)


def plain(value: Any) -> Any:
    """Return a value of numpy or torch as Python's own, NaN and infinity as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return finite(value)


def _named(label: Any) -> Any:
    """Return a class, or several, by name; None is no label."""
    if isinstance(label, list):
        return [*map(_named, label)]
    if isinstance(label, float) and label.is_integer():  # of a column that has gaps
        label = int(label)
    return None if label is None else str(label)
