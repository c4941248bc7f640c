"""How conversations and completions become tokens, and which of these are learnt.

The chat template renders a conversation; the tokens of the assistant's turns, or of a
completion, are found by their characters.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llmft.config.fields import GenerationDataArguments
from llmft.data.read.messages import MESSAGES, PROMPT_COMPLETION, TEXT, Message
from llmft.data.read.notes import refusal
from llmft.data.read.store import Source
from llmft.errors import ConfigError, DataError, DataFormatError, escape

CHECKED = 1000  # conversations whose turns are looked for in what is rendered
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers has it
_SPANS = threading.Lock()
_MARK_THEM = (
    "give a template with {% generation %} around what the assistant says by"
    " --chat_template_path, or --assistant_only_loss false"
)

Spans = list[tuple[int, int]]  # of characters


def learns_only(args: GenerationDataArguments, found: str) -> bool:
    """Return whether the loss is on the completion, or the assistant's turns, only.

    Raises ConfigError where that is asked for and ``found``, the format of the data,
    has none.
    """
    flags = ("assistant_only_loss", "completion_only_loss")
    given = [name for name in flags if getattr(args, name) is not None]
    if found == TEXT and given:
        raise ConfigError(
            f"{given[0]} is given, and the data are plain text; expected columns prompt"
            " and completion, or messages: leave it out, or name them with"
            " --prompt_column_name and --completion_column_name, or"
            " --messages_column_name"
        )
    if found == PROMPT_COMPLETION and "assistant_only_loss" in given:
        raise ConfigError(
            "assistant_only_loss is given, and the data are prompts with completions,"
            " not conversations: use --completion_only_loss"
        )
    return all(getattr(args, name) for name in given)


def read_template(path: str) -> str:
    """Return the text of a file with a chat template. Raises ConfigError."""
    try:
        text = Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template_path cannot be read: {error}; expected a file with a Jinja"
            " template",
            path=path,
        ) from error
    if not text.strip():
        raise ConfigError("chat_template_path is an empty file", path=path)
    return text


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return a prompt as a user's turn, up to where the assistant begins."""
    said = [{"role": "user", "content": prompt}]
    return Layout(tokenizer, MESSAGES).render(said, prompts=True)[0]


def token_types(offsets: Sequence[tuple[int, int]], spans: Spans) -> np.ndarray:
    """Return for each token 1 where it is in a span, else 0; int8, ``(tokens,)``.

    A token that also holds characters from before the span gets 2: its like would not
    come after the same prompt alone. ``offsets`` are those of a fast tokenizer.
    """
    begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
    # Blanks at the start of a token may be left out of its offsets: it reaches back.
    reach = np.minimum(begin, np.append(0, np.maximum.accumulate(end))[:-1])
    begin = np.where(begin == end, reach, begin)
    types = np.zeros(len(begin), np.int8)
    for first, last in spans:
        inside = (begin < last) & (end > first)
        types[inside] = 1
        types[inside & (reach < first)] = 2
    return types


