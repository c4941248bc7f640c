"""The recipes as functions and commands, from a checkout or an installed wheel."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmft import process
from llmft.config.task import Task
from llmft.errors import ConfigError
from llmft.files import to_json
from llmft.machine import detect
from llmft.process import (
    TERMINATED,
    Terminated,
    as_fault,
    libraries_as_before,
    load_script,
    recipe_file,
    terminable,
)
from llmft.runs.plan import Plan
from llmft.runs.record import RunRecord, read_run
from llmft.train.agreement import AlreadyComplete
from llmft.train.randomness import drawing_apart


def run_recipe(task: Task, arguments: Mapping[str, Any]) -> RunRecord | Plan:
    """Run the recipe of a task in this process.

    Its libraries, threads and random numbers are afterwards as they were before. Time
    and memory count from here.

    Args:
        arguments: those of its flags, as values of Python; ``args`` is a JSON file.

    Returns:
        the run; with ``dry_run``, or where only prompts are continued, its plan.

    Raises:
        LlmftError: what ends the command with the exit code of its class.
    """
    if "help" in arguments or "help_all" in arguments:
        raise ConfigError(f"help is what `llmft {task.recipe} --help` shows")
    argv = as_flags(arguments)
    threads, before = torch.get_num_threads(), process.began.set(time.time())
    detect.forget_peak()
    with libraries_as_before(), drawing_apart():
        try:
            with terminable():
                plan = load_script(str(recipe_file(task.recipe))).main(argv)
        except AlreadyComplete as done:
            return read_run(done.folder)
        except Terminated:
            raise SystemExit(TERMINATED) from None
        except Exception as error:
            fault = as_fault(error)
            if fault is None or fault is error:
                raise
            raise fault from error
        finally:
            torch.set_num_threads(threads)
            process.began.reset(before)
    return read_run(Path(plan.folder)) if plan.folder else plan


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that gives these values."""
    words = []
    for name, value in arguments.items():
        several = isinstance(value, list | tuple | set)
        given = [_word(v) for v in (value if several else [value])]
        if not given:  # no list is empty on a command line
            given = ["none"] if name == "report_to" else []
        if any(word.startswith("-") or not word for word in given):
            words += [f"--{name}={word}" for word in given]
        elif given:
            words += [f"--{name}", *given]
    return words


def _word(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool | np.bool_ | None):
        return str(value).lower()
    return to_json(value) if isinstance(value, dict) else str(value)
