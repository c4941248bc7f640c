"""What is checked before a checkpoint is resumed, and what is left to do then."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import SchedulerType

from llmft.config.facts import MAY_DIFFER, fields_with
from llmft.config.fields import TrainingArguments
from llmft.config.parse import Arguments
from llmft.console import say, warn
from llmft.errors import CheckpointError
from llmft.files import file_sha256, read_object
from llmft.process import versions
from llmft.train.checkpoint import MANIFEST, checkpoints, identity

_STATE = (OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state.pth", TRAINER_STATE_NAME)


def fault(folder: Path, hashes: bool = True) -> str | None:
    """Return what keeps ``folder`` from being resumed; None where it is whole.

    Without ``hashes`` a changed file is found by its size only.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = {n: (f["bytes"], f["sha256"]) for n, f in manifest["files"].items()}
        known = isinstance(manifest["step"], int) and manifest["belongs_to"].items()
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was cut short, or plain Trainer made it"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{MANIFEST} cannot be read"
    if not known:
        return f"{MANIFEST} does not say to which run it belongs"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, was saved with {size:,}"
        if hashes and file_sha256(path) != sha256:
            return f"{name} has changed since it was saved (its sha256 is another)"
    if lacking := [name for name in _STATE if name not in files]:
        return f"it was saved without {', '.join(lacking)} (save_only_model)"
    return _unsafe(folder) if hashes else None


def _unsafe(folder: Path) -> str | None:
    """Return which of the files of torch holds more than numbers, if one does.

    A manifest can be forged, too. Mapped, they are looked at and not read: 3 ms of the
    91 MB of MiniLM.
    """
    for name in _STATE[:3]:
        try:
            with safe_globals():
                torch.load(folder / name, "cpu", weights_only=True, mmap=True)
        except Exception as error:  # it depends on what stands there
            kind = type(error).__name__
            return f"{name} is no file of numbers ({kind}); nothing of it was run"
    return None


def newest(root: Path, hashes: bool = True) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint in ``root``, and why later ones are not."""
    passed: list[str] = []
    for folder in reversed(checkpoints(root)):
        found = fault(folder, hashes)
        if found is None:
            return folder, passed
        passed.append(f"{folder.name}: {found}")
    return None, passed


def locate(args: TrainingArguments) -> None:
    """Find and verify the checkpoint that ``args`` ask for, before anything is loaded.

    Sets ``resume_from_checkpoint`` to its path or None, and ``output_dir`` to the run
    that it is of where none is named. Raises CheckpointError.
    """
    asked = args.resume_from_checkpoint
    if asked is True:
        root = Path(str(args.output_dir)).expanduser() / "checkpoints"
        found, passed = newest(root)
        if found is None:
            seen = "; ".join(passed) or "there is none at all"
            raise CheckpointError(
                f"no complete checkpoint to resume: {seen}",
                hint="start anew in another output_dir",
                path=root,
            )
        for reason in passed:
            warn(f"passed over {reason}")
    elif asked:
        found = Path(str(asked)).expanduser()
        problem = fault(found) if found.is_dir() else "there is no such folder"
        if problem:
            other = newest(found.parent)[0]
            hint = f"resume from {other}" if other else "start anew"
            if found.is_dir():
                hint += ", or give its weights alone as --model_name_or_path"
            raise CheckpointError(problem, hint=hint, path=found)
    else:
        args.resume_from_checkpoint = None
        return
    args.resume_from_checkpoint = str(found)
    run = found.parent.parent
    if not args.output_dir and (run / "run.json").is_file():
        args.output_dir = str(run)
    where = f"in {args.output_dir}" if args.output_dir else "in a new folder"
    say(f"resume     {found}, {where}")


def require_match(
    recipe: str, args: Arguments, facts: Mapping[str, Any], train: Any | None
) -> None:
    """Raise CheckpointError unless the checkpoint to resume is one of this run's.

    Args:
        recipe: its name.
        args: what was asked, after ``locate``.
        facts: ``data`` and ``model``, as they go into ``run.json``.
        train: the training examples.
    """
    training = args.training
    if not training.resume_from_checkpoint or train is None:
        return
    folder = Path(str(training.resume_from_checkpoint))
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    values = {name: entry["value"] for name, entry in args.resolved().items()}
    here = identity({"recipe": recipe, **facts}, values)
    there = manifest["belongs_to"]
    differ = [
        f"{name} was {_short(there.get(name))}, is {_short(here.get(name))}"
        for name in here | there
        # An argument that the version which saved it did not know is left aside.
        if here.get(name) != there.get(name) and (name in there or name not in values)
    ]
    if differ:
        raise CheckpointError(
            f"it does not belong to this run: {'; '.join(differ[:5])}",
            hint="resume with what it was made with, or give its weights alone as"
            " --model_name_or_path",
            path=folder,
        )
    total = training_steps(training, train)
    run_json = folder.parent.parent / "run.json"
    record = read_object(run_json)
    if not record:
        said = "gone or damaged: what may differ from before cannot be told"
        warn(f"{run_json} is {said}")
    finished = manifest["step"] == total and record.get("status") == "complete"
    if manifest["step"] > total or finished:
        raise CheckpointError(
            f"it is of step {manifest['step']}, this run ends at step {total}: nothing"
            " is left to do",
            hint="give its weights as --model_name_or_path"
            if training.time_limit
            else "raise num_train_epochs or max_steps",
            path=folder,
        )
    _warn_of_changes(record, args, values)
    planned = saved_state(training).max_steps
    schedule = SchedulerType(training.lr_scheduler_type).value
    if planned != total and not schedule.startswith("constant"):
        warn(
            f"the checkpoint was made for {planned:,} steps, this run has {total:,}:"
            f" the learning rate goes on as in a run of {total:,} ({schedule})"
        )
    here = versions()
    for name, version in manifest["versions"].items():
        if name != "python" and version != (now := here.get(name, "unknown")):
            warn(f"the checkpoint was made with {name} {version}, here is {now}")


def _warn_of_changes(
    record: Mapping[str, Any], args: Arguments, values: Mapping[str, Any]
) -> None:
    """Warn of ``values`` that may differ from those of the run's ``record``, and do."""
    parts = [type(p) for p in (args.model, args.data, args.training)]
    before = record.get("arguments") or {}
    for name in fields_with("resume", *parts, among=[MAY_DIFFER]):
        was = before.get(name, {}).get("value", values[name])
        if was != values[name]:
            warn(f"{name} was {was} before this resume, is {values[name]} from now on")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch("[0-9a-f]{40,}", text) else text


