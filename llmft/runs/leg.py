"""What ``run.json`` says of the start of a run, and of each time that it went on."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from llmft.config.parse import Arguments
from llmft.files import read_object
from llmft.machine import detect
from llmft.process import versions
from llmft.runs import terminal
from llmft.runs.record import TIME


def begun(script: str, args: Arguments, resumed: str | bool | None) -> dict[str, Any]:
    """Return what ``run.json`` says of the start of a leg.

    Args:
        script: the recipe's file. resumed: the checkpoint that it goes on from.
    """
    return {
        "status": "running",
        "command": terminal.written(script, args.command),
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
