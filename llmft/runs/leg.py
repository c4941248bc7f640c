"""What ``run.json`` says of the start of a run, its legs, and one without an end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from llmft.config.parse import Arguments
from llmft.console import say, short
from llmft.errors import ConfigError, DataError, EnvironmentFault
from llmft.files import read_object, write_json
from llmft.machine import detect
from llmft.process import as_fault, versions
from llmft.runs import terminal
from llmft.runs.record import KILLED, TIME, held, read_run
from llmft.signals import signal_of

_NEAR = 0.8  # of what may be held: a log has no peaks


def begun(script: str, args: Arguments, resumed: str | bool | None) -> dict[str, Any]:
    """Return what ``run.json`` says of the start of a leg.

    Args:
        script: the recipe's file. resumed: the checkpoint that it goes on from.
    """
    return {
        "status": "running",
        "command": terminal.command(script, {}, args.command),
        "argv": args.command,
        "script": os.path.abspath(script),
        "working_directory": os.getcwd(),
        "started": time.strftime(TIME),
        "arguments": args.resolved(),
        "versions": versions(),
        "cpu": {"name": detect.cpu_name(), "cores": detect.usable_cores()},
        "resumed": resumed,
        "legs": _legs(resumed),
    }


def since_folds(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return ``record``, started when what is there of a cross-validation was."""
    before = read_object(folder / "run.json").get("started")
    return record | ({"started": before} if before else {})


@contextmanager
def recorded(folder: Path, recipe: str, record: dict[str, Any]) -> Iterator[None]:
    """Have ``run.json`` tell of folds what it tells of a run, so that they go on.

    Behind the block it is an interrupted one, until the last training writes its own.

    Args:
        record: what ``begun`` returned.
    """
    started = time.perf_counter()

    def save(**more: Any) -> None:
        write_json(folder / "run.json", {"recipe": recipe, **record, **more})

    with held(folder):
        save()
        try:
            yield
        except BaseException as error:
            stopped, seconds = signal_of(error), round(time.perf_counter() - started, 1)
            status = "interrupted" if stopped else "failed"
            said = stopped or str(as_fault(error, folder) or repr(error))
            with suppress(OSError):  # a full disk is what ended them
                save(status=status, seconds=seconds, error=said)
            say(f"run        {short(folder)} ({status})")
            if stopped or isinstance(error, EnvironmentFault):
                say(f"go on      {terminal.tool('resume', short(folder))}")
            raise
        save(status="interrupted", seconds=round(time.perf_counter() - started, 1))


def _legs(resumed: Any) -> list[dict[str, Any]]:
    """Return the records of a run that is resumed, the oldest first."""
    if not resumed:
        return []
    folder = Path(resumed).parent.parent
    record = read_object(folder / "run.json")
    if not record:  # a checkpoint that was taken elsewhere
        return []
    if "seconds" not in record:
        # It was killed: what is known is when it last logged.
        with suppress(OSError, ValueError, KeyError, TypeError):
            began = datetime.strptime(record["started"], TIME).timestamp()
            ended = (folder / "metrics.jsonl").stat().st_mtime
            record["seconds"] = round(max(ended - began, 0.0), 1)
    return [*(record.pop("legs", None) or []), record]


def how_it_ended(folder: Path) -> str:
    """Return what to say of the run in a folder, where it was killed; else "".

    That is with SIGKILL, as the kernel does where memory runs out, or in a crash.
    """
    try:
        run = read_run(folder)
        if run.status != KILLED:
            return ""
        events = run.events()
    except (ConfigError, DataError):
        return ""
    said = "the run before ended without a word, as one that was killed does"
    known = [event for event in events if event.get("rss_bytes")]
    if not known:
        return said
    memory, step = known[-1]["rss_bytes"], known[-1]["step"]
    limit, named = detect.allowed_bytes(), detect.allowed_text()
    with suppress(KeyError, TypeError, ValueError):
        limit = int(run.record["plan"]["allowed_bytes"]) or limit
        named = f"{detect.gib(limit)}, as it was when that run began"
    said += f": it held {detect.gib(memory)} at step {step:,}, and may hold {named}"
    if memory >= _NEAR * limit:
        said += (
            "; the kernel ends what takes more: a smaller --per_device_train_batch_size"
            " with more --gradient_accumulation_steps takes less"
        )
    return said
