"""Which checkpoint a run goes on from, and what is left to do then."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals

from llmft.config.fields import AUTO, TrainingArguments
from llmft.console import say, short, warn
from llmft.errors import CheckpointError
from llmft.files import file_sha256, read_object
from llmft.train.checkpoint import MANIFEST, checkpoints, read_manifest

COMPLETE = "complete"  # a status of run.json
_STATE = (OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state.pth", TRAINER_STATE_NAME)


def fault(folder: Path, hashes: bool = True) -> str | None:
    """Return what keeps ``folder`` from being resumed; None where it is whole.

    Without ``hashes`` a changed file is found by its size only.
    """
    try:
        manifest = read_manifest(folder)
        files = {n: (f["bytes"], f["sha256"]) for n, f in manifest["files"].items()}
        known = isinstance(manifest["step"], int) and manifest["belongs_to"].items()
    except CheckpointError as error:
        return error.found
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if not known:
        return f"{MANIFEST} does not say to which run it belongs"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, was saved with {size:,}"
        if hashes and (found := file_sha256(path)) != sha256:
            return (
                f"{name} has changed since it was saved (its sha256 is"
                f" {found[:12]}..., was {str(sha256)[:12]}...)"
            )
    if lacking := [name for name in _STATE if name not in files]:
        return f"it was saved without {', '.join(lacking)} (save_only_model)"
    return _unsafe(folder) if hashes else None


def _unsafe(folder: Path) -> str | None:
    """Return which of the files of torch holds more than numbers, if one does.

    A manifest can be forged, too. Mapped, they are looked at and not read: 0.06 s of
    the 182 MB of MiniLM's, on a busy AMD EPYC, where their hashes take 0.9.
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
    """Return the newest whole checkpoint in ``root``, and why later ones are not it.

    Those are no part of the run that it left by going on from an earlier one.
    """
    passed: list[str] = []
    began = _steps_of_legs(record_of(root.parent))
    for folder in reversed(checkpoints(root)):
        found = _left(folder, began) or fault(folder, hashes)
        if found is None:
            return folder, passed
        passed.append(f"{folder.name}: {found}")
    return None, passed


def record_of(run: Path) -> dict[str, Any]:
    """Return what ``run.json`` says; nothing where it is not what a run writes."""
    record = read_object(run / "run.json")
    parts = [record.get(name) or {} for name in ("arguments", "choices", "data")]
    each = [record.get("legs") or []] + [[*p.values()] for p in parts if _is_object(p)]
    whole = all(map(_is_object, parts)) and all(
        isinstance(part, list) and all(map(_is_object, part)) for part in each
    )
    return record if whole and isinstance(record.get("started", ""), str) else {}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _steps_of_legs(record: Mapping[str, Any]) -> list[int]:
    """Return the step from which each leg of a run went on."""
    legs = [*(record.get("legs") or []), record]
    resumed = [Path(str(leg.get("resumed") or "")).name for leg in legs]
    steps = [name.rpartition("-")[2] for name in resumed]
    return [int(step) if step.isdecimal() else 0 for step in steps]


def _left(folder: Path, began: list[int]) -> str | None:
    """Return why a checkpoint is not of what the run goes on from, if it is not."""
    with suppress(CheckpointError, KeyError, TypeError):
        manifest = read_manifest(folder)
        later = began[manifest["leg"] :]  # one of an earlier version does not know it
        if later and min(later) < manifest["step"]:
            return f"it is of before the run went on from step {min(later)}"
    return None


