"""``--profile``: what the steps of a training spend their time on."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from llmft.console import say
from llmft.files import publish_folder
from llmft.sources.wheels import size_text

FOLDER, TRACE, LOOP = "profile", "trace.json.gz", "loop.prof"
_WARM, _STEPS, _SHOWN = 3, 10, 10
_MOST = 2**26  # bytes of a trace that are kept


@contextmanager
def _silent() -> Iterator[None]:
    """Let nothing reach standard error: torch writes a line there, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Profile(TrainerCallback):
    """Keeps torch's profile of ten steps, then Python's of the next ten.

    The first steps are left out: they allocate and compile. Of a shorter training it
    keeps what there is.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, 0
        self.by_torch: Any = None
        self.by_python: cProfile.Profile | None = None
        self.told = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Begin with one or the other."""
        if self.done == _WARM:
            self.by_torch = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU]
            )
            with _silent():
                self.by_torch.start()
        elif self.done == _WARM + _STEPS:
            self.by_python = cProfile.Profile()
            self.by_python.enable()

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """End what had its steps."""
        self.done += 1
        if self.done == _WARM + _STEPS:
            with _silent():
                self.by_torch.stop()
        elif self.done == _WARM + 2 * _STEPS and self.by_python:
            self.by_python.disable()
            self._tell()

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Keep what there is of a training that was shorter."""
        if self.told:
            return
        if self.by_torch is None:
            said = f"nothing: this training had {self.done} steps, {_WARM} are left out"
            say(f"profile    {said}")
            return
        if self.done < _WARM + _STEPS:
            with _silent():
                self.by_torch.stop()
        elif self.by_python:
            self.by_python.disable()
        self._tell()

    def _tell(self) -> None:
        """Write both, and say what took the most."""
        target, note = self.folder / FOLDER, ""
        with publish_folder(target, replace=True) as staging:
            trace = staging / TRACE
            self.by_torch.export_chrome_trace(str(trace))
            if (size := trace.stat().st_size) > _MOST:
                trace.unlink()
                note = f"; the trace would be {size_text(size)}, and is left out"
            if self.by_python:
                self.by_python.dump_stats(staging / LOOP)
        steps = min(self.done - _WARM, _STEPS)
        say(f"profile    {target}{note}")
        say(f"torch, {steps} steps\n{_of_torch(self.by_torch)}")
        if self.by_python:
            steps = self.done - _WARM - _STEPS
            say(f"Python, {steps} steps\n{_of_python(self.by_python)}")
        self.by_torch, self.by_python, self.told = None, None, True


def _of_torch(profile: Any) -> str:
    found = profile.key_averages()
    return str(found.table(sort_by="self_cpu_time_total", row_limit=_SHOWN)).strip()


def _of_python(profile: cProfile.Profile) -> str:
    shown = io.StringIO()
    pstats.Stats(profile, stream=shown).sort_stats("tottime").print_stats(_SHOWN)
    return shown.getvalue().strip()
