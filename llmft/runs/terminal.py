"""What a run prints: its plan, its results, and the commands that follow."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmft.config.choice import Choice
from llmft.config.parse import Arguments
from llmft.console import say, table
from llmft.machine import detect
from llmft.machine.detect import gib
from llmft.machine.plan import Forecast, duration_text
from llmft.train.resume import epoch_steps, events, training_steps
from llmft.train.time_limit import seconds_left, steps_within

_OF_TOKENIZER = ("tokenizer_name", "chat_template_path")


def plan(
    args: Arguments,
    choices: Iterable[Choice],
    train: Any | None,
    forecast: Forecast | None = None,
) -> None:
    """Say what is going to happen: the choices with their reasons, steps, and time."""
    say("plan")
    for choice in choices:
        say(f"  {choice.name:<10} {choice.value} ({choice.reason})")
    t = args.training
    steps, per_epoch = 0, None
    if train is not None and t.do_train:
        per_epoch = epoch_steps(t, train) if hasattr(train, "__len__") else None
        steps = _steps(t, train, per_epoch, forecast)
        shown = _steps_text(t, steps, per_epoch)
        say(f"  {'training':<10} {shown}, learning rate {t.learning_rate:g}")
    if forecast is not None:
        say(f"  {'time':<10} {_time(t, forecast, steps, per_epoch)}")
        if forecast.peak_bytes:
            allowed = gib(detect.allowed_bytes())
            said = f"about {gib(forecast.peak_bytes)} at the most, of {allowed}"
            say(f"  {'memory':<10} {said} that may be used")
    if t.dry_run:
        say("\ndry run    all checks passed; nothing was written outside the cache")


def _steps(t: Any, train: Any, per_epoch: int | None, forecast: Forecast | None) -> int:
    """Return the steps of a training, about those that fit into a time limit."""
    if not t.time_limit or t.resume_from_checkpoint:
        return training_steps(t, train)
    assert forecast is not None
    return steps_within(seconds_left(t.time_limit), forecast, per_epoch, t)


def _steps_text(t: Any, steps: int, per_epoch: int | None) -> str:
    """Return the steps and epochs of a training in words."""
    batch = t.train_batch_size * t.gradient_accumulation_steps
    epochs = f"{steps / per_epoch:.3g} epochs" if per_epoch else "a stream"
    if not t.time_limit:
        return f"{steps:,} steps of {batch} examples, {epochs}"
    said = f"as many steps of {batch} examples as fit into {t.time_limit}"
    about = "" if t.resume_from_checkpoint else "about "
    return f"{said}: {about}{steps:,}, {epochs}"


def _time(t: Any, forecast: Forecast, steps: int, per_epoch: int | None) -> str:
    """Return how long the run will take, and for what."""
    evaluations = events(t.eval_strategy, t.eval_steps, steps, per_epoch)
    saves = events(t.save_strategy, t.save_steps, steps, per_epoch)
    parts = {
        f"training ({forecast.step_seconds:.3g} s a step)": steps
        * forecast.step_seconds,
        "evaluating": evaluations * forecast.evaluation_seconds,
        "checkpoints": saves * forecast.save_seconds,
        "the end": forecast.final_seconds,
    }
    shown = ", ".join(f"{n} {duration_text(s)}" for n, s in parts.items() if s >= 0.5)
    total = duration_text(sum(parts.values()))
    tried = f"; trying took {duration_text(forecast.trial_seconds)}"
    return f"about {total}: {shown or 'next to nothing'}" + tried * bool(
        forecast.trial_seconds
    )


def results(
    measured: Mapping[str, Mapping[str, Any]], names: Sequence[str], split: str | None
) -> str:
    """Return the metrics ``names`` as a table, or "".

    Args:
        measured: by part, as in ``metrics.json``.
        split: what "before" was measured on.
    """
    on = {"eval": "validation", "before": f"{split}, before"}
    rows = []
    for part, metrics in measured.items():
        for name in (n for n in names if n in metrics):
            value, error = metrics[name]["value"], metrics[name]["stderr"]
            shown = "-" if value is None else f"{value:,.4g}"
            spread = "-" if error is None else f"{error:.2g}"
            n = f"{metrics[name]['n']:,}"
            rows.append((on.get(part, part), name, shown, spread, n))
    header = ["on", "metric", "value", "+-", "n"]
    return f"\nresults\n{table(rows, header)}" if rows else ""


def where(folder: Path, given: Mapping[str, Any]) -> None:
    """Say where the results of a run are."""
    if (folder / "predictions.jsonl").is_file():
        say(f"\npredicted  {short(folder / 'predictions.jsonl')}")
    say(f"\nrun        {short(folder)}")
    if given["do_train"] and "tensorboard" in given["report_to"]:
        logs = shlex.quote(short(folder / "logs"))
        say(f"curves     {_tool('tensorboard')} --logdir {logs}")


def next_values(
    folder: Path, given: Mapping[str, Any], keep: Sequence[str]
) -> dict[str, Any]:
    """Return the arguments of a command on the model of a run, or on the one it used.

    Args:
        given: the arguments of the run. keep: those that the command takes over.
    """
    model = ("model_name_or_path", "model_revision", *_OF_TOKENIZER)
    values = {name: given.get(name) for name in (*model, *keep)}
    if given["do_train"]:
        values |= dict.fromkeys(model)
        values["model_name_or_path"] = short(folder / "model")
    return values


def command(script: str, values: Mapping[str, Any], flags: Iterable[str] = ()) -> str:
    """Return the command line that runs a recipe with these values, then ``flags``.

    What is None is left out.
    """
    words = [_tool(os.path.basename(sys.executable)), short(Path(script))]
    for name, value in values.items():
        if value is not None:
            several = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, several)]
    return shlex.join([*words, *flags])


def resume_command(script: str, argv: Sequence[str], folder: Path) -> str:
    """Return the command that goes on from checkpoint ``folder``.

    Args:
        argv: the arguments of the run that was stopped.
    """
    flag = "--resume_from_checkpoint"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, flag.replace("_", "-"), nargs="?")
    _, others = parser.parse_known_args(argv)
    return command(script, {}, [*others, flag, short(folder)])


def _tool(name: str) -> str:
    """Return how to call a program of this Python: by name where the shell finds it."""
    path = Path(sys.executable).with_name(name)
    return name if shutil.which(name) == str(path) else short(path)


def short(path: Path) -> str:
    """Return ``path`` relative to the working directory where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)
