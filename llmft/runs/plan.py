"""The plan of a run: what was chosen, its steps, and the time, memory and disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft.config.choice import Choice
from llmft.config.convert import duration
from llmft.config.facts import FAR_TOO_HIGH
from llmft.config.fields import TrainingArguments
from llmft.console import say, warn
from llmft.errors import EnvironmentFault, counted
from llmft.machine.detect import allowed_bytes, allowed_text, gib
from llmft.machine.plan import Forecast, duration_text
from llmft.runs.record import OUTPUTS
from llmft.train.checkpoint import checkpoints
from llmft.train.memory import LEAST, MOST
from llmft.train.resume import (
    epoch_steps,
    evaluations_and_saves,
    saved_state,
    training_steps,
)
from llmft.train.time_limit import seconds_left, steps_within

_AS_USUAL = ("spins briefly", "keeps memory")  # nothing to do about: in run.json only


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, and what it is expected to take.

    Attributes:
        choices: what was chosen for it, with reasons.
        steps: optimizer steps up to its end, about those that a time limit allows.
        epochs: those; None of a stream.
        seconds: by what they go to; empty where nothing was tried.
        step_seconds: of an optimizer step.
        memory_bytes: the least and the most that the process will hold at its peak;
            (0, 0) where that is not known.
        allowed_bytes: how much it may hold.
        disk_bytes, free_bytes: what checkpoints and model need, and what there is.
        folder: of the run, once it has started.
    """

    choices: list[Choice]
    steps: int = 0
    epochs: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: float = 0.0
    memory_bytes: tuple[int, int] = (0, 0)
    allowed_bytes: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0
    trial_seconds: float = 0.0
    folder: str | None = None


def make_plan(
    args: TrainingArguments,
    choices: Sequence[Choice],
    train: Any | None,
    forecast: Forecast | None = None,
) -> Plan:
    """Return the plan of a run on the training examples ``train``.

    A run of fewer steps than ``logging_steps`` is set to log the last of them.

    Raises:
        EnvironmentFault: checkpoints and model do not fit on the disk.
    """
    done, steps, per_epoch = 0, 0, None
    if train is not None and args.do_train:
        per_epoch = epoch_steps(args, train) if hasattr(train, "__len__") else None
        steps = _steps(args, train, per_epoch, forecast)
        if args.resume_from_checkpoint:
            done = saved_state(args).global_step
    if 1 <= steps < args.logging_steps and not args.time_limit:
        args.logging_steps = steps  # else the run would log no loss
    epochs = steps / per_epoch if per_epoch else None
    if forecast is None:
        return Plan(list(choices), steps, epochs)
    evaluations, saves = 0, 0
    if steps:
        evaluations, saves = evaluations_and_saves(args, steps, per_epoch, done)
    seconds = {
        "the probe": forecast.probe_seconds,
        "training": (steps - done) * forecast.step_seconds,
        "evaluating": evaluations * forecast.evaluation_seconds,
        "checkpoints": saves * forecast.save_seconds,
        "the end": forecast.final_seconds,
    }
    peak = forecast.peak_bytes
    plan = Plan(
        choices=list(choices),
        steps=steps,
        epochs=epochs,
        seconds=seconds,
        step_seconds=forecast.step_seconds,
        memory_bytes=(int(LEAST * peak), int(MOST * peak)),
        allowed_bytes=allowed_bytes(),
        disk_bytes=_disk(args, forecast, saves) if args.do_train else 0,
        free_bytes=_free(args),
        trial_seconds=forecast.trial_seconds,
    )
    if plan.disk_bytes > plan.free_bytes:
        raise EnvironmentFault(
            f"checkpoints and model need {gib(plan.disk_bytes)} on the disk, which has"
            f" {gib(plan.free_bytes)}",
            hint="name an --output_dir elsewhere, lower --save_total_limit, or give"
            " --save_only_model",
            path=Path(args.output_dir or OUTPUTS),
        )
    return plan