def training_steps(args: TrainingArguments, train: Any) -> int:
    """Return the optimizer steps of a training on ``train``, as Trainer counts.

    A stream has no length, and needs ``max_steps``. A run under a time limit that is
    resumed has those of its checkpoint; before that, they are not known here.
    """
    if args.time_limit and args.resume_from_checkpoint:
        return saved_state(args).max_steps
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * epoch_steps(args, train))


def evaluations_and_saves(
    args: TrainingArguments, steps: int, steps_per_epoch: int | None, done: int = 0
) -> tuple[int, int]:
    """Return how often steps ``done`` to ``steps`` are evaluated, and saved at most.

    Each evaluation may be the best so far, which is saved.

    Args:
        steps_per_epoch: None for a stream, which counts as one epoch.
    """

    def times(strategy: str, every: float | None) -> int:
        if strategy == "epoch":
            every = steps_per_epoch or steps
        if strategy in ("no", "best") or not every:
            return 0
        every = math.ceil(steps * every) if every < 1 else every
        return math.ceil(steps / every) - int(done // every)

    evaluations = times(args.eval_strategy, args.eval_steps)
    saves = times(args.save_strategy, args.save_steps)
    if args.save_strategy == "best" or args.load_best_model_at_end:
        saves = max(saves, evaluations)
    return evaluations, saves


def epoch_steps(args: TrainingArguments, train: Sized) -> int:
    """Return the optimizer steps of an epoch."""
    batches = math.ceil(len(train) / args.train_batch_size)
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)


def is_over(args: TrainingArguments, max_steps: int) -> bool:
    """Return whether the checkpoint that ``args`` resume is of the end of its run.

    That is step ``max_steps``, or where early stopping stops; such a run was ended by
    something else, in its last evaluation.
    """
    if not args.resume_from_checkpoint:
        return False
    state = saved_state(args)
    patience = args.early_stopping_patience
    stopped = patience is not None and evaluations_without_gain(state) >= patience
    return stopped or state.global_step >= max_steps


def saved_state(args: TrainingArguments) -> TrainerState:
    """Return the state of Trainer in the checkpoint that ``args`` resume."""
    folder = Path(str(args.resume_from_checkpoint))
    return TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))


def evaluations_without_gain(state: TrainerState) -> int:
    """Return what ``EarlyStoppingCallback`` had counted when ``state`` was saved."""
    callbacks: Any = state.stateful_callbacks
    # Earlier checkpoints have the second name.
    saved = callbacks.get("EarlyStoppingCallback") or callbacks.get("EarlyStopping", {})
    return saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
