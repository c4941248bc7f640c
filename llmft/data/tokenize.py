"""From text to token ids, cached by content and settings."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from llmft import __version__, assets
from llmft.arguments import DataArguments, LanguageModelingDataArguments
from llmft.console import say, warn
from llmft.data.read import content_hash, listed
from llmft.errors import DataError

# Above this share of unknown tokens, and of texts that lose accents, we warn.
_UNKNOWN, _ACCENTS = 0.01, 0.1


@dataclass(frozen=True)
class LabelNames:
    """Class names by id. Numbers are in numeric order, other names in alphabetical."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, labels: list[str]) -> LabelNames:
        """Collect the classes of training labels. Raises DataError below two."""
        names = set(labels)
        if len(names) < 2:
            raise DataError(
                f"all {len(labels):,} training rows have the label {names.pop()!r}",
                "expected at least two classes",
            )
        numeric = all(n.removeprefix("-").isdecimal() and len(n) < 20 for n in names)
        # "1" and "01" are two classes: their order must not be that of a set.
        return cls(tuple(sorted(names, key=lambda n: (int(n) if numeric else 0, n))))

    def ids(self, labels: list[str], split: str) -> list[int]:
        """Return class ids; raise DataError for labels that training does not have.

        A number also stands for the class of a model that calls it LABEL_number.
        """
        known = {name: i for i, name in enumerate(self.names)}
        for i, name in enumerate(self.names):
            if name == f"LABEL_{i}":
                known.setdefault(str(i), i)
        unknown = sorted(set(labels) - known.keys())
        if unknown:
            raise DataError(
                f"{split} has labels that train has not: {listed(unknown, 5)}",
                f"known are {listed(self.names)}",
                "correct them, or add rows with them to train",
            )
        return [known[label] for label in labels]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides what a tokenizer makes of a text.

    A fast tokenizer keeps the truncation and padding of its last call in itself: they
    are taken off first, else the hash would change with use.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        described = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()])
    else:
        backend.no_truncation()
        backend.no_padding()
        described = backend.to_str()
    return hashlib.sha256(described.encode()).hexdigest()


def _tokenize(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, args: DataArguments, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts, each whole and with special tokens, and lengths.

    They come from the cache where it holds them. ``map`` publishes a cache file by
    renaming, so that processes which tokenize the same do not disturb each other.

    Returns:
        ids (int32, one text behind the other) and the tokens of each text (int64).
    """
    texts = data.select_columns(["text"])
    settings = [__version__, tokenizer_fingerprint(tokenizer), content_hash(texts)]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    folder = assets.cache_home() / "tokenized"
    folder.mkdir(parents=True, exist_ok=True)
    workers = args.preprocessing_num_workers
    path = folder / f"{key}-{workers or 1}.arrow"

    def ids(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(
            batch["text"],
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return {"input_ids": encoded["input_ids"]}

    def mapped(from_cache: bool) -> Dataset:
        return texts.map(
            ids,
            batched=True,
            remove_columns=["text"],
            features=Features({"input_ids": List(Value("int32"))}),
            num_proc=workers,
            load_from_cache_file=from_cache,
            cache_file_name=str(path),
            new_fingerprint=key[:32],
            desc=f"tokenizing {split}",
        )

    if not args.overwrite_cache and any(folder.glob(f"{path.stem}*.arrow")):
        try:
            return _flat(mapped(True), len(texts), max(tokenizer.get_vocab().values()))
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            warn(f"{path}: damaged ({error}); tokenizing {split} again")
    return _flat(mapped(False), len(texts))


def _flat(
    encoded: Dataset, rows: int, greatest: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and lengths; raise ValueError where they cannot be right."""
    column = encoded.data.column("input_ids")
    column.validate(full=True)
    if len(column) != rows:
        raise ValueError(f"{len(column):,} texts of {rows:,}")
    tokens = np.concatenate([c.flatten().to_numpy() for c in column.chunks])
    lengths = np.concatenate([c.value_lengths().to_numpy() for c in column.chunks])
    if greatest is not None and len(tokens):
        if tokens.min() < 0 or tokens.max() > greatest:
            raise ValueError("ids that are not in the vocabulary")
    return tokens, lengths.astype(np.int64)


def _lost(
    tokens: np.ndarray,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    split: str,
) -> str:
    """Return a note on what the tokenizer cannot tell apart; warn where it is much."""
    unknown, note = tokenizer.unk_token_id, ""
    # GPT-2 and its kin call their eos so, and have a token for every byte.
    if unknown not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id):
        special = set(tokenizer.all_special_ids) - {unknown}
        count = int((tokens == unknown).sum())
        total = len(tokens) - int(np.isin(tokens, list(special)).sum())
        if count:
            note += f"; {count:,} unknown tokens ({tokenizer.unk_token})"
        if count > _UNKNOWN * total:
            warn(
                f"{split}: {100 * count / total:.2g} % of the tokens are unknown to"
                " this model, which cannot tell them apart; choose one whose vocabulary"
                " was made for this language"
            )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = getattr(backend, "normalizer", None)
    if normalizer is not None and normalizer.normalize_str("\u00e4") == "a":
        accented = {
            c
            for c in set().union(*texts)
            if any(
                unicodedata.category(d) == "Mn" for d in unicodedata.normalize("NFD", c)
            )
        }
        count = sum(not accented.isdisjoint(text) for text in texts) if accented else 0
        if count:
            note += f"; {count:,} texts lose accents"
        if count > _ACCENTS * len(texts):
            warn(
                f"{split}: this tokenizer strips the accents that {count:,} of"
                f" {len(texts):,} texts have ({listed(sorted(accented), 5)}); choose a"
                " model that keeps them where they matter"
            )
    return note


