"""From text to token ids, kept in the cache by content and settings.

The ids of all texts lie one behind the other in a file that is memory-mapped, so that
many GB of text need little memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmft.config.fields import DataArguments
from llmft.data.read.prints import PRINTS
from llmft.data.read.store import batches, cached, content_hash
from llmft.data.tokens.chat import Layout
from llmft.data.tokens.words import WordIds, word_ids
from llmft.machine.detect import usable_cores

_CACHE = 6  # to be raised where the same settings make other ids
BATCH = 1000  # texts that a tokenizer gets at once
CHARACTERS = 2**21  # it takes 30 times as much memory as the text has, two at a time
# A tokenizer uses all cores and words one, which takes a seventh of the work.
_MOST_CORES = 6

Batch = dict[str, list[Any]]
Ids = tuple[np.ndarray, np.ndarray, np.ndarray | None]
How = tuple[PreTrainedTokenizerBase, int | None, Layout | None]  # of encode_batch


@dataclass(frozen=True)
class Encoded:
    """Token ids of all texts, each whole and with special tokens.

    Attributes:
        tokens: int32, one text behind the other. lengths: int64, tokens of each text.
        types: int8, 0 for the first text of a pair and 1 for the second, as far as the
            tokenizer tells them apart; of a layout, its ``chat.token_types``.
        accented: how many texts have letters that lose an accent, and the letters.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    types: np.ndarray | None
    accented: int
    accents: str


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides what a tokenizer makes of a text.

    A fast tokenizer keeps the truncation and padding of its last call in itself: they
    are taken off first, else the hash would change with use.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = [tokenizer.split_special_tokens, tokenizer.special_tokens_map]
    if backend is None:
        places = {"name_or_path", "tokenizer_file", "vocab_file", "merges_file"}
        settings = {k: v for k, v in tokenizer.init_kwargs.items() if k not in places}
        own = [type(tokenizer).__name__, tokenizer.get_vocab(), settings]
    else:
        backend.no_truncation()
        backend.no_padding()
        own = [backend.to_str()]
    described = json.dumps([*own, *special], default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def encode(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    args: DataArguments | None = None,
    *,
    end_token: int | None = None,
    layout: Layout | None = None,
) -> Encoded:
    """Return the ids of all texts, out of the cache where it holds them.

    Args:
        data: column ``text`` and, for pairs, ``text_pair``.
        args: how many processes tokenize, without a number the threads of this one;
            and whether to do it whatever the cache holds.
        end_token: is added to each text that does not end with it.
        layout: of prompts with completions and of conversations.
    """
    args = args or DataArguments()
    workers = args.preprocessing_num_workers
    names = [n for n in ("text", "text_pair") if n in data.column_names]
    texts = data.select_columns(names)
    how: list[Any] = [_CACHE, tokenizers.__version__, transformers.__version__]
    hashed = [n for n in data.column_names if n in (*names, *PRINTS)]
    how += [tokenizer_fingerprint(tokenizer), content_hash(data.select_columns(hashed))]
    how += [end_token]
    how += [layout.format, layout.only, layout.template] if layout else []
    return cached(
        "tokenized",
        how,
        partial(_write, texts, (tokenizer, end_token, layout), split, workers),
        partial(_read, rows=len(texts)),
        f"tokenizing {split} again",
        overwrite=args.overwrite_cache,
    )


def _write(
    texts: Dataset, how: How, split: str, workers: int | None, folder: Path
) -> dict[str, Any]:
    lengths, typed = [], False
    normalizer = getattr(getattr(how[0], "backend_tokenizer", None), "normalizer", None)
    strips = normalizer is not None and normalizer.normalize_str("\u00e4") == "a"
    accents, accented = set[str](), 0
    bar = tqdm(total=len(texts), desc=f"tokenizing {split}", unit="text", disable=None)
    with (
        open(folder / "tokens", "wb") as tokens,
        open(folder / "types", "wb") as types,
        bar,
    ):
        for batch, (ids, counts, kinds) in _encoded(texts, how, workers):
            lengths.append(counts)
            tokens.write(ids.tobytes())
            if kinds is not None:
                typed = True
                types.write(kinds.tobytes())
            if strips:
                count, lost = _accented(batch["text"])
                accented, accents = accented + count, accents | lost
            bar.update(len(batch["text"]))
    np.save(folder / "lengths.npy", np.concatenate(lengths))
    shown = "".join(sorted(accents))[:100]
    return {"typed": typed, "accented": accented, "accents": shown}


def _encoded(
    texts: Dataset, how: How, workers: int | None
) -> Iterator[tuple[Batch, Ids]]:
    """Yield batches with their ids, in order; no more than a few are held at once."""
    parts = batches(texts, BATCH, CHARACTERS)
    if workers is None:
        yield from encode_ahead(parts, how)
        return
    # spawn: a process forked after the tokenizer ran its threads may never end.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, how)
    with pool:
        yield from _ahead(parts, pool, _in_worker, 2 * workers)


def encode_ahead(parts: Iterator[Batch], how: How) -> Iterator[tuple[Batch, Ids]]:
    """Yield batches with their ids, in order.

    The tokenizer works in threads of its own while the caller reads what comes next,
    and makes something of what came before. Two batches are in work, for one thread
    would leave it idle as often as it hands ids to Python.
    """
    words = _words(*how) if usable_cores() <= _MOST_CORES else None
    with ThreadPoolExecutor(2) as pool:
        yield from _ahead(parts, pool, lambda b: encode_batch(b, *how, words), 2)


def _ahead(
    parts: Iterator[Batch], pool: Executor, work: Callable[[Batch], Ids], most: int
) -> Iterator[tuple[Batch, Ids]]:
    waiting: deque[tuple[Batch, Future[Ids]]] = deque()
    end: Exception | None = None
    while end is None or waiting:
        while end is None and len(waiting) <= most:
            try:
                batch = next(parts)
            except Exception as error:  # what came before it is handed on first
                end = error
            else:
                waiting.append((batch, pool.submit(work, batch)))
        if waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    if not isinstance(end, StopIteration):
        raise end


_worker: dict[str, Any] = {}  # of a worker process: what it tokenizes with


def _start_worker(*how: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.update(how=(*how, _words(*how)))


def _in_worker(batch: Batch) -> Ids:
    return encode_batch(batch, *_worker["how"])


def _words(
    tokenizer: PreTrainedTokenizerBase, end_token: int | None, layout: Layout | None
) -> WordIds | None:
    backend = None if layout else _plain_backend(tokenizer)
    return None if backend is None else word_ids(backend)


def encode_batch(
    batch: Batch,
    tokenizer: PreTrainedTokenizerBase,
    end_token: int | None = None,
    layout: Layout | None = None,
    words: WordIds | None = None,
) -> Ids:
    """Return ids (int32), lengths (int64) and, of pairs, types (int8) of a batch.

    Args:
        words: of this tokenizer, where they are to make the ids of texts.
    """
    types: Sequence[Any] = ()
    pairs = batch.get("text_pair")
    if layout is not None:
        rows, types = layout.encode(batch, end_token)
    elif (backend := _plain_backend(tokenizer)) is not None:
        if words is not None and pairs is None:
            return *words.encode(batch["text"], end_token), None
        texts = batch["text"] if pairs is None else [*zip(batch["text"], pairs)]  # noqa: B905
        made = backend.encode_batch_fast(texts)  # without the places of tokens
        rows = [encoding.ids for encoding in made]
        types = [encoding.type_ids for encoding in made] if pairs else ()
    else:
        encoded = tokenizer(
            batch["text"],
            pairs,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=bool(pairs),  # in the cache for every model
            verbose=False,
        )
        rows, types = encoded["input_ids"], encoded.get("token_type_ids", ())
    if end_token is not None and layout is None:
        rows = [r if r[-1:] == [end_token] else [*r, end_token] for r in rows]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    flat = np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum())
    kinds = [np.asarray(t, np.int8) for t in types]
    return flat, lengths, np.concatenate(kinds) if kinds else None


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return what makes ids by itself, None where transformers adds to them."""
    kind, base = type(tokenizer), PreTrainedTokenizerFast
    if (kind.__call__, kind._encode_plus) != (base.__call__, base._encode_plus):
        return None
    backend = tokenizer.backend_tokenizer
    # Only where they are set: another thread may be at work.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _read(folder: Path, facts: dict[str, Any], rows: int) -> Encoded:
    """Return what is in a folder of the cache. Raises ValueError where it is wrong."""
    lengths = np.load(folder / "lengths.npy", allow_pickle=False)
    if len(lengths) != rows or lengths.dtype != np.int64 or (lengths < 0).any():
        raise ValueError(f"{len(lengths):,} texts of {rows:,}")
    total = int(lengths.sum())
    tokens = _mapped(folder / "tokens", np.int32, total)
    types = _mapped(folder / "types", np.int8, total) if facts["typed"] else None
    return Encoded(tokens, lengths, types, facts["accented"], facts["accents"])


def _mapped(path: Path, dtype: Any, count: int) -> np.ndarray:
    size = path.stat().st_size
    if size != count * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} has {size:,} bytes, for {count:,} tokens")
    return np.memmap(path, dtype, "r") if count else np.empty(0, dtype)


def _accented(texts: Sequence[str]) -> tuple[int, set[str]]:
    """Return how many texts have letters with an accent, and these."""
    odd = [text for text in texts if not text.isascii()]
    codes = np.frombuffer("".join(odd).encode("utf-32-le"), np.uint32)
    places = np.flatnonzero(codes > 127)  # few, of all that is there
    letters = [*map(chr, np.unique(codes[places]))]
    lost = {letter for letter in letters if _has_accent(letter)}
    places = places[np.isin(codes[places], [*map(ord, lost)])]
    ends = np.cumsum([len(text) for text in odd])
    return len(np.unique(np.searchsorted(ends, places, "right"))), lost


@cache
def _has_accent(letter: str) -> bool:
    parts = unicodedata.normalize("NFD", letter)
    return any(unicodedata.category(part) == "Mn" for part in parts)