def show(plan: Plan, args: TrainingArguments) -> None:
    """Print the plan, but for choices that are as on any other machine."""
    say("plan")
    for choice in plan.choices:
        if choice.value in _AS_USUAL:
            continue
        say(f"  {choice.name:<10} {choice.value} ({choice.reason})")
    if plan.steps:
        rate = f"learning rate {args.learning_rate:g}"
        say(f"  {'training':<10} {_steps_text(args, plan)}, {rate}")
    if plan.steps and args.logging_steps == plan.steps:
        say(f"  {'logging':<10} once, after the last step")
    if plan.seconds:
        say(f"  {'time':<10} {_time(plan)}")
    elif plan.steps:
        say(f"  {'time':<10} not known, as memory is: nothing was tried")
    if plan.memory_bytes[1]:
        said = f"{_range(plan)} at the most, of {allowed_text()}"
        say(f"  {'memory':<10} {said}")
    if plan.disk_bytes:
        free = gib(plan.free_bytes)
        say(f"  {'disk':<10} up to {gib(plan.disk_bytes)}, of {free} that are free")
    if plan.memory_bytes[1] > plan.allowed_bytes:
        warn(
            "memory may run out: --per_device_train_batch_size auto finds a batch that"
            " leaves some"
        )
    if args.time_limit and not args.resume_from_checkpoint:
        needed, left = sum(plan.seconds.values()), seconds_left(args.time_limit)
        if needed > left + 1:
            warn(
                f"{duration_text(needed)} are needed, {duration_text(max(left, 0))} of"
                f" the time limit are left: give a longer one{_or_no_probe(plan)}"
            )
    if plan.steps and args.learning_rate > FAR_TOO_HIGH:
        warn(
            f"learning_rate {args.learning_rate:g} is far above what models of text"
            " take, 1e-5 to 1e-3: the loss may rise at once, and stay there"
        )
    rises = args.lr_scheduler_type not in ("constant", "reduce_lr_on_plateau")
    warmup = args.get_warmup_steps(plan.steps) if rises else 0
    if 0 < plan.steps <= warmup:
        warn(
            f"the learning rate rises for {counted(warmup, 'steps')}, of {plan.steps:,}"
            " in all, and never reaches its height; lower --warmup_steps"
        )
    if args.dry_run:
        say("\ndry run    all checks passed; nothing was written outside the cache")


def _or_no_probe(plan: Plan) -> str:
    probe = plan.seconds.get("the probe", 0.0)
    return f", or --ladder false ({duration_text(probe)})" if probe >= 1 else ""


def took(plan: Plan, steps: int, seconds: float, peak: int) -> str:
    """Return what a training of ``steps`` took beside what was planned, in a line."""
    planned = duration_text(steps * plan.step_seconds)
    line = f"training {duration_text(seconds)} (plan of {steps:,} steps: {planned})"
    if plan.memory_bytes[1]:
        line += f", memory {gib(peak)} at the most (plan: {_range(plan)})"
    return line


def _range(plan: Plan) -> str:
    low, high = (size / 2**30 for size in plan.memory_bytes)
    return f"{low:.1f} to {high:.1f} GiB"


def _steps(
    args: TrainingArguments, train: Any, per_epoch: int | None, forecast: Any
) -> int:
    """Return the steps of a training, about those that fit into a time limit."""
    if not args.time_limit or args.resume_from_checkpoint:
        return training_steps(args, train)
    assert forecast is not None
    left = seconds_left(args.time_limit) - forecast.probe_seconds
    return steps_within(left, forecast, per_epoch, args)


def _disk(args: TrainingArguments, forecast: Forecast, saves: int) -> int:
    """Return the bytes of the model and of the checkpoints that are there at once."""
    limit = args.save_total_limit
    if limit is not None:
        # The best stays beside the last; the next is written before one goes.
        saves = min(saves, max(limit, 1 + bool(args.load_best_model_at_end)) + 1)
        if resumed := args.resume_from_checkpoint:  # those of before make room
            saves = max(
                saves - len(checkpoints(Path(str(resumed)).parent)), min(saves, 1)
            )
    return saves * forecast.checkpoint_bytes + forecast.model_bytes


def _free(args: TrainingArguments) -> int:
    folder = Path(args.output_dir or OUTPUTS).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _steps_text(args: TrainingArguments, plan: Plan) -> str:
    """Return the steps and epochs of a training in words."""
    batch = args.train_batch_size * args.gradient_accumulation_steps
    epochs = (
        "a stream"
        if plan.epochs is None
        else f"{plan.epochs:.3g} epoch{'s' * (plan.epochs != 1)}"
    )
    if not args.time_limit:
        return f"{plan.steps:,} steps of {batch} examples, {epochs}"
    said = f"as many steps of {batch} examples as fit into {args.time_limit}"
    if args.resume_from_checkpoint:
        return f"{said}: {plan.steps:,}, {epochs}"
    whole, left = duration(args.time_limit), seconds_left(args.time_limit)
    if left <= whole / 2:  # a first download and unpacking are among it
        said += f", {duration_text(whole - left)} of which are gone"
    return f"{said}: about {plan.steps:,}, {epochs}"


def _time(plan: Plan) -> str:
    """Return how long the run will take, and for what."""
    names = {"training": f"training ({plan.step_seconds:.3g} s a step)"}
    parts = [
        f"{names.get(name, name)} {duration_text(seconds)}"
        for name, seconds in plan.seconds.items()
        if seconds >= 0.5
    ]
    said = f"about {duration_text(sum(plan.seconds.values()))} from here: "
    said += ", ".join(parts) or "next to nothing"
    tried = f"trying took {duration_text(plan.trial_seconds)}"
    return f"{said}; {tried if plan.trial_seconds else 'tried before'}"
