"""The plan of a run, ahead of it: ``llmft plan``, and a function for programs."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from llmft.errors import ConfigError
from llmft.process import RECIPES, began, load_script, recipe_file
from llmft.runs.plan import Plan
from llmft.train.agreement import AlreadyComplete


def plan(recipe: str | Path, argv: Sequence[str] = (), quiet: bool = True) -> Plan:
    """Return what a run of a recipe would choose and take, as its ``--dry_run`` says.

    Nothing is trained, and nothing written outside the cache.

        plan("mlm", ["--args", "recipes/mlm_cpu.json"]).seconds

    Args:
        recipe: its name, or its file. argv: its arguments, as on the command line.
        quiet: whether to keep what the recipe prints off standard output.

    Raises:
        LlmftError: what the run would end with before it starts.
    """
    if recipe in RECIPES:
        recipe = recipe_file(str(recipe))
    if not (Path(recipe).is_file() and Path(recipe).suffix == ".py"):
        raise ConfigError(
            "no recipe; name one, or its file, as recipes/mlm.py", path=recipe
        )
    hides = redirect_stdout(io.StringIO()) if quiet else nullcontext()
    before = began.set(time.time())
    try:
        with hides:
            return load_script(str(recipe)).main([*argv, "--dry_run"])
    except AlreadyComplete as done:
        if not quiet:
            raise
        return Plan([], folder=str(done.folder))
    finally:
        began.reset(before)
