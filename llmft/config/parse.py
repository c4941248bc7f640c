"""From a command line and a JSON file to dataclasses, with every problem at once.

Types, ranges and unknown names are checked here, alike for flags and for JSON, because
argparse (and HfArgumentParser on top of it) stops at the first problem.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmft.config.build import build
from llmft.config.command_line import read_command_line
from llmft.config.convert import convert
from llmft.config.facts import Argument, fields_of, fields_with
from llmft.config.fields import TrainingArguments
from llmft.config.fold import Fold
from llmft.config.rules import (
    ACTIONS,
    COMMAND_LINE,
    FILES,
    follow,
    relations,
)
from llmft.console import say
from llmft.errors import ConfigError, escape, nearest

_OFF = ("false", "no", "0")


@dataclass(frozen=True)
class Arguments:
    """What ``parse`` returns: the recipe's dataclasses, and where they come from."""

    model: Any
    data: Any
    training: TrainingArguments
    origins: dict[str, str]  # of each value that is no default
    command: list[str] = dataclasses.field(default_factory=list)  # without the program
    fold: Fold | None = None  # which training of a cross-validation it is

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Every argument with its value and origin, ready for JSON."""
        shown: dict[str, dict[str, Any]] = {}
        for part in (self.model, self.data, self.training):
            for f in dataclasses.fields(part):
                value = getattr(part, f.name)
                value = value.value if isinstance(value, enum.Enum) else value
                if not isinstance(value, str | int | float | list | dict | None):
                    value = str(value)
                origin = self.origins.get(f.name, "default")
                shown[f.name] = {"value": value, "from": origin}
        return shown


def parse(
    argv: list[str],
    model_class: type,
    data_class: type,
    training: type[TrainingArguments] | partial = TrainingArguments,
    *,
    description: str,
    metrics: Mapping[str, bool],
    default_file: Path | None = None,
    check: Callable[[dict[str, Any]], list[str]] = lambda values: [],
) -> Arguments:
    """Read and check the arguments of a recipe.

    Args:
        training: ``TrainingArguments``, or a ``partial`` of it whose keywords are the
            recipe's own defaults.
        metrics: what the task measures, each with whether greater is better.
        default_file: the JSON file that holds without ``--args``.
        check: a recipe's own check of the values; returns problems.

    Raises:
        ConfigError: with all problems in one message.
    """
    made: Any = training if isinstance(training, partial) else partial(training)
    classes = (model_class, data_class, made.func)
    fields = fields_of(*classes)
    defaults = {name: a.default for name, a in fields.items()} | made.keywords
    shown = read_json(default_file, fields)[0] if default_file else {}
    file_name, flags, problems = read_command_line(
        argv, classes, defaults | shown, description
    )
    path = Path(file_name) if file_name else default_file
    from_file, unknown = read_json(path, fields) if path else ({}, [])
    _replace(from_file, flags, fields, file_name)
    _find_batch_size(flags, from_file)
    for name in fields_with("auto", *classes):  # it is what is left where none is given
        if str({**from_file, **flags}.get(name)) == "auto":
            flags.pop(name, None)
            from_file.pop(name, None)
    origins = {name: str(path) for name in from_file}
    origins |= dict.fromkeys(flags, COMMAND_LINE)
    values, wrong = _converted({**from_file, **flags}, fields, origins)
    full = defaults | values
    full |= follow(full, origins, metrics)
    unfit = relations(full, origins, metrics)
    problems += unknown + wrong + unfit + check(full)
    parts = [{name: full[name] for name in fields_of(c)} for c in classes]
    built, faults = build(made.func, parts[2]) if not unfit else (None, [])
    problems += faults
    if problems or built is None:
        raise ConfigError(*problems)
    return Arguments(
        model_class(**parts[0]), data_class(**parts[1]), built, origins, list(argv)
    )


def _converted(
    given: Mapping[str, Any],
    fields: Mapping[str, Argument],
    origins: Mapping[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of what was given, and a problem for each that is none."""
    values, problems = {}, []
    for name, raw in given.items():
        try:
            values[name] = convert(raw, fields[name].type, fields[name].facts)
        except ValueError as error:
            said = escape(f'"{raw}"' if isinstance(raw, str) else raw, 80)
            where = f"{origins[name]}: " if origins[name] != COMMAND_LINE else ""
            problems.append(f"{where}{name} is {said}, expected {error}")
    return values, problems


