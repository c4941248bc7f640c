"""From text to token ids, cached by content and settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from llmft import __version__, assets
from llmft.arguments import DataArguments, LanguageModelingDataArguments
from llmft.console import say, warn
from llmft.data.read import content_hash
from llmft.errors import DataError


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
        numeric = all(n.removeprefix("-").isdecimal() for n in names)
        # "1" and "01" are two classes: their order must not be that of a set.
        return cls(tuple(sorted(names, key=lambda n: (int(n) if numeric else 0, n))))

    def ids(self, labels: list[str], split: str) -> list[int]:
        """Return class ids; raise DataError for labels that training does not have."""
        known = {name: i for i, name in enumerate(self.names)}
        unknown = sorted(set(labels) - known.keys())
        if unknown:
            raise DataError(
                f"{split} has labels that train has not: {', '.join(unknown[:5])}",
                f"known are {', '.join(self.names[:20])}",
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
) -> Dataset:
    """Return column ``input_ids`` of every text, whole, with special tokens."""
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

    return texts.map(
        ids,
        batched=True,
        remove_columns=["text"],
        features=Features({"input_ids": List(Value("int32"))}),
        num_proc=workers,
        load_from_cache_file=not args.overwrite_cache,
        cache_file_name=str(path),
        new_fingerprint=key[:32],
        desc=f"tokenizing {split}",
    )


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
        columns ``input_ids`` (list of int32) and ``row`` (int64, its position).
    """
    column = _tokenize(data, tokenizer, args, split).data.column("input_ids")
    tokens = np.concatenate([c.flatten().to_numpy() for c in column.chunks])
    lengths = np.concatenate([c.value_lengths().to_numpy() for c in column.chunks])
    lengths = lengths.astype(np.int64)
    if not len(tokens):
        raise DataError(f"{split} has no tokens", "expected text")
    if end_documents and tokenizer.eos_token_id is not None:
        ends = np.cumsum(lengths)
        last = np.where(lengths > 0, tokens[np.maximum(ends, 1) - 1], -1)
        open_ends = last != tokenizer.eos_token_id
        tokens = np.insert(tokens, ends[open_ends], tokenizer.eos_token_id)
        lengths = lengths + open_ends
    if len(tokens) < 2:
        raise DataError(f"{split} has a single token", "expected text")
    size = args.max_seq_length
    if args.block_policy == "row":
        starts = np.cumsum(lengths) - lengths
        pieces = -(-lengths // size)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        offsets = np.append(np.repeat(starts, pieces) + within * size, len(tokens))
    else:
        whole = len(tokens) // size * size or len(tokens)
        offsets = np.append(np.arange(0, whole, size), whole)
    blocks = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(tokens[: offsets[-1]])
    )
    rows = pa.array(np.arange(len(blocks)))
    dataset = Dataset(pa.table({"input_ids": blocks, "row": rows}))
    left = len(tokens) - int(offsets[-1])
    note = f"{len(tokens):,} tokens in {len(blocks):,} blocks of up to {size}"
    if args.block_policy == "pack":
        note += f"; {left:,} tokens of the last partial block left out"
    say(f"  {split:<10} {note}")
    return dataset


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
    encoded = _tokenize(data, tokenizer, args, split)
    ids = encoded["input_ids"][:]
    size = args.max_seq_length
    long = [i for i, row in enumerate(ids) if len(row) > size]
    lost = sum(len(ids[i]) - size for i in long)
    if long:  # again, so that the tokenizer itself puts the closing token in place
        cut = tokenizer(
            [data[i]["text"] for i in long],
            truncation=True,
            max_length=size,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for i, row in zip(long, cut, strict=True):
            ids[i] = row
    columns: dict[str, Any] = {"input_ids": ids, "length": [len(row) for row in ids]}
    if "label" in data.column_names:
        columns["labels"] = labels.ids(data["label"][:], split)
    tokens = sum(columns["length"])
    note = f"{tokens:,} tokens, longest {max(columns['length'])}"
    if long:
        note += f"; {len(long):,} texts cut to {size} tokens, {lost:,} tokens left out"
    say(f"  {split:<10} {note}")
    empty = sum(not text.strip() for text in data["text"])
    if empty:
        warn(f"{split}: {empty:,} texts are empty; they are used as they are")
    return Dataset.from_dict(columns)
