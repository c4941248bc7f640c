"""From a command line and a JSON file to dataclasses, with every problem at once.

``argparse`` takes the command line apart and prints ``--help``. Types, ranges and
unknown names are checked here, alike for flags and for JSON, because argparse (and
HfArgumentParser on top of it) stops at the first problem.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_origin

from llmft.config.convert import Text, choices_of, convert, kinds_of
from llmft.config.facts import default_of, facts_of, fields_of
from llmft.config.fields import TrainingArguments
from llmft.config.rules import ACTIONS, FILES, build, follow, relations
from llmft.console import say
from llmft.errors import ConfigError, escape, nearest

COMMAND_LINE = "command line"
_OFF = ("false", "no", "0")


@dataclass(frozen=True)
class Group:
    """The fields that ``--help`` shows under one heading, in their order."""

    title: str
    names: list[str] = dataclasses.field(default_factory=list)
    shown: bool = True


class _Help(argparse.HelpFormatter):
    """Keeps the lines of the description: its command lines are there to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrap = textwrap.TextWrapper(width)
        lines = [
            line if line.startswith("python ") else wrap.fill(line)
            for line in text.strip().splitlines()
        ]
        return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


@dataclass(frozen=True)
class Arguments:
    """What ``parse`` returns.

    Attributes:
        model, data, training: the recipe's dataclasses.
        origins: where each value came from, of those that are no defaults.
        command: the command line that was parsed, without the program's name.
    """

    model: Any
    data: Any
    training: TrainingArguments
    origins: dict[str, str]
    command: list[str] = dataclasses.field(default_factory=list)

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
        argv: the command line without the program's name.
        model_class, data_class: the recipe's own dataclasses.
        training: ``TrainingArguments``, or a ``partial`` of it whose keywords are the
            recipe's own defaults.
        description: the first line of ``--help``.
        metrics: what the task measures, each with whether greater is better.
        default_file: the JSON file that holds without ``--args``.
        check: a recipe's own check of the values; returns problems.

    Raises:
        ConfigError: with all problems in one message.
    """
    made = training if isinstance(training, partial) else partial(training)
    classes = (model_class, data_class, TrainingArguments)
    fields = fields_of(classes)
    groups = _groups(model_class, data_class)
    defaults = {name: default_of(f) for name, (f, _) in fields.items()}
    defaults |= made.keywords
    shown = read_json(default_file, list(fields))[0] if default_file else {}
    file_name, flags, problems = read_command_line(
        argv, classes, groups, defaults | shown, description
    )
    path = Path(file_name) if file_name else default_file
    from_file, unknown = read_json(path, list(fields)) if path else ({}, [])
    _replace(from_file, flags, fields, file_name)
    problems += unknown
    origins = {name: str(path) for name in from_file}
    origins |= dict.fromkeys(flags, COMMAND_LINE)
    values, wrong = _converted({**from_file, **flags}, fields, origins)
    problems += wrong
    full = defaults | values
    full |= follow(full, origins, metrics)
    unfit = relations(full, origins, metrics)
    problems += unfit + check(full)
    values |= {n: v for n, v in full.items() if n in origins}
    parts = [{n: values[n] for n in fields_of([c]) if n in values} for c in classes]
    built, faults = build({**made.keywords, **parts[2]}) if not unfit else (None, [])
    problems += faults
    if problems or built is None:
        raise ConfigError(*problems)
    return Arguments(
        model_class(**parts[0]), data_class(**parts[1]), built, origins, list(argv)
    )


def _converted(
    given: Mapping[str, Any], fields: Mapping, origins: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of what was given, and a problem for each that is none."""
    values, problems = {}, []
    for name, raw in given.items():
        f, hint = fields[name]
        try:
            values[name] = convert(raw, hint, facts_of(f))
        except ValueError as error:
            said = escape(f'"{raw}"' if isinstance(raw, str) else raw, 80)
            where = f"{origins[name]}: " if origins[name] != COMMAND_LINE else ""
            problems.append(f"{where}{name} is {said}, expected {error}")
    return values, problems


def _groups(model_class: type, data_class: type) -> list[Group]:
    """Return what ``--help`` shows: of training first what is llmft's or most used."""
    found = [
        Group("Model", list(fields_of([model_class]))),
        Group("Data", list(fields_of([data_class]))),
        Group("Training"),
        Group("Everything else of transformers.TrainingArguments"),
        Group("Refused", shown=False),
    ]
    for name, (f, _) in fields_of([TrainingArguments]).items():
        facts = facts_of(f)
        used = facts.get("most_used", name in TrainingArguments.__annotations__)
        place = 4 if "refused" in facts else 2 if used else 3
        found[place].names.append(name)
    found[2].names.sort(key=lambda name: name not in ACTIONS)
    return found


