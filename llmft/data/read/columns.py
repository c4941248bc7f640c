"""Which columns of a data set a run reads, and which value each may hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from llmft.config.fields import DataArguments
from llmft.data.read.labels import LabelRule, class_name
from llmft.data.read.messages import (
    COLUMNS,
    INSTRUCTION,
    MESSAGES,
    OUTPUT,
    PROMPT_COMPLETION,
    TEXT,
)
from llmft.data.read.text import Row, require_clean
from llmft.data.read.written import MISSING, of_columns, turns_in
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
_shown = cache(shorten)  # once a column: half of the time of reading was its


@dataclass(frozen=True)
class Columns:
    """The columns wanted: None lets ``pick`` choose; no ``label`` reads none.

    With ``label_optional``, data without a label column is read without labels, and
    with ``some_labels`` also rows that have none among others that have; without
    ``needs_label`` that column is not read, and not taken for the text. Rows
    whose text is empty are bad where ``needs_text``. ``problem_type`` and
    ``label_delimiter`` are those of ``LabelRule``; ``labels`` are columns of 0 and 1,
    each of one class; those ``carried`` go along as they are. With ``chat``, prompts
    with completions and conversations are read as such where ``text`` is not given.
    With ``nul`` texts may hold NUL, with ``na_labels`` NA and the like are classes;
    ``strict`` is that of ``Notes``.
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
    labels: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    some_labels: bool = False
    nul: bool = False
    na_labels: bool = False
    strict: bool = False

    @classmethod
    def of(cls, args: DataArguments, **more: Any) -> Columns:
        """Return what the arguments name, of any task, and ``more`` of the others."""
        given = {n.removesuffix("_column_name"): v for n, v in vars(args).items()}
        named = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        if isinstance(labels := named.get("label"), list):
            named |= {"label": labels[0], "labels": tuple(labels)}
        named |= {name: name in args.allow for name in ("nul", "na_labels")}
        return cls(**named, group=args.split_group_column, **more)


def choose(
    names: list[str], strings: list[str], columns: Columns, rows: Sequence[Row] = ()
) -> tuple[str, dict[str, str]]:
    """Return the format of data, and the columns to read by what they are for.

    That is ``text`` and, where asked for, ``text_pair``, ``label`` and ``group``. All
    columns of the data are ``names``; ``strings`` are those that hold text, as some
    ``rows`` have it.

    Raises:
        SchemaError: a column is not there, or which one is meant would be a guess.
    """
    lists = _conversations(names, strings, columns, rows)
    found, chosen = _format_of(names, strings, columns, lists)
    if found == TEXT:
        text, label = pick(names, strings, columns, rows)
        chosen = {"text": text, "text_pair": columns.text_pair, "label": label}
    chosen["group"] = columns.group
    wanted = {key: column for key, column in chosen.items() if column is not None}
    more = [("label", name) for name in columns.labels if "label" in wanted]
    more += [("carried", name) for name in columns.carried]
    flags = {"group": "split_group_column", "carried": "keep_columns"}
    missing = []
    for key, column in [*wanted.items(), *more]:
        if column not in names:
            flag = flags.get(key, f"{COLUMNS[found].get(key, key)}_column_name")
            near = nearest(column, names).strip(", ")
            hint = f"{near + ' ' if near else ''}name it with --{flag}"
            missing.append((f"no column {shorten(column)}", hint))
    if missing:
        said, hints = zip(*missing, strict=True)
        has = f"it has {listed(names)}"
        raise SchemaError("; ".join(said), has, "; ".join(hints))
    return found, wanted


def _conversations(
    names: Collection[str],
    strings: Collection[str],
    columns: Columns,
    rows: Sequence[Row],
) -> list[str]:
    """Return the columns that hold conversations by their name and what is in them.

    Of a column of text one that is JSON is enough: the others are to blame.
    """
    usual = [n for n in ("messages", "conversations") if n in names and columns.chat]
    told = (n for n in usual if n in strings)
    plain = {n for n in told if not any(turns_in(row.get(n)) for row in rows)}
    return [n for n in usual if n not in plain]


