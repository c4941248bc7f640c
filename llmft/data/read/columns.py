"""Which columns of a data set a run reads, and which value each may hold."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from llmft.config.fields import DataArguments
from llmft.data.read.labels import REGRESSION, LabelRule, class_name
from llmft.data.read.messages import (
    COLUMNS,
    INSTRUCTION,
    MESSAGES,
    OUTPUT,
    PROMPT_COMPLETION,
    TEXT,
)
from llmft.data.read.text import Row, require_clean
from llmft.errors import (
    DataFormatError,
    LabelError,
    SchemaError,
    listed,
    nearest,
    shorten,
)

_TEXT_NAMES = ("text", "sentence", "content", "review")
_LABEL_NAMES = ("label", "labels", "category", "class", "target")
_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")  # a decimal one


@dataclass(frozen=True)
class Columns:
    """The columns wanted: None lets ``pick`` choose; no ``label`` reads none.

    With ``label_optional``, data without a label column is read without labels; without
    ``needs_label`` that column is not read, and not taken for the text. Rows
    whose text is empty are bad where ``needs_text``. ``problem_type`` and
    ``label_delimiter`` are those of ``LabelRule``. With ``chat``, prompts with
    completions and conversations are read as such where ``text`` is not given.
    """

    text: str | None = None
    label: str | None = None
    needs_label: bool = False
    group: str | None = None
    label_optional: bool = False
    text_pair: str | None = None
    needs_text: bool = False
    problem_type: str | None = None
    label_delimiter: str | None = None
    chat: bool = False
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None

    @classmethod
    def of(cls, args: DataArguments, **more: Any) -> Columns:
        """Return what the arguments name, of any task, and ``more`` of the others."""
        given = {n.removesuffix("_column_name"): v for n, v in vars(args).items()}
        named = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        return cls(**named, group=args.split_group_column, **more)


def choose(
    names: list[str], strings: list[str], columns: Columns
) -> tuple[str, dict[str, str]]:
    """Return the format of data, and the columns to read by what they are for.

    That is ``text`` and, where asked for, ``text_pair``, ``label`` and ``group``. All
    columns of the data are ``names``; ``strings`` are those that hold text.

    Raises:
        SchemaError: a column is not there, or which one is meant would be a guess.
    """
    found, chosen = _format_of(names, strings, columns)
    if found == TEXT:
        text, label = pick(names, strings, columns)
        chosen = {"text": text, "text_pair": columns.text_pair, "label": label}
    chosen["group"] = columns.group
    wanted = {key: column for key, column in chosen.items() if column is not None}
    for key, column in wanted.items():
        if column not in names:
            flag = f"{COLUMNS[found].get(key, key)}_column_name"
            flag = "split_group_column" if key == "group" else flag
            near = nearest(column, names).strip(", ")
            raise SchemaError(
                f"no column {shorten(column)}",
                f"it has {listed(names)}",
                f"{near + ' ' if near else ''}name it with --{flag}",
            )
    return found, wanted


def _format_of(
    names: Collection[str], strings: Collection[str], columns: Columns
) -> tuple[str, dict[str, str | None]]:
    """Return the format of data and its columns, none of them where it is plain text.

    A column of text called messages holds none.
    """
    if not columns.chat or columns.text:
        return TEXT, {}
    lists = [
        n for n in ("messages", "conversations") if n in names and n not in strings
    ]
    pair = {"text": columns.prompt, "text_pair": columns.completion}
    usual = COLUMNS[PROMPT_COMPLETION]
    if columns.messages:
        return MESSAGES, {"text": columns.messages}
    if any(pair.values()) or ({*usual.values()} <= {*names} and not lists):
        return PROMPT_COMPLETION, {key: pair[key] or usual[key] for key in usual}
    if {INSTRUCTION, OUTPUT} <= {*strings} and not lists:
        return MESSAGES, {"text": INSTRUCTION}
    return (MESSAGES, {"text": lists[0]}) if lists else (TEXT, {})


def pick(
    names: list[str], strings: list[str], columns: Columns
) -> tuple[str, str | None]:
    """Choose the text and label columns; raise SchemaError where that is a guess."""
    text, label, optional = columns.text, columns.label, columns.label_optional
    if optional and label not in names:
        label = None
    if not names:
        raise SchemaError("rows without columns", "expected text")
    if (columns.needs_label or optional) and label is None:
        others = [n for n in names if n not in (text, columns.text_pair, columns.group)]
        known = [n for n in _LABEL_NAMES if n in others]
        if not known and text is not None and len(others) == 1 and not optional:
            known = others
        if not known and not optional:
            clear = text is not None or len(strings) == 1 or "text" in names
            also = "" if clear else ", and the text with --text_column_name"
            raise SchemaError(
                "no label column found",
                f"columns are {listed(names)}",
                f"name it with --label_column_name{also}",
            )
        label = known[0] if known and not (optional and columns.label) else None
    if text is None:
        taken = (label, columns.group, columns.text_pair)
        free = [n for n in names if n not in taken]
        known = [n for n in _TEXT_NAMES if n in free]
        known = known or [n for n in strings if n in free]
        if len(known) != 1 and "text" not in known:
            hint = "name it with --text_column_name"
            if columns.chat:
                hint += ", or --prompt_column_name and --completion_column_name"
            said = f"cannot tell the text column among {listed(names)}"
            raise SchemaError(said, hint=hint)
        text = known[0]
    return text, label if columns.needs_label else None


def value_of(
    key: str, column: str, row: Row, columns: Columns, rule: LabelRule, place: str
) -> str:
    """Return the text to keep of a row's ``column``; ``place`` is its path:line.

    Raises:
        DataError: what is wrong with it; without its place.
    """
    name = _shown(column)
    if column not in row:
        near = nearest(column, row).strip(", ")
        raise SchemaError(f"no {name} in this row", f"it has {listed(row)}", near)
    value = row[column]
    if isinstance(value, str):
        require_clean(value, name)
    if key == "label":
        for part in value if isinstance(value, list) else ():
            if isinstance(part, str):
                require_clean(part, f"a label of {name}")
        spelled = rule.spell(value, place)
        if spelled is not None:
            return spelled
        hint = "give the row a label, or take it out"
        if rule.problem_type == REGRESSION and _COMMA.fullmatch(str(value)):
            hint = "write decimals with a point"
        raise LabelError(f"{name} is {shorten(value)}", rule.expected, hint)
    if key == "group":
        if group := class_name(value):
            return group
        raise SchemaError(f"{name} is {shorten(value)}", "expected a group")
    if not isinstance(value, str):
        said = f"{name} is {shorten(value)} ({type(value).__name__})"
        raise SchemaError(said, "expected text in every row")
    if columns.needs_text and not value.strip():
        raise DataFormatError(f"{name} is empty", "expected a text to classify")
    return value


@cache
def _shown(column: str) -> str:
    """Do what ``shorten`` does, once a column: half of the time of reading was its."""
    return shorten(column)
