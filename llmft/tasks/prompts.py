"""Prompts from standard input or a file, and texts written for many at once."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
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
from llmft.errors import DataError, EncodingError
from llmft.files import to_json
from llmft.model.ends import ends_of, length, set_ends
from llmft.model.identity import fingerprint
from llmft.model.probes import SAME, alike
from llmft.process import versions
from llmft.sources.hub import Located
from llmft.tasks import generate
from llmft.tasks.prediction_output import Part, check_target, opened_part

# Batches whose prompts are sorted by length and kept together: that much a kill costs.
# Where only prompts of one length go together, more are needed to find some.
WINDOW, WINDOW_OF_EQUAL = 4, 64

_TRIED = 3  # tokens that are written to see whether padding changes them


def read_prompts(args: Arguments) -> None:
    """Put into ``prompt`` what its - and ``prompt_file`` stand for.

    Standard input is one prompt, without its last line break. A file has one a line,
    or of other formats in its column ``prompt``, or the one that is named.

    Raises:
        ConfigError: ``output_file`` is there, or cannot be written.
        DataError: the file cannot be read, or standard input is not UTF-8.
    """
    model, data = args.model, args.data
    if model.output_file:
        check_target(Path(model.output_file).expanduser())
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


def answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, args: Arguments, located: Located
) -> None:
    """Continue the prompts of a command: as they are written, or those of a file.

    The latter go through the model in batches, to the screen or into ``output_file``
    with ``prompt`` and ``completion``. What is there when it ends early is kept beside
    that file, and the same command goes on.
    """
    given = args.model
    if not given.prompt_file:
        generate.sample(model, tokenizer, given, args.training.seed, stream=True)
    elif not given.output_file:
        _write(model, tokenizer, args, None)
    else:
        target = Path(given.output_file).expanduser()
        known = asdict(given) | {"prompt": [], "output_file": target.name}
        training = args.training
        made_of = {
            "prompts": hashlib.sha256(to_json(given.prompt).encode()).hexdigest(),
            "model": fingerprint(located, tokenizer),
            "arguments": [known, training.seed, training.eval_batch_size],
            "precision": str(model.dtype),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        with opened_part(target, made_of) as part:
            _write(model, tokenizer, args, part)
        say(f"output     {given.output_file}, {part.rows:,} texts")


def _write(
    model: Any, tokenizer: PreTrainedTokenizerBase, args: Arguments, part: Part | None
) -> None:
    """Write what is not yet in ``part``, None: to the screen."""
    given = args.model
    counts = part.counts if part else {}
    done = part.rows if part else 0
    if done:
        say(f"going on   after {done:,} texts, which are there already")
    form = "{prompt}{completion}"
    if given.apply_chat_template:
        form = "[user] {prompt} [assistant] {completion}"
    started, written = time.perf_counter(), 0
    first = done // given.num_return_sequences
    for rows, tokens in completions(model, tokenizer, args, first):
        written += tokens
        empty = sum(not row["completion"].strip() for row in rows)
        counts["empty"] = counts.get("empty", 0) + empty
        if part:
            part.write(rows, counts)
        else:
            say("\n\n".join(form.format(**row) for row in rows) + "\n")
    if part:
        part.finish()
    if empty := counts["empty"]:
        chats = tokenizer.chat_template and not given.apply_chat_template
        hint = "; the model has a chat template: --apply_chat_template" if chats else ""
        total = len(given.prompt) * given.num_return_sequences
        warn(f"{empty:,} of {total:,} texts are empty{hint}")
    rate = written / (time.perf_counter() - started)
    say(f"written    {written} tokens, {rate:.2f} tokens/s")


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


def _pads_well(model: Any, ids: list[list[int]]) -> bool:
    """Return whether the shortest prompt goes on alike beside the longest and alone.

    Not in models that read on through the padding (RWKV), or count positions with it.
    """
    longest, shortest = max(ids, key=len), min(ids, key=len)
    if len(longest) == len(shortest):
        return True
    config = GenerationConfig(
        min_new_tokens=_TRIED,
        max_new_tokens=_TRIED,
        do_sample=False,
        num_beams=1,
        pad_token_id=shortest[0],
        output_logits=True,  # scores are without the end, which may not come yet
        return_dict_in_generate=True,
    )

    def logits(*rows: list[int]) -> torch.Tensor:
        batch = _padded([*rows], model.device)
        found: Any = generate.write(model, batch, config)
        return torch.stack(found.logits)[:, -1].float()

    try:
        together, alone = logits(longest, shortest), logits(shortest)
    except Exception:  # whatever a model says that cannot do it
        return False
    return alike(together, alone, SAME)


def completions(
    model: Any, tokenizer: PreTrainedTokenizerBase, args: Arguments, first: int = 0
) -> Iterator[tuple[list[dict[str, str]], int]]:
    """Yield ``prompt`` and ``completion`` of some prompts in order, and their tokens.

    Of a window, prompts of like length are continued together, the longest first; only
    those of equal length where padding would change the text, which is tried. What is
    drawn depends on the seed and the window alone.

    Args:
        first: the prompt to begin with, the first of a window.
    """
    given, size = args.model, args.training.eval_batch_size
    generate.check_prompts(model, tokenizer, given)
    set_ends(model, tokenizer, given.apply_chat_template)
    ends = ends_of(model)
    config = generate.generation_config(given, tokenizer, ends)
    ids = [generate.prompt_ids(p, tokenizer, given) for p in given.prompt]
    several, total = given.num_return_sequences, len(ids)
    model.eval()
    pads = not given.no_repeat_ngram_size and _pads_well(model, ids)
    window = size * (WINDOW if pads else WINDOW_OF_EQUAL)
    bar = tqdm(total=total, initial=first, desc="writing", unit="prompt", disable=None)
    with bar:
        for start in range(first, total, window):
            set_seed((args.training.seed + start) % 2**32)
            left, tokens = list(range(start, min(start + window, total))), 0
            left.sort(key=lambda place: -len(ids[place]))
            found: dict[int, list[str]] = {}
            while left:
                most = len(ids[left[0]])
                fit = left if pads else [p for p in left if len(ids[p]) == most]
                places = fit[:size]
                left = [p for p in left if p not in places]
                batch = _padded([ids[place] for place in places], model.device)
                rows = generate.write(model, batch, config)[:, most:]
                tokens += sum(length(row, ends) for row in rows)
                texts = iter(tokenizer.batch_decode(rows, skip_special_tokens=True))
                found |= {place: list(islice(texts, several)) for place in places}
                bar.update(len(places))
            made = [
                {"prompt": given.prompt[place], "completion": text}
                for place in sorted(found)
                for text in found[place]
            ]
            yield made, tokens
