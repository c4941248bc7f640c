"""The folder of a run: what ran, what came of it, and the model.

    with start_run(__file__, args, choices, data=..., model=...) as run:
        trainer = LlmftTrainer(..., callbacks=run.callbacks(args.training))
        run.results["eval"] = trainer.evaluate()
        run.finish(trainer, title)

The folder is made when all checks have passed. Whatever ends the block is recorded in
``run.json``, whose status is running, interrupted, failed or complete. A run that is
resumed goes on in its own folder: ``legs`` of ``run.json`` holds what it said before.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llmft import __version__
from llmft.config.choice import Choice
from llmft.config.fields import TrainingArguments
from llmft.config.parse import Arguments
from llmft.console import log_to_file, say
from llmft.errors import EnvironmentFault
from llmft.files import publish_folder, to_json, try_lock, write_json, write_text
from llmft.machine import detect
from llmft.process import Terminated, as_fault, stopped_by
from llmft.runs import terminal
from llmft.runs.card import model_card
from llmft.runs.speed import StepClock, training_speed
from llmft.train import callbacks, checkpoint
from llmft.train.callbacks import finite
from llmft.train.trainer import LlmftTrainer

_PACKAGES = ("transformers", "torch", "datasets", "accelerate", "tokenizers")
_TIME = "%Y-%m-%dT%H:%M:%S%z"


@dataclass
class Run:
    """A run folder being filled.

    Attributes:
        record: what ``run.json`` holds.
        results: metrics by the part they were measured on (``before``, ``eval``,
            ``test``), as ``Trainer.evaluate`` returns them, prefix and all.
        held_out: the split that ``before`` was measured on.
    """

    folder: Path
    record: dict[str, Any]
    held_out: str | None = None
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    progress: callbacks.Progress | None = None
    clock: StepClock = field(default_factory=StepClock)

    def save(self, **changes: Any) -> None:
        """Write ``run.json`` with ``changes``."""
        self.record |= changes
        write_json(self.folder / "run.json", self.record)

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """The results as ``metrics.json`` has them."""
        splits = {"before": self.held_out, "eval": "validation", "test": "test"}
        return {
            part: _with_errors(part, splits[part], m)
            for part, m in self.results.items()
        }

    def finish(self, trainer: LlmftTrainer, title: str) -> None:
        """Write ``metrics.json`` and, after training, ``model/``.

        ``title`` is the first line of the model card.
        """
        legs = self.record["legs"]
        seconds = [*map(_seconds, legs), time.perf_counter() - self.started]
        speed = {
            "wall_seconds": round(sum(seconds), 1),
            "legs": len(seconds),
            "peak_rss_bytes": detect.peak_rss_bytes(),
            **training_speed(trainer, self.clock),
        }
        write_json(self.folder / "metrics.json", {**self.measured, "run": speed})
        model: Any = trainer.model
        tokenizer: Any = trainer.processing_class
        if trainer.args.do_train:
            with publish_folder(self.folder / "model", replace=True) as staging:
                model.save_pretrained(staging)
                tokenizer.save_pretrained(staging)
                card = model_card(title, self.measured, self.record)
                write_text(staging / "README.md", card)

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Write ``predictions.jsonl``; each row says of which split it is."""
        lines = (to_json({"split": self.held_out, **row}) + "\n" for row in rows)
        write_text(self.folder / "predictions.jsonl", "".join(lines))


@contextmanager
def start_run(
    script: str, args: Arguments, choices: list[Choice], **facts: Any
) -> Iterator[Run]:
    """Make the run folder and record how the block ends.

    Args:
        script: the recipe's file.
        args: what was asked; ``args.training.output_dir`` is set to the checkpoints.
        choices: what ``machine.choose.prepare`` chose.
        facts: more for ``run.json``: data, model.
    """
    recipe, training = Path(script).stem, args.training
    record = {
        "recipe": recipe,
        "status": "running",
        "command": shlex.join([terminal.short(Path(script)), *args.command]),
        "argv": args.command,
        "started": time.strftime(_TIME),
        "arguments": args.resolved(),
        "choices": {c.name: {"value": c.value, "reason": c.reason} for c in choices},
        "versions": versions(),
        "cpu": {"name": detect.cpu_name(), "cores": detect.usable_cores()},
        **facts,
        "resumed": training.resume_from_checkpoint,
        "legs": _legs(training.resume_from_checkpoint),
    }
    folder = _make_folder(recipe, training)
    training.output_dir = str(folder / "checkpoints")
    with _held(folder):
        run = Run(folder, record)
        (folder / "logs").mkdir(exist_ok=True)
        run.save()
        try:
            with log_to_file(folder / "logs" / "debug.log"):
                yield run
        except BaseException as error:
            fault = _record_end(run, error, script, args)
            if fault is None or fault is error:
                raise
            raise fault from error
        else:
            run.save(status="complete", seconds=_since(run))


