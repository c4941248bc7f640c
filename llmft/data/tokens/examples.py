"""From the token ids of texts to the examples of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

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
from llmft.data.tokens.chat import CHECKED, Layout
from llmft.data.tokens.collate import IGNORED
from llmft.data.tokens.encode import BATCH, Encoded, encode, encode_batch
from llmft.data.tokens.long_text import described, fit, lists
from llmft.errors import DataError, LengthError, listed

# Above this share of unknown tokens, and of texts that lose accents, we warn.
_UNKNOWN, _ACCENTS = 0.01, 0.1
_PIECE = 2**20  # tokens looked at at once: masks of all of them could be large


def _lost(
    encoded: Encoded, rows: int, tokenizer: PreTrainedTokenizerBase, split: str
) -> str:
    """Return a note on what the tokenizer cannot tell apart; warn where it is much."""
    unknown, note, tokens = tokenizer.unk_token_id, "", encoded.tokens
    # GPT-2 and its kin call their eos so, and have a token for every byte.
    if unknown not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id):
        special = set(tokenizer.all_special_ids) - {unknown}
        count = _count(tokens, [unknown])
        if count:
            note += f"; {count:,} unknown tokens ({tokenizer.unk_token})"
            total = len(tokens) - _count(tokens, list(special))
        if count and count > _UNKNOWN * total:
            warn(
                f"{split}: {100 * count / total:.2g} % of the tokens are unknown to"
                " this model, which cannot tell them apart; choose one whose vocabulary"
                " was made for this language"
            )
    if encoded.accented:
        note += f"; {encoded.accented:,} texts lose accents"
    if split not in ("validation", "test") and encoded.accented > _ACCENTS * rows:
        warn(
            f"{split}: this tokenizer strips the accents that {encoded.accented:,} of"
            f" {rows:,} texts have ({listed(encoded.accents, 5)}); choose a"
            " model that keeps them if words differ by them only"
        )
    return note


def _dataset(columns: dict[str, Any]) -> Dataset:
    """Return the columns as a data set, without the hash of them by which it is known.

    That pickles them all: 1 GB of text, tokenized, took 4.6 GB of memory with it, and
    0.7 GB without.
    """
    return Dataset(pa.table(columns), fingerprint=generate_random_fingerprint())


def _count(tokens: np.ndarray, ids: list[int]) -> int:
    """Return how many tokens are one of ``ids``."""
    return sum(int(np.isin(piece, ids).sum()) for piece in _pieces(tokens))


def _pieces(tokens: np.ndarray) -> list[np.ndarray]:
    """Return views of some tokens each."""
    return np.array_split(tokens, len(tokens) // _PIECE + 1)


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
        documents end within blocks, ``seq_lengths``: tokens of each one in the block.
    """
    end_token = tokenizer.eos_token_id if end_documents else None
    encoded = encode(
        data,
        tokenizer,
        split,
        end_token=end_token,
        workers=args.preprocessing_num_workers,
        overwrite=args.overwrite_cache,
    )
    tokens, lengths = encoded.tokens, encoded.lengths
    lost = _lost(encoded, len(data), tokenizer, split)
    bare = len(encode_batch({"text": [""]}, tokenizer, end_token)[0])
    empty = int((lengths <= bare).sum())
    if empty == len(lengths):
        raise DataError(f"{split} has no tokens", "expected text")
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
    blocks = lists(tokens[: offsets[-1]], offsets)
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
        columns["seq_lengths"] = _seq_lengths(lengths, offsets)
    return _dataset(columns)


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
        (int64), and with policy pack ``seq_lengths``.

    Raises:
        ConfigError, DataFormatError: see ``chat.Layout``.
        LengthError: no example has a label.
    """
    if source.format == TEXT:
        return lm_blocks(source.dataset, tokenizer, args, split, end_documents=True)
    layout = Layout.of(source.format, args, tokenizer, source.files)
    encoded = encode(
        source.dataset,
        tokenizer,
        split,
        end_token=None if source.format == MESSAGES else tokenizer.eos_token_id,
        layout=layout,
        workers=args.preprocessing_num_workers,
        overwrite=args.overwrite_cache,
    )
    examples, note = _learnt_examples(encoded, args, split)
    lost = _lost(encoded, len(source.dataset), tokenizer, split)
    say(f"  {split:<10} {note}{lost}")
    if unsaid := layout.check(source.dataset, tokenizer):
        warn(
            f"{split}: of the first {CHECKED:,} conversations the chat template leaves"
            f" out, or writes otherwise, turns: {unsaid}; give another by"
            " --chat_template_path"
        )
    if encoded.types is not None and not any(
        (part[types > 0] == tokenizer.eos_token_id).any()
        for part, types in zip(
            _pieces(encoded.tokens), _pieces(encoded.types), strict=True
        )
    ):
        warn(
            f"{split}: no turn of the assistant ends with the eos token"
            f" {tokenizer.eos_token!r}, so that the model does not learn to stop;"
            " expected a chat template of this tokenizer"
        )
    return examples


def _learnt_examples(
    encoded: Encoded, args: GenerationDataArguments, split: str
) -> tuple[Dataset, str]:
    """Return the examples of rows with token types, and what to say of them."""
    lengths, size = encoded.lengths, args.max_seq_length
    offsets, total = np.append(0, np.cumsum(lengths)), len(encoded.tokens)
    if pack := args.block_policy == "pack":
        whole = total // size * size or total
        offsets = np.append(np.arange(0, whole, size), whole)
    seq_lengths = _seq_lengths(lengths, offsets)
    made = _Learnt.joined(
        _learnt(encoded, offsets[some.start : some.stop + 1], seq_lengths[some], size)
        for some in _parts(offsets)
    )
    learnt = made.labelled > 0
    if not learnt.any():
        raise LengthError(
            f"none of {len(lengths):,} {split} rows has a completion within its first"
            f" {size} tokens",
            hint="raise --max_seq_length",
        )
    bounds = np.append(0, np.cumsum(made.sizes[learnt]))
    note = f"{bounds[-1]:,} tokens in {len(bounds) - 1:,} examples of up to {size},"
    note += f" {made.labelled.sum():,} of them to learn"
    cut = np.diff(offsets)[learnt] - made.sizes[learnt]
    counts = {
        f"rows cut to {size} tokens, {cut.sum():,} tokens left out": int(
            (cut > 0).sum()
        ),
        "tokens of the last partial block left out": total - int(offsets[-1]),
        f"{'blocks' if pack else 'rows'} without a completion"
        f"{'' if pack else f' in their first {size} tokens'} left out": int(
            (~learnt).sum()
        ),
        "completions begin within a token": int(made.within.sum()),
    }
    note += "".join(f"; {count:,} {what}" for what, count in counts.items() if count)
    columns = {
        "input_ids": lists(made.ids, bounds),
        "labels": lists(made.labels, bounds),
        "row": np.arange(len(bounds) - 1),
        "length": np.diff(bounds),
    }
    if pack:
        columns["seq_lengths"] = seq_lengths.filter(pa.array(learnt))
    return _dataset(columns), note


class _Learnt(NamedTuple):
    """Examples one behind the other, of which those without a label are left out.

    Of each example, also of those: its tokens that are kept and that are labelled, and
    how many completions begin within a token.
    """

    ids: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    labelled: np.ndarray
    within: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[_Learnt]) -> _Learnt:
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


def _learnt(
    encoded: Encoded, offsets: np.ndarray, seq_lengths: pa.LargeListArray, size: int
) -> _Learnt:
    """Cut some examples to ``size`` tokens, and label what is to be learnt.

    Args:
        offsets: where each example begins, and the end. seq_lengths: of each.
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
    return _Learnt(
        tokens[keep],
        np.where(types > 0, tokens, IGNORED)[keep],
        np.bincount(owner[keep], minlength=count),
        labelled,
        np.bincount(owner[types == 2], minlength=count),
    )


