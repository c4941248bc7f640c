"""From a flag's text, or a value out of JSON, to the type that a field asks for."""

from __future__ import annotations

import codecs
import enum
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import mul
from typing import Any, Literal, Union, get_args, get_origin

from llmft.errors import ConfigError

_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
_UNITS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))
_LARGEST = 2**31  # beyond it torch, numpy and Python fail in ways of their own


class Text(list[str]):
    """The words of a flag as they stood on the command line, not yet converted."""

    def __str__(self) -> str:
        return " ".join(self)


def convert(raw: Any, hint: Any, facts: Mapping[str, Any]) -> Any:
    """Return ``raw`` as the type that ``hint`` asks for.

    ``raw`` is the ``Text`` of a flag, or a value out of JSON, where types are strict.
    ``facts`` are those of the argument: range, check and path hold of each number and
    text in it. Raises ValueError, saying what was expected.
    """
    kinds = kinds_of(hint)
    value = _from_text(raw, kinds) if isinstance(raw, Text) else _from_json(raw, kinds)
    allowed, check = facts.get("range"), facts.get("check")
    for part in _parts(value):
        if isinstance(part, str):
            # A byte that the command line left undecoded, or a lone surrogate in JSON.
            odd = part.encode("utf-8", "ignore").decode() != part
            if odd and not facts.get("path"):
                raise ValueError("text in UTF-8")
            if check:
                check(part)
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError("a finite number")
        if isinstance(part, int | float):
            if allowed and not _inside(part, allowed):
                raise ValueError(f"a number in {allowed}")
            if abs(part) >= _LARGEST and (not allowed or "inf" in allowed):
                raise ValueError(f"a number below {_LARGEST}")
    return value


def one_of(*known: str) -> Callable[[str], None]:
    """Return a check of a text that is none of ``known``."""

    def check(text: str) -> None:
        if text not in known:
            raise ValueError("one of " + ", ".join(known))

    return check


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


def duration(text: str) -> float:
    """Return the seconds of a time such as 1h30m, or 30d. Raises ValueError."""
    text = text.strip()
    # A number alone is seconds; behind a unit it could be minutes, as in 1h30.
    alone = text.replace(".", "", 1).isdecimal()
    found = _DURATION.fullmatch(f"{text}s" if alone else text)
    counts = found.groups("0") if found else ["0"] * len(_UNITS)
    seconds = sum(map(mul, map(float, counts), _UNITS.values()))
    if not 0 < seconds < _LARGEST:
        raise ValueError("a time such as 90s, 5m, 2h or 1h30m, or seconds")
    return seconds


def age(text: str | None) -> float | None:
    """Return the seconds of an ``--older_than``, None where there is none.

    Raises:
        ConfigError: it is no time, or a number without a unit.
    """
    if text is None:
        return None
    try:
        return duration("" if text.replace(".", "").isdecimal() else text)
    except ValueError:
        said = f"--older_than is {text!r}, expected a time such as 30d, 12h or 8w"
        raise ConfigError(said) from None


def _parts(value: Any) -> list[Any]:
    """Return the numbers and texts of a value, also those inside a list or object."""
    if isinstance(value, dict):
        return [part for pair in value.items() for v in pair for part in _parts(v)]
    if isinstance(value, list):
        return [part for item in value for part in _parts(item)]
    return [value]


def kinds_of(hint: Any) -> list[Any]:
    """Flatten a type hint into plain types, lists of a type, and texts to choose from.

    A text that is chosen from some (``SchedulerType | str``) is no other text.
    """
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for part in get_args(hint) for kind in kinds_of(part)]
        return [k for k in kinds if k is not str or not choices_of(kinds)]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    return [dict if get_origin(hint) is dict else hint]


def choices_of(kinds: list[Any]) -> list[str]:
    """Return the texts to choose from."""
    return [kind for kind in kinds if isinstance(kind, str)]


def items_of(kinds: list[Any]) -> list[Any]:
    """Return the kinds of an item where a value may be a list."""
    found = [get_args(kind)[0] for kind in kinds if get_origin(kind) is list]
    return kinds_of(found[0]) if found else []


def _from_text(raw: Text, kinds: list[Any]) -> Any:
    text, items = str(raw), items_of(kinds)
    if raw == [""] and str in kinds:
        return ""
    is_none = types.NoneType in kinds and text.lower() in ("none", "null")
    if items and not (is_none and str not in kinds):  # report_to is one of its names
        return [_from_text(Text([word]), items) for word in raw]
    if is_none:
        return None
    if text in kinds:
        return text
    if bool in kinds and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    for number in (int, float):
        if number in kinds:
            with suppress(ValueError):
                return number(text)
    if dict in kinds and text.startswith("{"):
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
    items = items_of(kinds)
    if isinstance(raw, list) and items:
        return [_from_json(item, items) for item in raw]
    if type(raw) in kinds or (isinstance(raw, str) and raw in kinds):
        return raw
    if type(raw) is int and float in kinds:
        return float(str(raw))  # inf for what is too large
    raise ValueError(_expected(kinds))


def _expected(kinds: list[Any]) -> str:
    if choices := choices_of(kinds):
        return "one of " + ", ".join(choices)
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    names |= {str: "text", types.NoneType: "null", dict: "an object"}
    return " or ".join(dict.fromkeys(names.get(kind, "a list") for kind in kinds))


def _inside(number: float, interval: str) -> bool:
    low, high = (float(part) for part in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return above and (number < high if interval[-1] == ")" else number <= high)
