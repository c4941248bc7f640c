"""From a command line and a JSON file to dataclasses, with every problem at once.

``argparse`` takes the command line apart and prints ``--help``. Types, ranges and
unknown names are checked here, alike for flags and for JSON, because argparse (and
HfArgumentParser on top of it) stops at the first problem.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import enum
import json
import math
import textwrap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from llmft.errors import ConfigError, nearest

COMMAND_LINE = "command line"
_NOTHING = ("none", "null")
# Names of files need not be UTF-8; any other text must be.
_PATHS = {
    *("model_name_or_path", "tokenizer_name", "dataset_name", "train_file"),
    *("validation_file", "test_file", "output_dir", "resume_from_checkpoint"),
}
SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
_LARGEST = 2**31  # beyond it torch, numpy and Python fail in ways of their own


@dataclasses.dataclass(frozen=True)
class Group:
    """The fields that ``--help`` shows under one heading, in their order."""

    title: str
    names: tuple[str, ...]
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


def fields_of(classes: Sequence[type]) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Return each field of the dataclasses with its resolved type, by name."""
    found = {}
    for cls in classes:
        hints = get_type_hints(cls)
        found.update({f.name: (f, hints[f.name]) for f in dataclasses.fields(cls)})
    return found


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


def convert(name: str, raw: Any, hint: Any, allowed: str | None) -> Any:
    """Return ``raw`` as the type that ``hint`` asks for.

    ``raw`` is text (or a list of texts, or True for a bare flag) from the command
    line, wrapped in ``Text``; or a value out of JSON, where types are strict.
    ``allowed`` is an interval such as ``(0, 1]``. Raises ValueError, saying what was
    expected.
    """
    kinds = _kinds(hint)
    value = _from_text(raw, kinds) if isinstance(raw, Text) else _from_json(raw, kinds)
    for part in _parts(value):
        if isinstance(part, str) and name not in _PATHS and not _is_utf8(part):
            raise ValueError("text in UTF-8")
        if isinstance(part, str) and name in _CHECKS:
            _CHECKS[name](part)
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError("a finite number")
        if isinstance(part, int | float):
            if allowed and not _inside(part, allowed):
                raise ValueError(f"a number in {allowed}")
            if abs(part) >= _LARGEST and (not allowed or "inf" in allowed):
                raise ValueError(f"a number below {_LARGEST}")
    return value


def text_encoding(name: str) -> str:
    """Return Python's name of a text encoding. Raises ValueError."""
    try:
        found = codecs.lookup(name).name
        "".encode(found)  # not of text: hex, zip and the like
    except (LookupError, ValueError):  # ValueError: a NUL in it
        raise ValueError(
            "auto or an encoding that Python knows, such as utf-8, cp1252 (the ANSI of"
            " western Windows), gb18030, big5 or shift_jis"
        ) from None
    return found


def separator(name: str) -> str:
    """Return the character between the fields of csv. Raises ValueError."""
    found = SEPARATORS.get(name, name)
    if len(found) != 1 or found in '"\r\n':
        raise ValueError("one character, or tab")
    return found


def label_separator(name: str) -> str:
    """Return the text between several labels in one field. Raises ValueError."""
    if not name:
        raise ValueError("a text, such as '|'")
    return SEPARATORS.get(name, name)


_CHECKS: dict[str, Callable[[str], Any]] = {
    "encoding": lambda name: name == "auto" or text_encoding(name),
    "delimiter": separator,
    "label_delimiter": label_separator,
}


def _parts(value: Any) -> list[Any]:
    """Return the numbers and texts of a value, also those inside a list or object."""
    if isinstance(value, dict):
        return [part for pair in value.items() for v in pair for part in _parts(v)]
    if isinstance(value, list):
        return [part for item in value for part in _parts(item)]
    return [value]


def _is_utf8(text: str) -> bool:
    """Tell whether no byte of a command line was left undecoded in ``text``."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Text:
    """A value as it stood on the command line, not yet converted."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def _kinds(hint: Any) -> list[Any]:
    """Flatten a type hint into the plain types that a value may have."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for part in get_args(hint) for kind in _kinds(part)]
        strict = [k for k in kinds if _choices(k)]
        # `SchedulerType | str` means one of the enum's values.
        return [k for k in kinds if k is not str] if strict else kinds
    return [hint]


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [member.value for member in kind]
    return []


def _from_text(raw: Text, kinds: list[Any]) -> Any:
    if raw.words == ("",) and str in kinds:
        return ""
    lists = [kind for kind in kinds if get_origin(kind) is list]
    is_none = type(None) in kinds and str(raw).lower() in _NOTHING
    if lists and not (is_none and str not in kinds):  # report_to is one of its names
        return [
            _from_text(Text((word,)), list(get_args(lists[0]))) for word in raw.words
        ]
    text = str(raw)
    if is_none:
        return None
    for kind in kinds:
        if text in map(str, _choices(kind)):
            return text
    if bool in kinds and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    is_dict = any(dict in (kind, get_origin(kind)) for kind in kinds)
    if is_dict and text.startswith("{"):
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("a JSON object nested less deeply") from None
        except ValueError as error:
            raise ValueError(f"a JSON object ({error})") from None
    if str in kinds:
        return text
    raise ValueError(_expected(kinds))


def _from_json(raw: Any, kinds: list[Any]) -> Any:
    lists = [kind for kind in kinds if get_origin(kind) is list]
    if isinstance(raw, list) and lists:
        return [_from_json(item, list(get_args(lists[0]))) for item in raw]
    if raw is None and type(None) in kinds:
        return None
    if isinstance(raw, bool):
        if bool in kinds:
            return raw
    elif isinstance(raw, int) and int in kinds:
        return raw
    elif isinstance(raw, int | float) and float in kinds:
        return float(raw)
    elif isinstance(raw, dict) and any(dict in (k, get_origin(k)) for k in kinds):
        return raw
    elif isinstance(raw, str):
        if str in kinds or any(raw in _choices(kind) for kind in kinds):
            return raw
    raise ValueError(_expected(kinds))


def _expected(kinds: list[Any]) -> str:
    choices = [str(choice) for kind in kinds for choice in _choices(kind)]
    if choices:
        return "one of " + ", ".join(choices)
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    names |= {str: "text", type(None): "null", dict: "an object"}
    said = [names.get(get_origin(kind) or kind, "a list") for kind in kinds]
    return " or ".join(dict.fromkeys(said))


def _inside(number: float, interval: str) -> bool:
    low, high = (float(part) for part in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return above and (number < high if interval[-1] == ")" else number <= high)


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

    kinds = _kinds(hint)
    adds_up = name != "report_to" and any(get_origin(k) is list for k in kinds)
    default = defaults.get(name, default_of(field))
    said = str(field.metadata.get("help", "")).split("\n\n")[0].strip()
    choices = [str(c) for kind in kinds for c in _choices(kind)]
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


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a field, made anew where it is a list."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