def _replace(
    from_file: dict[str, Any],
    flags: Mapping[str, Any],
    fields: Mapping[str, Argument],
    file_name: str | None,
) -> None:
    """Take out of the file what the command line replaces as a whole.

    Naming a data set or a training file on the command line replaces the file's data
    source with its columns, and its test where no other is named; that is said of a
    file that the user named. Asking for a step (--do_predict) replaces the steps of
    the default file: it means just that step. Naming data or a model replaces what the
    default file says of epochs and rate, too, which is for its own. What a model that
    is not trained should measure or predict is never the default data.
    """
    asked = {n for n in ACTIONS & flags.keys() if str(flags[n]).lower() not in _OFF}
    gone = [n for n in from_file if n in ACTIONS and asked and not file_name]
    named = [n for n in ("dataset_name", "train_file") if n in flags]
    if not named and "dataset_name" in from_file:
        named = [name for name in FILES if name in flags]
    if named:
        gone += [n for n in from_file if fields[n].facts.get("source")]
        tests = {"test_file", "test_split_percentage", "test_split_name"}
        if not tests & flags.keys() and not from_file.get("test_split_percentage"):
            gone += ["do_predict"]
    if not file_name and (named or "model_name_or_path" in flags):
        gone += [n for n in from_file if fields[n].facts.get("auto")]
    steps = asked or {*ACTIONS} - flags.keys()
    if not file_name and "model_name_or_path" in flags and "do_train" not in steps:
        gone += [n for n in from_file if fields[n].facts.get("source") and not named]
    if "num_train_epochs" in flags and "max_steps" not in flags:
        gone += ["max_steps"]
        named += ["num_train_epochs"] * ("max_steps" in from_file)
    lost = [n for n in gone if from_file.pop(n, None) is not None and n not in flags]
    if file_name and lost:
        by = " and ".join(f"--{name}" for name in named)
        say(f"note: {by} replaces of {file_name}: {', '.join(lost)}")


def _find_batch_size(flags: dict[str, Any], from_file: dict[str, Any]) -> None:
    """Take ``auto`` as a batch size for auto_find_batch_size, from the number beside.

    That is the one of the file, or the default.
    """
    name = "per_device_train_batch_size"
    for given in (flags, from_file):
        if str(given.get(name)) == "auto":
            del given[name]
            given.setdefault("auto_find_batch_size", True)
        elif name in given:  # a number that goes before an auto of the file
            break


def read_json(path: Path, names: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a JSON file, and the problems with its names.

    Raises ConfigError when it cannot be read, is not JSON, or is not an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(k for k, _ in pairs if [n for n, _ in pairs].count(k) > 1)
            raise ConfigError(f"{twice!r} stands there twice", path=path)
        return values

    try:
        values = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        said = f"cannot read it: {error.strerror}"
    except UnicodeDecodeError:
        said = "not UTF-8; save it as UTF-8"
    except json.JSONDecodeError as error:
        said = f"not JSON: line {error.lineno} column {error.colno}: {error.msg}"
    except RecursionError:
        said = "nested too deeply"
    except ValueError as error:  # a number of more than 4,300 digits
        said = f"not JSON: {error}"
    else:
        if isinstance(values, dict):
            unknown = [
                f"{path}: unknown key {name!r}{nearest(name, names)}"
                for name in values
                if name not in names
            ]
            return {n: v for n, v in values.items() if n in names}, unknown
        said = "not a JSON object of argument names and values"
    raise ConfigError(said, path=path)