@dataclass(frozen=True)
class Layout:
    """How the rows of a format become tokens, and which of these are learnt.

    Attributes:
        only: the completion, or the assistant's turns, alone are learnt.

    Raises ConfigError where a tokenizer cannot tell what is learnt.
    """

    tokenizer: PreTrainedTokenizerBase
    format: str
    only: bool = False

    def __post_init__(self) -> None:
        if self.only and not self.tokenizer.is_fast:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} does not tell which characters a"
                " token has; expected a tokenizer with a tokenizer.json: choose another"
                " model, or give --completion_only_loss false"
            )

    @cached_property
    def template(self) -> str:
        """The chat template, for messages. Raises ConfigError where there is none."""
        if self.format != MESSAGES:
            return ""
        try:
            return self.tokenizer.get_chat_template()
        except ValueError as error:  # there is none, or several without a default
            raise ConfigError(
                "no chat template to write conversations with:"
                f" {self.tokenizer.name_or_path} has none that is the default; choose"
                " an instruct model, or give a file with one by --chat_template_path"
            ) from error

    def check(self, data: Dataset) -> str:
        """Return what the template does not write as it was said, of the first rows."""
        lost: Counter[str] = Counter()
        for said in data[:CHECKED]["text"] if self.format == MESSAGES else ():
            messages = json.loads(said)
            try:
                text, at = self.render(messages)[0], 0
            except DataFormatError:  # see ``refused``
                continue
            for message in messages:
                wanted = message["content"].strip()
                found = text.find(wanted, at)
                if found < 0:
                    lost[message["role"]] += 1
                else:
                    at = found + len(wanted)
        return ", ".join(f"{n:,} of {role}" for role, n in lost.items())

    def refused(self, source: Source, lengths: np.ndarray, most: int) -> str:
        """Return a note on the rows without a token that the template refuses.

        Raises:
            DataFormatError: the first, where they and the rows that were bad before
                are more than ``most``.
        """
        faults: list[DataError] = []
        for row in np.flatnonzero(lengths == 0) if self.format == MESSAGES else ():
            values = source.dataset[int(row)]
            try:
                self._read(json.loads(values["text"]))
            except DataFormatError as fault:
                fault.path, fault.line = source.files[values["file"]], values["line"]
                faults.append(fault)
        count = len(faults)
        if count + source.bad > most:
            left = count < len(lengths)
            raise refusal(faults, count, count + source.bad if left else None)
        places = ", ".join(f"{e.path}:{e.line}" for e in faults[:3])
        said = f"; {count:,} conversations that the chat template refuses left out"
        return f"{said} ({places})" if faults else ""

    def render(
        self, messages: list[Message], *, prompts: bool = False, marks: bool = False
    ) -> tuple[str, Spans]:
        """Return what the template makes of messages and, with ``marks``, its spans.

        Not by ``apply_chat_template``, which gives positions of tokens only, and
        leaves out every span that begins with a character without a token of its own.
        """
        render: Any = render_jinja_template  # its annotation names the first result
        template = self.template
        try:
            # transformers keeps the spans of a template where all threads write them.
            with _SPANS:
                texts, spans = render(
                    [messages],
                    chat_template=template,
                    add_generation_prompt=prompts,
                    return_assistant_tokens_mask=marks,
                    **self.tokenizer.special_tokens_map,
                )
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is not Jinja: line {error.lineno}: {error.message};"
                " mend it, or give another with --chat_template_path"
            ) from error
        except Exception as error:  # whatever a template does with the unexpected
            raise DataFormatError(
                f"the chat template refuses this conversation: {escape(error, 200)}",
                hint="mend it, or give another template with --chat_template_path",
            ) from error
        return texts[0], [tuple(span) for span in spans[0]] if marks else []

    def _read(self, messages: list[Message]) -> tuple[str, Spans]:
        """Return a rendered conversation and, with ``only``, the assistant's turns.

        They are what the template marks with {% generation %}; where it does not, a
        turn is what comes after the generation prompt, up to the eos that ends it.
        Raises DataFormatError where the template refuses it, nothing is to learn, or
        the first messages are rendered otherwise than within the whole.
        """
        if not self.only:
            return self.render(messages)
        marks = bool(_GENERATION.search(self.template))
        text, spans = self.render(messages, marks=marks)
        eos = self.tokenizer.eos_token or ""
        for i, message in enumerate(messages):
            if marks or message["role"] != "assistant":
                continue
            begin = self.render(messages[:i], prompts=True)[0]
            whole = self.render(messages[: i + 1])[0]
            if not (text.startswith(whole) and whole.startswith(begin)):
                raise DataFormatError(
                    "the chat template writes what comes before the end of message"
                    f" {i + 1} otherwise than in the whole conversation, so that the"
                    " turn of the assistant cannot be found",
                    hint=_MARK_THEM,
                )
            ended, _, rest = whole.rpartition(eos) if eos else (whole, "", "")
            cut = len(ended) >= len(begin) and not rest.strip()
            spans.append((len(begin), len(ended + eos) if cut else len(whole)))
        if not any(end > start for start, end in spans):
            said = "the chat template leaves no token of the assistant to learn"
            raise DataFormatError(said, hint=_MARK_THEM)
        return text, spans

    def _texts(self, batch: dict[str, list[Any]]) -> Iterator[tuple[str, Spans]]:
        if self.format == PROMPT_COMPLETION:
            for prompt, said in zip(batch["text"], batch["text_pair"], strict=True):
                yield prompt + said, [(len(prompt), len(prompt + said))]
            return
        for text in batch["text"]:
            try:
                yield self._read(json.loads(text))
            except DataFormatError:  # it gets no token, and is ``refused``
                yield "", []

    def encode(
        self, batch: dict[str, list[Any]], end_token: int | None
    ) -> tuple[list[list[int]], list[np.ndarray]]:
        """Return ids of the rows of a batch and, with ``only``, their ``token_types``.

        ``end_token`` ends a completion; a template ends its turns itself.
        """
        texts, spans = zip(*self._texts(batch), strict=True)
        plain = self.format == PROMPT_COMPLETION
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=plain,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=self.only,
            verbose=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        types: list[np.ndarray] = []
        if self.only:
            types = [*map(token_types, encoded["offset_mapping"], spans)]
        if plain and end_token is not None:
            for i, ids in enumerate(rows):
                ended = ids[-1:] == [end_token]
                rows[i] = ids if ended else [*ids, end_token]
                if self.only:  # the eos of a post-processor has no characters
                    types[i] = np.append(types[i][:-1] if ended else types[i], 1)
        return rows, types
