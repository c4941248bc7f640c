"""Prompts with completions, and conversations: the formats, and what a good row is.

The formats are those of TRL: columns ``prompt`` and ``completion`` of text, or a column
``messages`` of lists of {"role", "content"}. Instructions, as of Alpaca, are read as
conversations: columns ``instruction`` and ``output``, and ``input`` where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmft.data.read.notes import Notes
from llmft.data.read.text import require_clean
from llmft.data.read.written import turns_in
from llmft.errors import DataFormatError, SchemaError, counted, listed, shorten

TEXT, MESSAGES, PROMPT_COMPLETION = "text", "messages", "prompt-completion"
# What the text columns of a Source are called in such data, and in the flags.
COLUMNS: dict[str, dict[str, str]] = {
    TEXT: {},
    MESSAGES: {"text": "messages"},
    PROMPT_COMPLETION: {"text": "prompt", "text_pair": "completion"},
}
INSTRUCTION, OUTPUT, INPUT = "instruction", "output", "input"
OF_INSTRUCTION = (OUTPUT, INPUT, "system", "history")  # what may stand beside it
ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # of {"from", "value"}
_EXPECTED = 'expected a list of {"role": ..., "content": ...}'

Message = dict[str, str]


@dataclass
class Conversations:
    """Checks the conversations of a data set, and knows what was made of them.

    ``told`` is told of those that are text; with ``nul`` that character is text, too.
    """

    told: Notes = field(default_factory=Notes)
    nul: bool = False
    _converted: int = 0
    _instructions: int = 0
    _inputs: int = 0
    _unused: set[str] = field(default_factory=set)

    def store(self, value: Any, column: str, place: str = "") -> str:
        """Return a conversation as JSON; ``place`` is its path:line.

        It is a list of {"role", "content"}, or of {"from", "value"}, or such as text.

        Raises:
            DataError: it is not, or there is nothing to learn from; without its place.
        """
        name = shorten(column)
        if (turns := turns_in(value)) is not None:
            self.told.add("conversations are written as text", place)
            value = turns
        if not isinstance(value, list):
            said = f"{name} is {shorten(value)} ({type(value).__name__})"
            raise SchemaError(said, _EXPECTED)
        if not value:
            raise DataFormatError(f"{name} is empty", _EXPECTED)
        messages = [
            self._message(given, f"message {number} of {name}")
            for number, given in enumerate(value, 1)
        ]
        if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
            said = f"{name} has no turn of the assistant with text"
            raise DataFormatError(said, "expected one to learn from")
        self._converted += any(_is_old(given) for given in value)
        return json.dumps(messages, ensure_ascii=False)

    def of_instruction(self, row: Mapping[str, Any]) -> str:
        """Return an instruction with its output as a conversation of two turns.

        An input that is not empty stands below the instruction, after an empty line; a
        system prompt is a turn before both.
        Raises as ``store``.
        """
        asked, given = row.get(INSTRUCTION), row.get(INPUT)
        if given is not None and not isinstance(given, str):
            said = f"{INPUT!r} is {shorten(given)} ({type(given).__name__})"
            raise SchemaError(said, "expected text")
        if isinstance(asked, str) and given and given.strip():
            asked = f"{asked}\n\n{given}"
        if row.get("history"):
            said = "'history' holds turns before the instruction"
            raise SchemaError(said, "expected none, or all of them in messages")
        turns = [("user", asked), ("assistant", row.get(OUTPUT))]
        if row.get("system"):
            turns.insert(0, ("system", row["system"]))
        said_by = [{"role": role, "content": text} for role, text in turns]
        stored = self.store(said_by, f"{INSTRUCTION} and {OUTPUT}")
        self._instructions += 1
        self._inputs += asked != row.get(INSTRUCTION)
        return stored

    def _message(self, given: Any, name: str) -> Message:
        if not isinstance(given, dict):
            said = f"{name} is {shorten(given)} ({type(given).__name__})"
            raise SchemaError(said, 'expected {"role": ..., "content": ...}')
        known = {key: value for key, value in given.items() if value is not None}
        old = _is_old(given)
        role_key, content_key = ("from", "value") if old else ("role", "content")
        for key in (role_key, content_key):
            if key not in known:
                has = f"it has {listed(known)}" if known else "it is empty"
                raise SchemaError(f"{name} has no {key!r}", has, "give it one")
        role, content = known.pop(role_key), known.pop(content_key)
        if old and isinstance(role, str):
            role = _SPEAKERS.get(role, role)
        if role not in ROLES:
            said = f"{name} has the role {shorten(role)}"
            raise SchemaError(said, f"expected one of {', '.join(ROLES)}")
        name = f"the content of {name}"
        if not isinstance(content, str):
            said = f"{name} is {shorten(content)} ({type(content).__name__})"
            raise SchemaError(said, "expected text")
        self._unused |= known.keys()
        require_clean(content, name, self.nul)
        return {"role": role, "content": content}

    def notes(self) -> list[str]:
        """Return what the user has to know."""
        notes = []
        if self._instructions:
            said = f"{INSTRUCTION} taken as user's turn, {OUTPUT} as the assistant's"
            if self._inputs:
                said += f"; {INPUT} below it in {counted(self._inputs, 'rows')}"
            notes.append(said)
        if self._converted:
            said = "from and value taken as role and content"
            names = ", ".join(f"{old} as {new}" for old, new in _SPEAKERS.items())
            notes.append(f"{said}, {names}, in {counted(self._converted, 'rows')}")
        if self._unused:
            notes.append(f"keys of messages not used: {listed(sorted(self._unused))}")
        return notes


def _is_old(message: Message) -> bool:
    """Whether a message has {"from", "value"} in place of {"role", "content"}."""
    return message.get("role") is None and message.get("from") is not None