def _format_of(
    names: Collection[str],
    strings: Collection[str],
    columns: Columns,
    lists: Sequence[str],
) -> tuple[str, dict[str, str | None]]:
    """Return the format of data and its columns, none of them where it is plain text.

    The columns with conversations are ``lists``.
    """
    if not columns.chat or columns.text:
        return TEXT, {}
    pair = {"text": columns.prompt, "text_pair": columns.completion}
    usual = COLUMNS[PROMPT_COMPLETION]
    if columns.messages:
        return MESSAGES, {"text": columns.messages}
    if any(pair.values()) or ({*usual.values()} <= {*names} and not lists):
        return PROMPT_COMPLETION, {key: pair[key] or usual[key] for key in usual}
    if {INSTRUCTION, OUTPUT} <= {*strings} and not lists:
        return MESSAGES, {"text": INSTRUCTION}
    return (MESSAGES, {"text": lists[0]}) if lists else (TEXT, {})


def _usual(wanted: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the names that are wanted, in any case, the most usual first."""
    found = [n for want in wanted for n in names if n.strip().casefold() == want]
    usual = {n: (wanted.index(n.strip().casefold()), n not in wanted) for n in found}
    return sorted(found, key=usual.__getitem__)


def _texts(
    free: Collection[str], strings: Collection[str], rows: Sequence[Row]
) -> list[str]:
    """Return the columns that may be the text: one, where that is clear.

    It has one of the usual names, or is the only one of text, or of sentences.
    """
    known = _usual(_TEXT_NAMES, free)
    if known:
        return known[:1] if known[0].strip().casefold() == "text" else known
    known = [n for n in strings if n in free]
    prose = [n for n in known if _is_prose([row.get(n) for row in rows])]
    return prose if len(prose) == 1 else known


def _is_prose(values: Sequence[Any]) -> bool:
    """Whether most values have four words or more: no names, dates or ids have."""
    words = (str(value).split() for value in values)
    return 2 * sum(sum(map(str.isalpha, w)) > 3 for w in words) > len(values)


def pick(
    names: list[str], strings: list[str], columns: Columns, rows: Sequence[Row] = ()
) -> tuple[str, str | None]:
    """Choose the text and label columns; raise SchemaError where that is a guess."""
    text, label, optional = columns.text, columns.label, columns.label_optional
    if optional and label not in names:
        label = None
    if not names:
        raise SchemaError("rows without columns", "expected text")
    taken = (text, columns.text_pair, columns.group, label, *columns.labels)
    free = [n for n in names if n not in taken]
    if (columns.needs_label or optional) and label is None:
        known = _usual(_LABEL_NAMES, free)
        texts = [text] if text is not None else _texts(free, strings, rows)
        others = [n for n in free if n not in texts]
        if not known and len(texts) == len(others) == 1 and not optional:
            known = others
        if not known and not optional:
            clear = len(texts) == 1
            also = "" if clear else ", and the text with --text_column_name"
            raise SchemaError(
                "no label column found",
                f"columns are {listed(names)}",
                f"name it with --label_column_name{also}",
            )
        label = known[0] if known and not (optional and columns.label) else None
    if text is None:
        texts = _texts([n for n in free if n != label], strings, rows)
        if len(texts) != 1:
            hint = "name it with --text_column_name"
            if columns.chat:
                hint += ", or --prompt_column_name and --completion_column_name"
            said = f"cannot tell the text column among {listed(names)}"
            raise SchemaError(said, hint=hint)
        text = texts[0]
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
        require_clean(value, name, columns.nul)
    if key == "label":
        if columns.labels:
            value = of_columns(row, columns.labels)
        for part in value if isinstance(value, list) else ():
            if isinstance(part, str):
                require_clean(part, f"a label of {name}")
        if is_missing(value, columns):
            said = f"{name} is {shorten(value)}, which stands for no value"
            hint = "give the row a label; if that is a class, --allow na_labels"
            raise LabelError(said, rule.expected, hint)
        spelled = rule.spell(value, place)
        if spelled is not None:
            return spelled
        hint = "give the row a label, or take it out"
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


def is_missing(value: Any, columns: Columns) -> bool:
    """Whether a label is text that programs write where there is none."""
    text = value.strip() if isinstance(value, str) else ""
    return not columns.na_labels and text in MISSING