def _record_end(
    run: Run, error: BaseException, script: str, args: Arguments
) -> BaseException | None:
    """Record what ended a run, and say how to go on; return it as a fault."""
    stopped = isinstance(error, KeyboardInterrupt | Terminated) or stopped_by()
    status = "interrupted" if stopped else "failed"
    fault = as_fault(error, run.folder)
    if run.progress:
        run.progress.close()
    with suppress(OSError):  # a full disk is what ended the run
        run.save(status=status, seconds=_since(run), error=str(fault or repr(error)))
    say(f"run        {terminal.short(run.folder)} ({status})")
    whole, _ = checkpoint.newest(run.folder / "checkpoints", hashes=False)
    if whole and (stopped or isinstance(fault, EnvironmentFault)):
        again = terminal.resume_command(script, args.command, whole)
        say(f"go on      {again}")
    elif stopped and args.training.do_train:
        say("no checkpoint was due yet: start anew; --save_steps saves more often")
    return fault


def _since(run: Run) -> float:
    return round(time.perf_counter() - run.started, 1)


def _legs(resumed: Any) -> list[dict[str, Any]]:
    """Return the records of a run that is resumed, the oldest first."""
    if not resumed:
        return []
    folder = Path(resumed).parent.parent
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
    except (OSError, ValueError):  # a checkpoint that was taken elsewhere
        return []
    if "seconds" not in record and (log := folder / "metrics.jsonl").is_file():
        # It was killed: what is known is when it last logged.
        began = datetime.strptime(record["started"], _TIME).timestamp()
        record["seconds"] = round(max(log.stat().st_mtime - began, 0.0), 1)
    return [*record.pop("legs", []), record]


def _seconds(leg: Mapping[str, Any]) -> float:
    return float(leg.get("seconds", 0.0))


def check_output_dir(args: TrainingArguments) -> None:
    """Find the checkpoint to resume, and make sure that ``output_dir`` can be used.

    Writes nothing; recipes call it before they load anything. Sets
    ``resume_from_checkpoint`` to the path of a verified checkpoint or to None.

    Raises:
        CheckpointError: where there is none to resume, or it is not whole.
        EnvironmentFault: where ``output_dir`` is a file, or in use by another run.
    """
    checkpoint.locate(args)
    _require_free(args)
    if args.output_dir and (folder := Path(args.output_dir).expanduser()).is_dir():
        with _held(folder):
            pass


@contextmanager
def _held(folder: Path) -> Iterator[None]:
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


def _require_free(args: TrainingArguments) -> None:
    if not args.output_dir:
        return
    folder = Path(args.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise EnvironmentFault("output_dir is a file", path=folder)
    entries = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    resumed = Path(str(args.resume_from_checkpoint or "")).resolve()
    if entries and folder.resolve() not in resumed.parents:
        raise EnvironmentFault(
            f"output_dir is not empty: it holds {', '.join(entries[:5])}",
            hint="name a new folder, or resume with --resume_from_checkpoint"
            " FOLDER/checkpoints/checkpoint-N",
            path=folder,
        )


def _make_folder(recipe: str, args: TrainingArguments) -> Path:
    """Return the new folder of the run; raise EnvironmentFault where it cannot be."""
    _require_free(args)
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    folder = Path(args.output_dir or Path("outputs") / recipe / stamp).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".write-test").touch()
        (folder / ".write-test").unlink()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write there: {error.strerror}",
            hint="choose --output_dir",
            path=folder,
        ) from error
    return folder


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, "unknown" without metadata."""
    found = {"python": platform.python_version(), "llmft": __version__}
    for name in _PACKAGES:
        found[name] = "unknown"
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _with_errors(
    part: str, split: str | None, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Turn ``eval_loss``, ``eval_loss_stderr``, ``eval_n`` into one entry each."""
    plain = {name.removeprefix(f"{part}_"): value for name, value in metrics.items()}
    return {
        name: {
            "value": finite(value),
            "n": plain.get("n"),
            "stderr": finite(plain[f"{name}_stderr"]),
            "split": split,
        }
        for name, value in plain.items()
        if f"{name}_stderr" in plain
    }
