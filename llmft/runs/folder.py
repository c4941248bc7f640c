"""The run folder: what ran, what came of it, and the model.

    with start("mlm", args, facts) as run:
        ...
        run.finish(trainer, results, card)

The folder is made when all checks have passed. Whatever ends the block is recorded in
``run.json``, whose status is running, interrupted, failed or complete.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from transformers import TrainerCallback

from llmft.config.fields import TrainingArguments
from llmft.config.rules import Arguments
from llmft.console import Terminated, as_fault, log_to_file, say, stopped_by, table
from llmft.errors import EnvironmentFault
from llmft.files import publish_folder, to_json, try_lock, write_json, write_text
from llmft.machine import detect
from llmft.machine.choose import Choice
from llmft.runs.card import model_card
from llmft.train import callbacks, checkpoint, resume
from llmft.train.callbacks import finite
from llmft.train.trainer import LlmftTrainer

_PACKAGES = ("llmft", "transformers", "torch", "datasets", "accelerate", "tokenizers")
Results = dict[str, dict[str, float]]
_OF_TOKENIZER = ("tokenizer_name", "chat_template_path")


@dataclass
class Run:
    """A run folder being filled."""

    folder: Path
    record: dict[str, Any]
    callbacks: list[TrainerCallback]
    started: float = field(default_factory=time.perf_counter)

    def save(self, **changes: Any) -> None:
        """Write ``run.json`` with ``changes``."""
        self.record |= changes
        write_json(self.folder / "run.json", self.record)

    def finish(self, trainer: LlmftTrainer, results: Results, title: str) -> None:
        """Write ``metrics.json`` and, after training, ``model/``.

        Args:
            results: metrics by the part they were measured on (``before``, ``eval``,
                ``test``), as ``Trainer.evaluate`` returns them, prefix and all.
            title: the first line of the model card.
        """
        measured = {part: _with_errors(part, m) for part, m in results.items()}
        speed = _speed(trainer, time.perf_counter() - self.started)
        write_json(self.folder / "metrics.json", {**measured, "run": speed})
        model: Any = trainer.model
        tokenizer: Any = trainer.processing_class
        if trainer.args.do_train:
            with publish_folder(self.folder / "model", replace=True) as staging:
                model.save_pretrained(staging)
                tokenizer.save_pretrained(staging)
                card = model_card(title, measured, self.record)
                write_text(staging / "README.md", card)

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Write ``predictions.jsonl``."""
        lines = "".join(to_json(row) + "\n" for row in rows)
        write_text(self.folder / "predictions.jsonl", lines)


@contextmanager
def start(
    recipe: str, args: Arguments, choices: list[Choice], **facts: Any
) -> Iterator[Run]:
    """Make the run folder and record how the block ends.

    Args:
        recipe: its name.
        args: what was asked; ``args.training.output_dir`` becomes the folder that
            Trainer saves into.
        choices: what ``machine.choose.prepare`` chose.
        facts: more for ``run.json``: data, model, tokenizer.
    """
    folder = _make_folder(recipe, args.training)
    record = {
        "recipe": recipe,
        "status": "running",
        "command": shlex.join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "arguments": args.resolved(),
        "choices": {c.name: {"value": c.value, "reason": c.reason} for c in choices},
        "versions": versions(),
        "cpu": {"name": detect.cpu_name(), "cores": detect.usable_cores()},
        **facts,
    }
    log, t = folder / "logs" / "debug.log", args.training
    with _held(folder):
        patience = (t.early_stopping_patience, t.early_stopping_threshold)
        stopping = callbacks.EarlyStoppingCallback(*patience)
        run = Run(folder, record, [stopping, *callbacks.for_run(folder, t)])
        (folder / "logs").mkdir(exist_ok=True)
        run.save()
        try:
            # What fills the disk goes before the log says that it is full.
            with log_to_file(log), checkpoint.saving(folder / "checkpoints") as saving:
                t.output_dir = saving
                yield run
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Terminated) or stopped_by()
            status = "interrupted" if stopped else "failed"
            fault = as_fault(error, folder)
            callbacks.close(run.callbacks)
            with suppress(OSError):  # a full disk is what ended the run
                run.save(status=status, error=str(fault or repr(error)))
            say(f"run        {_short(folder)} ({status})")
            whole, _ = resume.newest(folder / "checkpoints", hashes=False)
            if whole and (stopped or isinstance(fault, EnvironmentFault)):
                say("go on      " + resume.resume_command(sys.argv, whole))
            elif stopped and args.training.do_train:
                anew = "start anew; --save_steps saves more often"
                say(f"no checkpoint was due yet: {anew}")
            if fault is None or fault is error:
                raise
            raise fault from error
        else:
            run.save(
                status="complete", seconds=round(time.perf_counter() - run.started, 1)
            )


def check_output_dir(args: TrainingArguments) -> None:
    """Find the checkpoint to resume, and make sure that ``output_dir`` can be used.

    Writes nothing; recipes call it before they load anything. Sets
    ``resume_from_checkpoint`` to the path of a verified checkpoint or to None.

    Raises:
        CheckpointError: where there is none to resume, or it is not whole.
        EnvironmentFault: where ``output_dir`` is a file, or in use by another run.
    """
    resume.locate(args)
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
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found


