"""What a run prints at its end: results, and the commands that follow."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmft.console import say, short, table
from llmft.files import disk
from llmft.metrics.intervals import standard_error
from llmft.process import by_llmft
from llmft.runs.record import FOLDS
from llmft.sources.wheels import size_text

# Ends the name of a part of the results without the rows that train has, too.
UNSHARED = "_without_shared"

_OF_TOKENIZER = ("tokenizer_name", "chat_template_path")


def results(
    measured: Mapping[str, Mapping[str, Any]], names: Sequence[str], split: str | None
) -> str:
    """Return the metrics ``names`` as a table, or "".

    Args:
        measured: by part, as in ``metrics.json``.
        split: what "before" was measured on.
    """
    on = {"eval": "validation", "before": f"{split}, before"}
    on |= {"folds": "rows held out"}
    rows, header = [], ["on", "metric", "value", "+-", "n"]
    beside = any(part.endswith(UNSHARED) for part in measured)
    header += ["not in train", "+-", "n"] if beside else []
    for part, metrics in measured.items():
        others = measured.get(part + UNSHARED, {})
        for name in () if part.endswith(UNSHARED) else names:
            if name in metrics:
                other = _cells(name, others[name]) if name in others else ()
                cells = (*_cells(name, metrics[name]), *other)
                rows.append((on.get(part, part), name, *cells))
    rows = [(*row, *[""] * (len(header) - len(row))) for row in rows]
    return f"\nresults\n{table(rows, header)}" if rows else ""


def _cells(name: str, entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return value, standard error and number of a metric, for a table."""
    value, error = entry["value"], standard_error(name, entry)
    shown = "-" if value is None else f"{value:,.4g}"
    spread = "-" if error is None else f"{error:.2g}"
    return shown, spread, f"{entry['n']:,}"


def where(folder: Path, given: Mapping[str, Any]) -> None:
    """Say where the results of a run are."""
    if (folder / "predictions.jsonl").is_file():
        say(f"\npredicted  {short(folder / 'predictions.jsonl')}")
    say(f"\nrun        {short(folder)}")
    predicts = any((folder / name).exists() for name in ("predictions.jsonl", FOLDS))
    if predicts and (folder / "model").is_dir():
        say(f"use        {tool('predict', short(folder), 'NEW.csv')}")
    if (folder / "report.html").is_file():
        say(f"report     {short(folder / 'report.html')}")
    if given["do_train"] and "tensorboard" in given["report_to"]:
        words = [_tool("tensorboard"), "--logdir", short(folder / "logs")]
        say(f"curves     {shlex.join(words)}")
    if size := disk(folder / "checkpoints"):
        clean = tool("runs", "clean", short(folder), "--checkpoints", "--yes")
        say(f"disk       {size_text(size)} of checkpoints; {clean}")


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
    words = _program(script)
    for name, value in values.items():
        if value is not None:
            several = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, several)]
    return shlex.join([*words, *flags])


def _program(script: str) -> list[str]:
    """Return the words that start a recipe."""
    if by_llmft(Path(script)):
        return [*_llmft(), Path(script).stem]
    return [_tool(os.path.basename(sys.executable)), short(Path(script))]


def tool(*words: str) -> str:
    """Return the command line of `llmft` with these words."""
    return shlex.join([*_llmft(), *words])


def _llmft() -> list[str]:
    if Path(sys.executable).with_name("llmft").exists():
        return [_tool("llmft")]
    return [_tool(os.path.basename(sys.executable)), "-m", "llmft"]


def _tool(name: str) -> str:
    """Return how to call a program of this Python: by name where the shell finds it."""
    path = Path(sys.executable).with_name(name)
    return name if shutil.which(name) == str(path) else short(path)
