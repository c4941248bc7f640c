"""From the token ids of texts to the examples of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from transformers import PreTrainedTokenizerBase

from llmft.config.fields import (
    ClassificationDataArguments,
    GenerationDataArguments,
    LanguageModelingDataArguments,
)
from llmft.console import say, warn
from llmft.data.read.labels import LabelNames
from llmft.data.read.messages import MESSAGES, TEXT
from llmft.data.read.store import Source
from llmft.data.tokens.chat import CHECKED, Layout, learns_only
from llmft.data.tokens.collate import IGNORED
from llmft.data.tokens.encode import BATCH, Encoded, encode, encode_batch
from llmft.data.tokens.long_text import described, fit, lists, set_long_text
from llmft.errors import DataError, LengthError, counted, listed

# Above this share of unknown tokens, and of texts that lose accents, we warn.
_UNKNOWN, _ACCENTS = 0.01, 0.1
_FEW = 8  # ids that are compared one by one
_PIECE = 2**20  # tokens looked at at once: masks of all of them could be large


def _tell(
    split: str, note: str, encoded: Encoded, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Say a note, and what the tokenizer cannot tell apart; warn where it is much."""
    unknown, tokens, rows = tokenizer.unk_token_id, encoded.tokens, len(encoded.lengths)
    if count := unknown_tokens(tokens, tokenizer):
        note += f"; {count:,} unknown tokens ({tokenizer.unk_token})"
        total = len(tokens) - _count(tokens, {*tokenizer.all_special_ids} - {unknown})
        if count > _UNKNOWN * total:
            warn(
                f"{split}: {100 * count / total:.2g} % of the tokens are unknown to"
                " this model, which cannot tell them apart; choose one whose vocabulary"
                " was made for this language, or, for classify.py and generate.py,"
                " pypi:gemma-3-270m, which knows every character"
            )
    if encoded.accented:
        note += f"; {counted(encoded.accented, 'texts lose accents')}"
    say(f"  {split:<10} {note}")
    if split not in ("validation", "test") and encoded.accented > _ACCENTS * rows:
        warn(
            f"{split}: this tokenizer strips the accents that {encoded.accented:,} of"
            f" {rows:,} texts have ({listed(encoded.accents, 5)}); choose a"
            " model that keeps them if words differ by them only"
        )