def lm_blocks(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: LanguageModelingDataArguments,
    split: str,
    *,
    end_documents: bool = False,
) -> Dataset:
    """Cut documents into blocks of at most ``max_seq_length`` tokens.

    Policy pack joins all documents and cuts; what is left at the end is dropped and
    counted, unless it is all there is. Policy row starts a block with each document
    and goes on in further blocks where it is longer.

    Args:
        end_documents: end each with the tokenizer's eos token (causal models).

    Returns:
        columns ``input_ids`` (list of int32), ``row`` (int64, its position) and, where
        documents end within blocks, ``position_ids``: counted from each one's start.
    """
    tokens, lengths = _tokenize(data, tokenizer, args, split)
    lost = _lost(tokens, data["text"][:], tokenizer, split)
    empty = int((lengths <= tokenizer.num_special_tokens_to_add()).sum())
    if empty == len(lengths):
        raise DataError(f"{split} has no tokens", "expected text")
    if end_documents and tokenizer.eos_token_id is not None:
        ends = np.cumsum(lengths)
        last = np.where(lengths > 0, tokens[np.maximum(ends, 1) - 1], -1)
        open_ends = last != tokenizer.eos_token_id
        tokens = np.insert(tokens, ends[open_ends], tokenizer.eos_token_id)
        lengths = lengths + open_ends
    size = args.max_seq_length
    if args.block_policy == "row":
        starts = np.cumsum(lengths) - lengths
        pieces = -(-lengths // size)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        offsets = np.append(np.repeat(starts, pieces) + within * size, len(tokens))
    else:
        whole = len(tokens) // size * size or len(tokens)
        offsets = np.append(np.arange(0, whole, size), whole)
    if np.diff(offsets).max() < 2:
        raise DataError(f"{split} has a single token in a block", "expected text")
    blocks = _lists(tokens[: offsets[-1]], offsets)
    rows = pa.array(np.arange(len(blocks)))
    left = len(tokens) - int(offsets[-1])
    note = f"{len(tokens):,} tokens in {len(blocks):,} blocks of up to {size}"
    if args.block_policy == "pack":
        note += f"; {left:,} tokens of the last partial block left out"
    if empty:
        note += f"; {empty:,} documents without a token"
    say(f"  {split:<10} {note}{lost}")
    columns = {"input_ids": blocks, "row": rows}
    if end_documents and args.block_policy == "pack":
        columns["position_ids"] = _lists(_positions(lengths, offsets), offsets)
    return Dataset(pa.table(columns))


def _positions(lengths: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the position of each token in its document, as far as its block holds it.

    Args:
        lengths: tokens of each document. offsets: where each block begins, and the end.
    """
    used = int(offsets[-1])
    of_document = np.repeat(np.cumsum(lengths) - lengths, lengths)[:used]
    of_block = np.repeat(offsets[:-1], np.diff(offsets))
    return (np.arange(used) - np.maximum(of_document, of_block)).astype(np.int32)


def _lists(tokens: np.ndarray, offsets: np.ndarray) -> pa.LargeListArray:
    """Return the lists that begin at ``offsets``, with 64 bits: 2**31 is not much."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), tokens)


def classification_features(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: DataArguments,
    split: str,
    labels: LabelNames,
) -> Dataset:
    """Encode each text as one example, cut to ``max_seq_length`` and counted.

    Returns:
        columns ``input_ids`` (list), ``length`` and, where data has them, ``labels``.
    """
    tokens, lengths = _tokenize(data, tokenizer, args, split)
    texts = data["text"][:]
    ids = _lists(tokens, np.append(0, np.cumsum(lengths)))
    lost = _lost(tokens, texts, tokenizer, split)
    size = args.max_seq_length
    long, bare = np.flatnonzero(lengths > size), np.flatnonzero(lengths == 0)
    left = int((lengths[long] - size).sum())
    # A row without any token would have no place to classify.
    new = [[tokenizer.pad_token_id]] * len(bare)
    if len(long):  # again, so that the tokenizer itself puts the closing token in place
        new += tokenizer(
            [texts[i] for i in long],
            truncation=True,
            max_length=size,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    if new:
        order = np.arange(len(texts))
        order[np.append(bare, long)] = len(texts) + np.arange(len(new))
        ids = pa.concat_arrays([ids, pa.array(new, ids.type)]).take(pa.array(order))
        lengths = ids.value_lengths().to_numpy()
    columns: dict[str, Any] = {"input_ids": ids, "length": lengths}
    if "label" in data.column_names:
        columns["labels"] = labels.ids(data["label"][:], split)
    note = f"{lengths.sum():,} tokens, longest {lengths.max()}"
    if len(long):
        note += f"; {len(long):,} texts cut to {size} tokens, {left:,} tokens left out"
    say(f"  {split:<10} {note}{lost}")
    empty = sum(not text.strip() for text in texts)
    if empty:
        used = "as a single padding token" if len(bare) else "as they are"
        warn(f"{split}: {empty:,} texts are empty; they are used {used}")
    return Dataset(pa.table(columns))