def locate(args: TrainingArguments) -> None:
    """Find and verify the checkpoint that ``args`` ask for, before anything is loaded.

    Sets ``resume_from_checkpoint`` to its path or None, and ``output_dir`` to the run
    that it is of where none is named; ``goes_on`` where the run itself says from where.
    Raises CheckpointError.
    """
    asked = args.resume_from_checkpoint
    args.goes_on = asked is True or asked == AUTO
    if args.goes_on:
        found = _newest_of_run(args)
    elif asked:
        found = Path(os.path.abspath(Path(str(asked)).expanduser()))
        problem = fault(found) if found.is_dir() else "there is no such folder"
        if problem:
            other = newest(found.parent)[0]
            hint = f"resume from {other}" if other else "start anew"
            if found.is_dir():
                hint += ", or give its weights alone as --model_name_or_path"
            raise CheckpointError(problem, hint=hint, path=found)
        if left := _left(found, _steps_of_legs(record_of(found.parent.parent))):
            warn(f"{found.name}: {left}, whose log has nothing of what came between")
    else:
        found = None
    args.resume_from_checkpoint = str(found) if found else None
    if not found:
        return
    run = found.parent.parent
    if not args.output_dir and (run / "run.json").is_file():
        args.output_dir = short(run)
    where = f"in {args.output_dir}" if args.output_dir else "in a new folder"
    say(f"resume     {short(found)}, {where}")


def goes_on_from(run: Path) -> tuple[Path | None, list[str]]:
    """Return the checkpoint where a run goes on, and why later ones are not it.

    That is its newest whole one, or without any the one of another run that it began
    from. Raises CheckpointError where that is no longer whole.
    """
    found, passed = newest(run / "checkpoints")
    record = record_of(run)
    legs = [record, *reversed(record.get("legs") or [])]
    others = (leg.get("resumed") for leg in legs if not is_of(leg.get("resumed"), run))
    began = next(filter(None, others), None)
    if found or not began or record.get("status") == COMPLETE:
        return found, passed
    if problem := fault(Path(began)):
        hint = "the run began from it: bring it back, or name another output_dir"
        raise CheckpointError(problem, hint=hint, path=began)
    return Path(began), passed


def _newest_of_run(args: TrainingArguments) -> Path | None:
    """Return where the run in ``output_dir`` goes on; None at its start, or its end.

    Raises CheckpointError where it has no whole checkpoint, but for ``auto``.
    """
    run = Path(str(args.output_dir)).expanduser()
    status = record_of(run).get("status")
    found, passed = goes_on_from(run)
    if args.resume_from_checkpoint is True and not found and status != COMPLETE:
        seen = "; ".join(passed) or "there is none at all"
        raise CheckpointError(
            f"no complete checkpoint to resume: {seen}",
            hint="start anew in another output_dir, or with --resume_from_checkpoint"
            f" {AUTO}",
            path=run / "checkpoints",
        )
    for reason in passed:
        warn(f"passed over {reason}")
    if not found and status == COMPLETE:
        say(f"resume     {run}, which is complete and has no checkpoint")
    elif not found and status:
        why = "no checkpoint of it is whole" if passed else "it has no checkpoint yet"
        say(f"resume     {run}: {why}, it starts anew; what it did goes to stopped/")
    elif not found and (run / "run.json").exists():
        said = "it is damaged, and there is no whole checkpoint"
        hint = "name another output_dir, or remove the folder"
        raise CheckpointError(said, hint=hint, path=run / "run.json")
    elif not found:
        say(f"resume     nothing is in {run} yet: a new run")
    return found


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


def is_of(checkpoint: Any, run: Path) -> bool:
    """Return whether a checkpoint, if there is one, is of the run in a folder."""
    above = Path(str(checkpoint)).parent.resolve()  # checkpoints may be a link
    return bool(checkpoint) and above == (run.expanduser() / "checkpoints").resolve()


def examples_seen(
    args: TrainingArguments, train: Any, steps: int, since: int = 0
) -> int:
    """Return how many examples the steps after ``since`` have seen, up to ``steps``.

    The last batch of an epoch may have fewer than the others.
    """
    batch = args.train_batch_size * args.gradient_accumulation_steps
    if not hasattr(train, "__len__"):
        return (steps - since) * batch

    def seen(last: int) -> int:
        epochs, rest = divmod(last, epoch_steps(args, train))
        return epochs * len(train) + min(rest * batch, len(train))

    return seen(steps) - seen(since)


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
    saved = callbacks.get("EarlyStoppingCallback", {})
    return saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
