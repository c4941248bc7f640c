"""What is learnt of completions and conversations: their examples and labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from llmft.config.fields import GenerationDataArguments
from llmft.data.tokens.collate import IGNORED
from llmft.data.tokens.encode import Encoded
from llmft.data.tokens.long_text import lists
from llmft.errors import LengthError, counted

_PIECE = 2**20  # tokens looked at at once: masks of all of them could be large


def dataset_of(columns: dict[str, Any]) -> Dataset:
    """Return the columns as a data set, without the hash of them by which it is known.

    That pickles them all: 1 GB of text, tokenized, took 4.6 GB of memory with it, and
    0.7 GB without.
    """
    return Dataset(pa.table(columns), fingerprint=generate_random_fingerprint())


def pieces(tokens: np.ndarray) -> list[np.ndarray]:
    """Return views of some tokens each."""
    return np.array_split(tokens, len(tokens) // _PIECE + 1)


def packed(total: int, size: int) -> np.ndarray:
    """Return where blocks begin, and the end of the last full one, if there is one."""
    whole = total // size * size or total
    return np.append(np.arange(0, whole, size), whole)


def seq_lengths(lengths: np.ndarray, offsets: np.ndarray) -> pa.LargeListArray:
    """Return for each block the tokens that it holds of each of its documents.

    ``lengths`` are those of the documents; ``offsets``: see ``packed``.
    """
    ends = np.cumsum(lengths)
    bounds = np.union1d(offsets, ends[ends < offsets[-1]])
    return lists(np.diff(bounds).astype(np.int32), np.searchsorted(bounds, offsets))


def documents(lengths: np.ndarray, offsets: np.ndarray) -> pa.LargeListArray:
    """Return for each block the first and the last document that it has tokens of.

    ``lengths`` are those of the documents; ``offsets``: see ``packed``.
    """
    ends = np.cumsum(lengths)
    bounds = np.stack([offsets[:-1], np.maximum(offsets[1:] - 1, 0)], 1)
    found = np.searchsorted(ends, bounds.ravel(), side="right").astype(np.int64)
    return lists(found, np.arange(0, len(found) + 1, 2))


def learnt_examples(
    encoded: Encoded, args: GenerationDataArguments, split: str
) -> tuple[Dataset, str]:
    """Return the examples of rows with token types, and what to say of them."""
    lengths, size = encoded.lengths, args.max_seq_length
    offsets, total = np.append(0, np.cumsum(lengths)), len(encoded.tokens)
    if pack := args.block_policy == "pack":
        offsets = packed(total, size)
    sequences = seq_lengths(lengths, offsets)
    made = (
        _learnt(encoded, offsets[start : end + 1], sequences[start:end], size)
        for start, end in _parts(offsets)
    )
    ids, labels, sizes, labelled, within = map(np.concatenate, zip(*made, strict=True))
    learnt = labelled > 0
    if not learnt.any():
        raise LengthError(
            f"none of {len(lengths):,} {split} rows has a completion within its first"
            f" {size} tokens",
            hint="raise --max_seq_length",
        )
    bounds = np.append(0, np.cumsum(sizes[learnt]))
    note = f"{bounds[-1]:,} tokens in {len(bounds) - 1:,} examples of up to {size},"
    note += f" {labelled.sum():,} of them to learn"
    whole = np.diff(offsets)
    cut, without = whole[learnt] - sizes[learnt], ~learnt & (whole > 0)
    which = ("blocks", "") if pack else ("rows", f" in their first {size} tokens")
    counts = (
        ((cut > 0).sum(), f"rows cut to {size} tokens, {cut.sum():,} tokens left out"),
        (total - offsets[-1], "tokens of the last partial block left out"),
        (without.sum(), "{} without a completion{} left out".format(*which)),
        (within.sum(), "completions begin within a token"),
    )
    note += "".join(f"; {counted(count, what)}" for count, what in counts if count)
    columns = {
        "input_ids": lists(ids, bounds),
        "labels": lists(labels, bounds),
        "row": np.arange(len(bounds) - 1),
        "length": np.diff(bounds),
        "documents": documents(lengths, offsets).filter(pa.array(learnt)),
    }
    if pack:
        columns["seq_lengths"] = sequences.filter(pa.array(learnt))
    return dataset_of(columns), note


def _learnt(
    encoded: Encoded, offsets: np.ndarray, seq_lengths: pa.LargeListArray, size: int
) -> tuple[np.ndarray, ...]:
    """Cut some examples to ``size`` tokens, and label what is to be learnt.

    Returns:
        ids and labels, one example behind the other, of which those without a label are
        left out; of each example, also of those, how many of its tokens are kept, how
        many are labelled, and how many completions begin within a token.
    """
    part, count = slice(offsets[0], offsets[-1]), len(offsets) - 1
    tokens = encoded.tokens[part]
    types = np.ones(len(tokens), np.int8)
    if encoded.types is not None:
        types = encoded.types[part]
    sequences = seq_lengths.flatten().to_numpy()
    places = np.arange(len(tokens))
    places -= np.repeat(np.cumsum(sequences) - sequences, sequences)
    owner = np.repeat(np.arange(count), np.diff(offsets))
    # The first token of a document is no label: nothing stands before it.
    learnt = (places > 0) & (places < size) & (types > 0)
    labelled = np.bincount(owner[learnt], minlength=count)
    keep = (places < size) & (labelled > 0)[owner]
    return (
        tokens[keep],
        np.where(types > 0, tokens, IGNORED)[keep],
        np.bincount(owner[keep], minlength=count),
        labelled,
        np.bincount(owner[types == 2], minlength=count),
    )


def _parts(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return the examples in parts of about ``_PIECE`` tokens, or of one example."""
    marks = np.arange(0, offsets[-1] + 1, _PIECE)
    bounds = np.unique([*np.searchsorted(offsets[:-1], marks), len(offsets) - 1])
    return pairwise(bounds.tolist())