def _with_errors(part: str, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Turn ``eval_loss``, ``eval_loss_stderr``, ``eval_n`` into one entry each."""
    plain = {name.removeprefix(f"{part}_"): value for name, value in metrics.items()}
    n = plain.get("n")
    return {
        name: {
            "value": finite(value),
            "n": n,
            "stderr": finite(plain[f"{name}_stderr"]),
        }
        for name, value in plain.items()
        if f"{name}_stderr" in plain
    }


def _speed(trainer: LlmftTrainer, seconds: float) -> dict[str, Any]:
    """Return samples/s and tokens/s of training, wall seconds and peak memory."""
    speed: dict[str, Any] = {
        "wall_seconds": round(seconds, 1),
        "peak_rss_bytes": detect.peak_rss_bytes(),
    }
    ends = [e for e in trainer.state.log_history if "train_runtime" in e]
    if ends:
        runtime, samples = (
            ends[-1]["train_runtime"],
            ends[-1]["train_samples_per_second"],
        )
        speed |= {
            "train_seconds": runtime,
            "train_samples_per_second": samples,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
        }
        length = _mean_length(trainer.train_dataset)
        if length is not None:
            speed["train_tokens_per_second"] = round(samples * length, 1)
    return speed


def _mean_length(train: Any) -> float | None:
    """Return the tokens of an example; None for a stream, and for cached features."""
    if not hasattr(train, "__len__"):
        return None
    lengths = pc.list_value_length(train.with_format("arrow")["input_ids"][:])
    return pc.mean(lengths).as_py() if pc.max(lengths).as_py() > 1 else None


def plan(args: Arguments, choices: list[Choice], train: Any | None) -> None:
    """Say what is going to happen: the choices with their reasons, and the steps."""
    say("plan")
    for choice in choices:
        say(f"  {choice.name:<10} {choice.value} ({choice.reason})")
    t = args.training
    if train is not None and t.do_train:
        batch = t.train_batch_size * t.gradient_accumulation_steps
        steps, epochs = resume.training_steps(t, train), "a stream"
        if hasattr(train, "__len__"):
            epochs = f"{steps / resume.epoch_steps(t, train):.3g} epochs"
        say(
            f"  {'training':<10} {steps:,} steps of {batch} examples, {epochs},"
            f" learning rate {t.learning_rate:g}"
        )
    if t.dry_run:
        say("\ndry run    all checks passed; nothing was written outside the cache")


def report(
    run: Run,
    results: Results,
    names: list[str],
    recipe: str,
    *flags: str,
    keep: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print the last lines: what was reached, where it is, what to do next.

    Args:
        results: as for ``Run.finish``.
        names: the metrics to show.
        recipe: what to run next, on the model of this run.
        flags: its flags.
        keep: the arguments that it takes over from this run, where they have a value.
        notes: lines below the results.
    """
    held_out = "test" if "test" in results else "validation"
    parts = {"before": f"{held_out}, before", "eval": "validation"}
    rows = []
    for part, metrics in results.items():
        for name in names:
            value = metrics.get(f"{part}_{name}")
            if value is not None:
                error = metrics.get(f"{part}_{name}_stderr", 0.0)
                n = int(metrics[f"{part}_n"])
                on = parts.get(part, part)
                rows.append((on, name, f"{value:,.4g}", f"{error:.2g}", f"{n:,}"))
    if rows:
        say("\nresults")
        say(table(rows, ["on", "metric", "value", "+-", "n"]))
    for note in notes:
        say(note)
    given = {name: entry["value"] for name, entry in run.record["arguments"].items()}
    if (run.folder / "predictions.jsonl").is_file():
        say(f"\npredicted  {_short(run.folder / 'predictions.jsonl')}")
    say(f"\nrun        {_short(run.folder)}")
    if given["do_train"] and "tensorboard" in given["report_to"]:
        logs = shlex.quote(_short(run.folder / "logs"))
        say(f"curves     {_tool('tensorboard')} --logdir {logs}")
    say(f"next       {_next_command(run.folder, given, recipe, keep, flags)}")


def _next_command(
    folder: Path,
    given: dict[str, Any],
    recipe: str,
    keep: Sequence[str],
    flags: Sequence[str],
) -> str:
    """Return the command; its model is the trained one, else the one that was used."""
    model = ("model_name_or_path", "model_revision", *_OF_TOKENIZER)
    values = {name: given.get(name) for name in (*model, *keep)}
    if given["do_train"]:
        values |= dict.fromkeys(model)
        values["model_name_or_path"] = _short(folder / "model")
    script = os.path.join(os.path.dirname(sys.argv[0]), f"{recipe}.py")
    words = [_tool(os.path.basename(sys.executable)), script]
    for name, value in values.items():
        if value is not None:
            several = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, several)]
    return shlex.join([*words, *flags])


def _tool(name: str) -> str:
    """Return how to call a program of this Python: by name where the shell finds it."""
    path = Path(sys.executable).with_name(name)
    return name if shutil.which(name) == str(path) else _short(path)


def _short(path: Path) -> str:
    """Return ``path`` relative to the working directory where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)