def unknown_tokens(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many of the ids stand for what the tokenizer does not know."""
    unknown = _unknown_id(tokenizer)
    return 0 if unknown is None else _count(tokens, {unknown})


def unknown_by_text(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase
) -> dict[int, int]:
    """Return the unknown tokens in the examples of each text that has some."""
    unknown, counts = _unknown_id(tokenizer), Counter[int]()
    if unknown is not None and "input_ids" in examples.column_names:
        names = examples.column_names
        rows = examples["row"][:] if "row" in names else range(len(examples))
        for row, ids in zip(rows, examples["input_ids"], strict=True):
            counts[row] += ids.count(unknown)
    return dict(+counts)


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    unknown = tokenizer.unk_token_id
    # GPT-2 and its kin call their eos so, and have a token for every byte.
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return None if unknown in ends else unknown


def _count(tokens: np.ndarray, ids: Collection[int]) -> int:
    if len(ids) > _FEW:
        found = (np.isin(piece, [*ids]) for piece in pieces(tokens))
    else:  # of 218 million tokens 0.1 s an id, where np.isin took 1.4 s
        found = (piece == i for piece in pieces(tokens) for i in ids)
    return sum(int(np.count_nonzero(part)) for part in found)


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
        columns ``input_ids`` (list of int32), ``row`` (int64, its position),
        ``documents`` (the first and the last that it has tokens of) and, where
        documents end within blocks, ``seq_lengths``: tokens of each one in the block.
    """
    end_token = tokenizer.eos_token_id if end_documents else None
    encoded = encode(data, tokenizer, split, args, end_token=end_token)
    tokens, lengths = encoded.tokens, encoded.lengths
    bare = len(encode_batch({"text": [""]}, tokenizer, end_token)[0])
    empty = int((lengths <= bare).sum())
    if empty == len(lengths):
        raise DataError(f"{split} has no tokens", "expected text")
    size = args.max_seq_length
    if args.block_policy == "row":
        starts = np.cumsum(lengths) - lengths
        counts = -(-lengths // size)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = np.append(np.repeat(starts, counts) + within * size, len(tokens))
    else:
        offsets = packed(len(tokens), size)
    if np.diff(offsets).max() < 2:
        raise DataError(f"{split} has a single token in a block", "expected text")
    blocks = lists(tokens[: offsets[-1]], offsets)
    left = len(tokens) - int(offsets[-1])
    note = f"{len(tokens):,} tokens in {counted(len(blocks), 'blocks')} of up to {size}"
    if args.block_policy == "pack":
        note += f"; {counted(left, 'tokens of the last partial block left out')}"
    if empty:
        note += f"; {counted(empty, 'documents without a token')}"
    _tell(split, note, encoded, tokenizer)
    columns = {"input_ids": blocks, "row": np.arange(len(blocks))}
    columns["documents"] = documents(lengths, offsets)
    if end_documents and args.block_policy == "pack":
        columns["seq_lengths"] = seq_lengths(lengths, offsets)
    return dataset_of(columns)


def causal_examples(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    args: GenerationDataArguments,
    split: str,
) -> Dataset:
    """Make the examples of causal generation, as the format of the data asks.

    Plain texts become ``lm_blocks``. Of prompts with completions and of conversations,
    labels are the tokens to learn, else -100. Policy row makes an example of each row
    and leaves out what is longer than ``max_seq_length``; policy pack is that of
    ``lm_blocks``. Examples without a label are left out. All of that is counted.

    Returns:
        columns ``input_ids`` and ``labels`` (lists of int32), ``row`` and ``length``
        (int64), ``documents``, and with policy pack ``seq_lengths``.

    Raises:
        ConfigError, DataFormatError: see ``chat``.
        LengthError: no example has a label.
    """
    if source.format == TEXT:
        return lm_blocks(source.dataset, tokenizer, args, split, end_documents=True)
    only = learns_only(args, source.format)
    layout = Layout(tokenizer, source.format, only)
    end_token = None if source.format == MESSAGES else tokenizer.eos_token_id
    encoded = encode(
        source.dataset, tokenizer, split, args, end_token=end_token, layout=layout
    )
    left_out = layout.refused(source, encoded.lengths, args.max_bad_rows)
    examples, note = learnt_examples(encoded, args, split)
    note += left_out
    _tell(split, note, encoded, tokenizer)
    if unsaid := layout.check(source.dataset):
        warn(
            f"{split}: of the first {CHECKED:,} conversations the chat template leaves"
            f" out, or writes otherwise, turns: {unsaid}; give another by"
            " --chat_template_path"
        )
    return examples


def classification_features(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    args: ClassificationDataArguments,
    split: str,
    labels: LabelNames,
) -> Dataset:
    """Encode texts or pairs as examples of up to ``max_seq_length`` tokens, counted.

    Returns:
        columns ``input_ids`` (list), ``length``; ``token_type_ids`` (list) of pairs;
        ``labels`` where data has them, as ``LabelNames.targets``; and ``row`` (int64),
        the text of each example, where ``long_text`` is split.
    """
    data = source.dataset
    encoded = encode(data, tokenizer, split, args)
    said = set_long_text(encoded, tokenizer, args, split)
    ids, rows, done = fit(source, encoded, tokenizer, args, split)
    lengths = ids["input_ids"].value_lengths().to_numpy()
    columns: dict[str, Any] = {**ids, "length": lengths}
    given: list[Any] = [None]
    if "label" in data.column_names:
        given = data["label"][:]
    if None not in given:  # else nothing is learnt: see ``classify.measure``
        found = labels.targets(given, split, source.place)[rows]
        columns["labels"] = pa.array(found if found.ndim == 1 else list(found))
    elif "label" in data.column_names:  # those of some rows: they are looked at now
        there = [row for row, label in enumerate(given) if label is not None]
        if there:
            some = source.select(there)
            labels.targets(some.dataset["label"][:], split, some.place)
    if args.long_text == "split":
        columns["row"] = rows
    note = f"{lengths.sum():,} tokens; {described(encoded.lengths)}{done}{said}"
    _tell(split, note, encoded, tokenizer)
    batches = data.select_columns(["text"]).iter(BATCH)
    if empty := sum(not text.strip() for batch in batches for text in batch["text"]):
        bare = (encoded.lengths == 0).any()
        used = "as a single padding token" if bare else "all the same"
        warn(f"{split}: {counted(empty, 'texts are empty')}, used {used}")
    return dataset_of(columns)


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
