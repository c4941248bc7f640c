"""The plan of a run, ahead of it: ``llmft plan``, and a function for programs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from llmft.errors import ConfigError
from llmft.process import RECIPES, load_script, recipe_file
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
    arguments = [*argv, "--dry_run"]
    if not quiet:
        return load_script(str(recipe)).main(arguments)
    try:
        with redirect_stdout(io.StringIO()):
            return load_script(str(recipe)).main(arguments)
    except AlreadyComplete as done:
        return Plan([], folder=str(done.folder))
