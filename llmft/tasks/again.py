"""``llmft resume``: a run goes on, from what its record says."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmft.config.facts import fields_with
from llmft.config.fields import AUTO
from llmft.config.fields import RECIPES as RECIPE_FIELDS
from llmft.console import say, short, warn
from llmft.errors import ConfigError
from llmft.process import RECIPES, recipe_file, run_main
from llmft.runs import terminal
from llmft.runs.record import FOLDS, find_run, held
from llmft.train.resume import COMPLETE, goes_on_from


def resume(name: str, flags: Sequence[str] = ()) -> None:
    """Start a run again where it was started, as its record says, to go on.

    Args:
        name: as ``find_run`` takes it. flags: they win over those of before.

    Raises:
        ConfigError: there is no such run, or its record does not say how it began.
        EnvironmentFault: another process trains there.
    """
    if (Path(name) / FOLDS).is_dir() and not (Path(name) / "run.json").exists():
        said = "a cross-validation that was stopped in its folds goes on by its own"
        raise ConfigError(f"{said} command, with the same --output_dir", path=name)
    at = Path(os.path.abspath(name))
    is_checkpoint = at.is_dir() and at.parent.name == "checkpoints"
    run = find_run(str(at.parent.parent) if is_checkpoint else name)
    asked = is_checkpoint or flags or run.arguments.get("push_to_hub")
    if run.status == COMPLETE and not asked and (run.folder / "model").is_dir():
        steps = run.metrics.get("run", {}).get("steps")
        said = f" ({steps:,} steps)" if steps else ""
        say(f"already complete{said}: {short(run.folder)}")
        return
    with held(run.folder):  # else it goes on there already: nothing more is said
        pass
    script, argv = _script(run.record, run.folder), run.record.get("argv")
    if not isinstance(argv, list):
        said = "it does not say with which arguments the run was started"
        raise ConfigError(said, path=run.folder / "run.json")
    folder = run.folder.resolve()
    flags = _from_anywhere(flags)
    place = Path(str(run.record.get("working_directory") or Path.cwd()))
    if place.is_dir():
        os.chdir(place)
    else:
        warn(f"{place}, where the run was started, is gone: paths are of this folder")
    here = Path.cwd()
    ours = {"output_dir": short(folder), "resume_from_checkpoint": AUTO}
    given = {_name(word) for word in flags}
    if is_checkpoint:
        ours["resume_from_checkpoint"] = str(at)
    elif "output_dir" in given:
        last, passed = goes_on_from(folder)
        for reason in passed:
            warn(f"passed over {reason}")
        if last:
            ours["resume_from_checkpoint"] = str(last)  # in another folder
    words = _without(list(map(str, argv)), {*ours} | given)
    for flag, value in ours.items():
        words += [f"--{flag}", value] if flag not in given else []
    words += flags
    command = terminal.command(str(script), {}, words)
    say(f"command    cd {shlex.quote(str(here))} && {command}")
    run_main(script, words)


def _absolute(path: str, is_new: bool) -> str:
    """Return the whole path of what is there, or of a pattern; else what is given."""
    there = is_new or os.path.exists(path) or any(sign in path for sign in "*?[")
    return os.path.abspath(os.path.expanduser(path)) if there else path


def _from_anywhere(flags: Sequence[str]) -> list[str]:
    """Return flags in which files are named by their whole path."""
    paths = [*fields_with("path", *RECIPE_FIELDS), "args"]
    found, is_path, is_new = list[str](), False, False
    for word in flags:
        if name := _name(word):
            flag, given, value = word.partition("=")
            is_path, is_new = name in paths, name == "output_dir"
            if is_path and given:
                word = f"{flag}={_absolute(value, is_new)}"
        elif is_path:
            word = _absolute(word, is_new)
        found.append(word)
    return found


def _script(record: Mapping[str, Any], folder: Path) -> Path:
    """Return the recipe of a run: its own file, or llmft's of that name."""
    path = Path(str(record.get("script") or record.get("recipe")))
    if path.is_file():
        return path
    if path.stem in RECIPES:
        return recipe_file(path.stem)
    said = f"the script of the run, {path}, is gone"
    raise ConfigError(said, path=folder / "run.json")


def _name(word: str) -> str:
    """Return the argument that a flag gives; "" of a word that is none."""
    if not word.startswith("--"):
        return ""
    name = word.removeprefix("--").partition("=")[0].replace("-", "_")
    return name.removeprefix("no_")


def _without(argv: Sequence[str], names: set[str]) -> list[str]:
    """Return a command line without some of its arguments."""
    kept, keeps = [], True
    for word in argv:
        if name := _name(word):
            keeps = name not in names
        if keeps:
            kept.append(word)
    return kept
