"""Prompts from standard input or a file, and texts written for many at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from llmft.config.parse import Arguments
from llmft.console import say, warn
from llmft.data.read.columns import Columns
from llmft.data.read.files import STDIN, Reading
from llmft.data.read.store import read_file, show
from llmft.errors import ConfigError, DataError, EncodingError
from llmft.files import to_json, write_text
from llmft.model.ends import ends_of, length, set_ends
from llmft.tasks import generate

_TRIED = 3  # tokens that are written to see whether padding changes them
_SAME = 0.02  # relative, in bf16; rounding differs with the shape of a product


def read_prompts(args: Arguments) -> None:
    """Put into ``prompt`` what its - and ``prompt_file`` stand for.

    Standard input is one prompt, without its last line break. A file has one a line,
    or of other formats in its column ``prompt``, or the one that is named.

    Raises:
        ConfigError: ``output_file`` is there.
        DataError: the file cannot be read, or standard input is not UTF-8.
    """
    model, data = args.model, args.data
    if model.output_file:
        target = Path(model.output_file).expanduser()
        if target.exists():
            raise ConfigError("output_file is there: name another", path=target)
        if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
            said = "output_file: its folder is not there, or cannot be written"
            raise ConfigError(said, path=target)
    if STDIN in model.prompt:
        text = _standard_input()
        model.prompt = [text if p == STDIN else p for p in model.prompt]
    if model.prompt_file:
        reading = Reading.of(data)
        plain = ".txt" in Path(model.prompt_file.lower()).suffixes[-2:]
        plain = reading.file_format == "txt" or (plain and not reading.file_format)
        named = data.prompt_column_name or data.text_column_name
        column = named or (None if plain else "prompt")
        columns = Columns(text=column, needs_text=True)
        found = read_file(model.prompt_file, columns, reading)
        show("prompts", found)
        model.prompt = found.dataset["text"][:]


def _standard_input() -> str:
    if sys.stdin is None:
        raise DataError("standard input is closed", path=STDIN)
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise EncodingError(f"not UTF-8: {error.reason}", path=STDIN) from error
    if not text.strip():
        raise DataError("standard input is empty", "expected a prompt", path=STDIN)
    return text.removesuffix("\n").removesuffix("\r")


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> None:
    """Continue the prompts of a command: as they are written, or those of a file.

    The latter go through the model in batches, and into ``output_file`` as lines of
    JSON with ``prompt`` and ``completion`` once all are there; without, to the screen.
    """
    seed, given = args.training.seed, args.model
    if not given.prompt_file:
        generate.sample(model, tokenizer, given, seed, stream=True)
        return
    started, written = time.perf_counter(), 0
    found: list[list[str]] = [[] for _ in given.prompt]
    for place, texts, tokens in completions(model, tokenizer, args):
        found[place], written = texts, written + tokens
    rows = [
        {"prompt": prompt, "completion": text}
        for prompt, texts in zip(given.prompt, found, strict=True)
        for text in texts
    ]
    if empty := sum(not row["completion"].strip() for row in rows):
        chats = tokenizer.chat_template and not given.apply_chat_template
        hint = "; the model has a chat template: --apply_chat_template" if chats else ""
        warn(f"{empty:,} of {len(rows):,} texts are empty{hint}")
    if given.output_file:
        write_text(Path(given.output_file).expanduser(), "".join(map(_line, rows)))
        say(f"output     {given.output_file}, {len(rows):,} texts")
    else:
        chat = given.apply_chat_template
        form = "[user] {prompt} [assistant] " if chat else "{prompt}"
        form += "{completion}"
        say("\n\n".join(form.format(**row) for row in rows) + "\n")
    rate = written / (time.perf_counter() - started)
    say(f"written    {written} tokens, {rate:.2f} tokens/s")


def _line(row: dict[str, str]) -> str:
    return to_json(row) + "\n"


def _padded(ids: list[list[int]], device: Any) -> dict[str, torch.Tensor]:
    """Return prompts, the longest first, as a batch padded on the left.

    Padding is not seen, but a penalty of repeats counts it: it is the first token of
    each prompt, which is there anyway. The pad token is the eos of many a model.
    """
    most = len(ids[0])
    rows = [[row[0]] * (most - len(row)) + row for row in ids]
    seen = [[0] * (most - len(row)) + [1] * len(row) for row in ids]
    found = {"input_ids": rows, "attention_mask": seen}
    return {name: torch.tensor(x, device=device) for name, x in found.items()}


def _pads_well(model: Any, ids: list[list[int]], order: list[int]) -> bool:
    """Return whether the shortest prompt goes on alike beside the longest and alone.

    Not in models that read on through the padding (RWKV), or count positions with it.
    """
    longest, shortest = ids[order[0]], ids[order[-1]]
    if len(longest) == len(shortest):
        return True
    config = GenerationConfig(
        max_new_tokens=_TRIED,
        do_sample=False,
        pad_token_id=shortest[0],
        output_scores=True,
        return_dict_in_generate=True,
    )

    def scores(*rows: list[int]) -> torch.Tensor:
        batch = _padded([*rows], model.device)
        found: Any = generate.write(model, batch, config)
        return torch.stack(found.scores)[:, -1].float()

    try:
        together, alone = scores(longest, shortest), scores(shortest)
    except Exception:  # whatever a model says that cannot do it
        return False
    same = together.shape == alone.shape
    return same and bool((together - alone).norm() <= _SAME * alone.norm())


def completions(
    model: Any, tokenizer: PreTrainedTokenizerBase, args: Arguments
) -> Iterator[tuple[int, list[str], int]]:
    """Yield the place of each prompt, its completions, and their tokens.

    Prompts of like length are continued together, the longest first; only those of
    equal length where padding would change the text, which is tried.
    """
    given, size = args.model, args.training.eval_batch_size
    generate.check_prompts(model, tokenizer, given)
    set_ends(model, tokenizer, given.apply_chat_template)
    ends = ends_of(model)
    config = generate.generation_config(given, tokenizer, ends)
    ids = [generate.prompt_ids(p, tokenizer, given) for p in given.prompt]
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    several = given.num_return_sequences
    model.eval()
    pads = not given.no_repeat_ngram_size and _pads_well(model, ids, order)
    set_seed(args.training.seed)
    with tqdm(total=len(ids), desc="writing", unit="prompt", disable=None) as bar:
        while order:
            most = len(ids[order[0]])
            alike = order if pads else [p for p in order if len(ids[p]) == most]
            places = alike[:size]
            order = order[len(places) :]
            batch = _padded([ids[place] for place in places], model.device)
            rows = generate.write(model, batch, config)[:, len(ids[places[0]]) :]
            texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
            for k, place in enumerate(places):
                own = slice(k * several, (k + 1) * several)
                yield place, texts[own], sum(length(row, ends) for row in rows[own])
            bar.update(len(places))