def _replace(
    from_file: dict[str, Any],
    flags: Mapping[str, Any],
    fields: Mapping,
    file_name: str | None,
) -> None:
    """Take out of the file what the command line replaces as a whole.

    Naming a data set or a training file on the command line replaces the file's data
    source with its columns, and its test where no other is named; that is said of a
    file that the user named. Asking for a step (--do_predict) replaces the steps of
    the default file: it means just that step.
    """
    asked = {n for n in ACTIONS & flags.keys() if str(flags[n]).lower() not in _OFF}
    gone = [n for n in from_file if n in ACTIONS and asked and not file_name]
    named = [n for n in ("dataset_name", "train_file") if n in flags]
    if not named and "dataset_name" in from_file:
        named = [name for name in FILES if name in flags]
    if named:
        gone += [n for n in from_file if facts_of(fields[n][0]).get("source")]
        tests = {"test_file", "test_split_percentage", "test_split_name"}
        if not tests & flags.keys() and not from_file.get("test_split_percentage"):
            gone += ["do_predict"]
    lost = [n for n in gone if from_file.pop(n, None) is not None and n not in flags]
    if file_name and lost:
        by = " and ".join(f"--{name}" for name in named)
        say(f"note: {by} replaces of {file_name}: {', '.join(lost)}")


def read_command_line(
    argv: list[str],
    classes: Sequence[type],
    groups: Sequence[Group],
    defaults: dict[str, Any],
    description: str,
) -> tuple[str | None, dict[str, Any], list[str]]:
    """Split ``argv`` into the file of ``--args``, raw flag values, and problems."""
    fields = fields_of(classes)
    parser = _Parser(
        usage="%(prog)s [--args FILE.json] [--NAME VALUE ...]",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--args", metavar="FILE.json", help="values; flags override")
    for group in groups:
        section = parser.add_argument_group(group.title)
        for name in group.names:
            _add_flag(section, name, *fields[name], defaults, group.shown)
    argv = [_underscored(word) for word in argv]
    namespace, unknown = parser.parse_known_args(argv)
    problems = []
    for i, word in enumerate(unknown):
        name = word.split("=")[0].removeprefix("--")
        if word.startswith("--"):
            problems.append(f"unknown argument --{name}{nearest(name, fields)}")
        elif not unknown[i - 1].startswith("--") or i == 0:  # else: its value
            problems.append(f"unexpected {word!r}: every argument has a --name")
    values = vars(namespace)
    return values.pop("args", None), values, problems


def read_json(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
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
        raise ConfigError(f"cannot read it: {error.strerror}", path=path) from None
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8; save it as UTF-8", path=path) from None
    except json.JSONDecodeError as error:
        said = f"not JSON: line {error.lineno} column {error.colno}: {error.msg}"
        raise ConfigError(said, path=path) from None
    except RecursionError:
        raise ConfigError("nested too deeply", path=path) from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise ConfigError(f"not JSON: {error}", path=path) from None
    if not isinstance(values, dict):
        raise ConfigError("not a JSON object of argument names and values", path=path)
    unknown = [name for name in values if name not in names]
    problems = [f"{path}: unknown key {n!r}{nearest(n, names)}" for n in unknown]
    return {n: v for n, v in values.items() if n in names}, problems


def _underscored(word: str) -> str:
    """Let ``--max-seq-length`` stand for ``--max_seq_length``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _add_flag(
    section: Any,
    name: str,
    field: dataclasses.Field,
    hint: Any,
    defaults: dict,
    shown_in_help: bool,
) -> None:
    class Keep(argparse.Action):
        def __call__(
            self, parser: Any, namespace: Any, values: Any, option_string: Any = None
        ) -> None:
            if self.nargs == 0:  # --no_NAME
                values = "false"
            words = (values,) if isinstance(values, str) else tuple(values)
            if adds_up:  # --prompt A --prompt B are two
                words = (*getattr(namespace, name, Text(())).words, *words)
            setattr(namespace, name, Text(words))

    kinds = kinds_of(hint)
    adds_up = name != "report_to" and any(get_origin(k) is list for k in kinds)
    default = defaults[name]
    said = str(field.metadata.get("help", "")).split("\n\n")[0].strip()
    choices = [str(c) for kind in kinds for c in choices_of(kind)]
    said += f" One of {', '.join(choices)}." if choices and len(choices) < 8 else ""
    shown = default.value if isinstance(default, enum.Enum) else default
    said = " ".join(f"{said} (default: {shown})".split())
    said = said.replace("%%", "%").replace("%", "%%")
    said = said if shown_in_help else argparse.SUPPRESS
    options: dict[str, Any] = {"action": Keep, "dest": name, "help": said}
    if bool in kinds:
        metavar = "VALUE" if str in kinds else "BOOL"
        options |= {"nargs": "?", "const": "true", "metavar": metavar}
    elif any(get_origin(kind) is list for kind in kinds):
        options |= {"nargs": "+", "metavar": "VALUE"}
    else:
        options |= {"metavar": "VALUE"}
    if name == "debug":  # bare --debug shows tracebacks and sets no DebugOption
        options |= {"nargs": "?", "const": ""}
    section.add_argument(f"--{name}", **options)
    if bool in kinds and default is True:
        section.add_argument(
            f"--no_{name}", action=Keep, dest=name, nargs=0, help=argparse.SUPPRESS
        )
