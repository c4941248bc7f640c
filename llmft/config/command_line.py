"""The command line of a recipe: its flags, taken apart, and what ``--help`` shows."""

from __future__ import annotations

import argparse
import enum
import textwrap
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from llmft.config.convert import Text, choices_of, items_of, kinds_of
from llmft.config.facts import Argument, fields_of
from llmft.config.fields import TrainingArguments
from llmft.config.rules import ACTIONS
from llmft.errors import ConfigError, nearest

HELP_ALL = "--help_all"
_REST = "What --help leaves out"
# What people need, in the order in which they need it: ``--help``.
_NEEDED = {
    "Model and data": "model_name_or_path dataset_name train_file validation_file"
    " test_file text_column_name label_column_name text_pair_column_name"
    " label_delimiter encoding delimiter max_bad_rows max_seq_length mlm_masking"
    " block_policy streaming",
    "What to do": "do_train do_eval do_predict k_folds prompt prompt_file output_file"
    " apply_chat_template max_new_tokens temperature dry_run",
    "Training": "num_train_epochs max_steps time_limit learning_rate"
    " per_device_train_batch_size gradient_accumulation_steps"
    " early_stopping_patience metric_for_best_model class_weights freeze_backbone"
    " calibrate lora_r lora_save precision seed",
    "The run": "output_dir resume_from_checkpoint save_strategy save_steps report_to"
    " on_nonfinite",
}


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


def read_command_line(
    argv: list[str],
    classes: tuple[type, type, type],
    defaults: Mapping[str, Any],
    description: str,
) -> tuple[str | None, dict[str, Text], list[str]]:
    """Split ``argv`` into the file of ``--args``, values of flags, and problems.

    ``classes`` are the dataclasses of model, data and training; ``--help`` shows their
    ``defaults``, of the arguments that people need.
    """
    parser = _Parser(
        usage="%(prog)s [--args FILE.json] [--NAME VALUE ...]",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--args", metavar="FILE.json", help="values; flags override")
    every, some = fields_of(*classes), _needed(*classes)
    count = sum("refused" not in argument.facts for argument in every.values())
    parser.add_argument(HELP_ALL, action="help", help=f"all {count} arguments")
    known = {f"--{no}{n}" for n in (*every, "args", "help_all") for no in ("", "no_")}
    words = [_named(word, known) for word in argv]
    for title, fields in (_all(*classes) if HELP_ALL in words else some).items():
        section = parser.add_argument_group(title)
        for name, argument in fields.items():
            _add_flag(section, name, argument, defaults[name], shown=title != _REST)
    namespace, unknown = parser.parse_known_args(words)
    problems = []
    for i, word in enumerate(unknown):
        name = word.split("=")[0].removeprefix("--")
        if word.startswith("--"):
            problems.append(f"unknown argument --{name}{nearest(name, every)}")
        elif not unknown[i - 1].startswith("--") or i == 0:  # else: its value
            problems.append(f"unexpected {word!r}: every argument has a --name")
    given = vars(namespace)
    path = given.pop("args", None)
    texts = {n: Text([v] if isinstance(v, str) else v) for n, v in given.items()}
    return path, texts, problems


def _needed(*classes: type) -> dict[str, dict[str, Argument]]:
    """Return the arguments of ``--help`` by section, and the others under ``_REST``."""
    rest = fields_of(*classes)
    found = {
        title: {name: rest.pop(name) for name in names.split() if name in rest}
        for title, names in _NEEDED.items()
    }
    return {**found, _REST: rest}


def _all(model: type, data: type, training: type) -> dict[str, dict[str, Argument]]:
    """Return all arguments by section: of training, what is most used first."""
    fields, ours = fields_of(training), TrainingArguments.__annotations__
    used = [n for n, a in fields.items() if a.facts.get("most_used", n in ours)]
    used.sort(key=lambda name: name not in ACTIONS)
    return {
        "Model": fields_of(model),
        "Data": fields_of(data),
        "Training": {name: fields[name] for name in used},
        "Everything else of transformers.TrainingArguments": {
            name: a for name, a in fields.items() if name not in used
        },
    }


def _named(word: str, known: Collection[str]) -> str:
    """Return a flag as it is called: --max-seq-length stands for --max_seq_length."""
    name, equals, value = word.partition("=")
    called = "--" + name.removeprefix("--").replace("-", "_")
    is_flag = name.startswith("--") and called in known
    return called + equals + value if is_flag else word


def words_of(argument: Argument) -> dict[str, Any]:
    """Return how many words the flag of an argument takes, as argparse has it."""
    kinds = kinds_of(argument.type)
    if bool in kinds:
        return {"nargs": "?", "const": "true"}
    # --prompt A --prompt B are two
    return {"nargs": "+", "action": "extend"} if items_of(kinds) else {}


def _add_flag(
    section: Any, name: str, argument: Argument, default: Any, shown: bool
) -> None:
    """Add the flag of an argument, in the help where it is ``shown``."""
    kinds = kinds_of(argument.type)
    choices, is_bool = choices_of(kinds), bool in kinds
    said = argument.facts.get("help", "").split("\n\n")[0]
    said += f" One of {', '.join(choices)}." if choices and len(choices) < 8 else ""
    value = default.value if isinstance(default, enum.Enum) else default
    if argument.facts.get("auto") and value == argument.default:
        value = "auto"
    if value is not None and value != []:
        words = map(str, value) if isinstance(value, list) else [str(value)]
        said += f" (default: {' '.join(words)})"
    said = " ".join(said.split()).replace("%%", "%").replace("%", "%%")
    if not shown or argument.facts.get("refused"):
        said = argparse.SUPPRESS
    metavar = "BOOL" if is_bool and str not in kinds else "VALUE"
    options: dict[str, Any] = {"metavar": metavar, "help": said, **words_of(argument)}
    if name == "debug":  # bare --debug shows tracebacks, no DebugOption
        options |= {"nargs": "?", "const": "", "action": "store"}
    elif name == "report_to":
        options["action"] = "store"
    section.add_argument(f"--{name}", **options)
    if is_bool and default is True:
        off: dict[str, Any] = {"action": "store_const", "const": "false", "dest": name}
        section.add_argument(f"--no_{name}", help=argparse.SUPPRESS, **off)