def _parts(offsets: np.ndarray) -> Iterator[slice]:
    """Yield the examples in parts of about ``_PIECE`` tokens, or of one example."""
    marks = np.arange(0, offsets[-1] + 1, _PIECE)
    bounds = np.unique([*np.searchsorted(offsets[:-1], marks), len(offsets) - 1])
    yield from (slice(start, end) for start, end in pairwise(bounds.tolist()))


def _seq_lengths(lengths: np.ndarray, offsets: np.ndarray) -> pa.LargeListArray:
    """Return for each block the tokens that it holds of each of its documents.

    Args:
        lengths: tokens of each document. offsets: where each block begins, and the end.
    """
    ends = np.cumsum(lengths)
    bounds = np.union1d(offsets, ends[ends < offsets[-1]])
    return lists(np.diff(bounds).astype(np.int32), np.searchsorted(bounds, offsets))


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
    encoded = encode(
        data,
        tokenizer,
        split,
        workers=args.preprocessing_num_workers,
        overwrite=args.overwrite_cache,
    )
    made = fit(source, encoded, tokenizer, args, split)
    lengths = made.columns["input_ids"].value_lengths().to_numpy()
    columns: dict[str, Any] = {**made.columns, "length": lengths}
    if "label" in data.column_names:
        found = labels.targets(data["label"][:], split, source.place)[made.rows]
        columns["labels"] = pa.array(found if found.ndim == 1 else list(found))
    if args.long_text == "split":
        columns["row"] = made.rows
    lost = _lost(encoded, len(data), tokenizer, split)
    note = f"{lengths.sum():,} tokens; {described(encoded.lengths)}{made.note}"
    say(f"  {split:<10} {note}{lost}")
    batches = data.select_columns(["text"]).iter(BATCH)
    empty = sum(not text.strip() for batch in batches for text in batch["text"])
    if empty:
        used = "as a single padding token" if made.bare else "as they are"
        warn(f"{split}: {empty:,} texts are empty; they are used {used}")
    return _dataset(columns)
