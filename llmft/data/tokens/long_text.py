"""Texts of more tokens than an example may have: cut, split, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from llmft.config.fields import ClassificationDataArguments
from llmft.data.read.store import CONTENT, Source, batches
from llmft.data.tokens.encode import BATCH, Encoded
from llmft.errors import ConfigError, LengthError, counted

_SHARES = (0.5, 0.9, 0.99)
_CHARACTERS = 2**18  # at once: a tokenizer takes 40 times as much memory
# Examples that training is to learn from at the most where long texts are split by
# themselves: twice what an automatic length learns from anyway.
MOST = 20_000


def lists(tokens: np.ndarray, offsets: np.ndarray) -> pa.LargeListArray:
    """Return the lists that begin at ``offsets``, with 64 bits: 2**31 is not much."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), tokens)


def described(lengths: np.ndarray) -> str:
    """Return how long texts are: the lengths that 50, 90 and 99 % of them keep to."""
    found = np.quantile(lengths, _SHARES, method="inverted_cdf")
    pairs = zip(_SHARES, found, strict=True)
    shown = ", ".join(f"{100 * share:g} % up to {int(n):,}" for share, n in pairs)
    return f"lengths {shown}, longest {int(lengths.max()):,}"


def set_long_text(
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    args: ClassificationDataArguments,
    split: str,
) -> str:
    """Say what becomes of long texts where ``long_text`` is auto, and there are any.

    They are split where training then has no more than ``MOST`` examples, else cut, as
    what a model is given that was not trained here. The other parts follow train.

    Returns:
        what is to be told of it, or "".
    """
    lengths, size = encoded.lengths, args.max_seq_length
    if args.long_text != "auto" or not (lengths > size).any():
        return ""
    args.long_text, said = "truncate", ""
    if split == "train" and encoded.types is None and tokenizer.is_fast:
        room = max(size - tokenizer.num_special_tokens_to_add(), 1)
        made = int(np.maximum(-(-(lengths - size) // room) + 1, 1).sum())
        if made <= MOST:
            args.long_text = "split"
        else:
            said = f", as split would make {made:,} examples"
    return f" (long_text auto{said})"


def fit(
    source: Source,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    args: ClassificationDataArguments,
    split: str,
) -> tuple[dict[str, pa.LargeListArray], np.ndarray, str]:
    """Make examples of at most ``max_seq_length`` tokens, as ``long_text`` says.

    A text without a token becomes a single padding token.

    Returns:
        ``input_ids`` and, where asked for, ``token_type_ids``, in the order of the
        texts; the text that each example is of (int64); and what was done, to be told.

    Raises:
        LengthError: a text is longer, and ``long_text`` is error.
        ConfigError: windows of this ``stride`` or tokenizer cannot be.
    """
    size, lengths = args.max_seq_length, encoded.lengths
    long, bare = np.flatnonzero(lengths > size), np.flatnonzero(lengths == 0)
    if len(long) and args.long_text == "error":
        first = int(long[0])
        more = f"; {len(long) - 1:,} more texts of {split} are longer"
        raise LengthError(
            f"a text of {lengths[first]:,} tokens{more if len(long) > 1 else ''}",
            f"expected at most {size:,}",
            "raise --max_seq_length; or --long_text truncate cuts them, --long_text"
            " split makes several examples of each",
            path=source.place(first),
        )
    values = {"input_ids": encoded.tokens}
    if encoded.types is not None and "token_type_ids" in tokenizer.model_input_names:
        values["token_type_ids"] = encoded.types
    kinds = {n: pa.large_list(pa.from_numpy_dtype(v.dtype)) for n, v in values.items()}
    made: dict[str, list[pa.Array]] = {name: [] for name in values}
    owners, note = bare, ""
    if len(long):
        made, of_text = _again(source, long, tokenizer, args, kinds)
        owners, note = np.append(bare, long[of_text]), counted(len(long), "texts")
        left = f"{(lengths[long] - size).sum():,} tokens left out"
        done = f"cut to {size} tokens, {left}"
        if args.long_text == "split":
            done = f"split into {len(of_text):,} examples of up to {size} tokens"
        note = f"; {note} {done}"
    offsets = np.append(0, np.cumsum(lengths))
    whole = np.flatnonzero((lengths > 0) & (lengths <= size))
    rows = np.append(whole, owners)
    order = np.argsort(rows, kind="stable")
    places = np.append(whole, len(lengths) + np.arange(len(owners)))[order]
    columns = {}
    for name, ids in values.items():
        found = lists(ids, offsets)
        if len(owners):
            # A row without any token would have no place to classify.
            padding = [tokenizer.pad_token_id if name == "input_ids" else 0]
            new = [pa.array([padding] * len(bare), kinds[name]), *made[name]]
            found = pa.concat_arrays([found, *new]).take(pa.array(places))
        columns[name] = found
    return columns, rows[order], note


def _again(
    source: Source,
    long: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    args: ClassificationDataArguments,
    kinds: Mapping[str, pa.DataType],
) -> tuple[dict[str, list[pa.Array]], np.ndarray]:
    """Encode long texts once more, so that the tokenizer itself closes each example.

    Returns:
        the lists by name, of its kind, and for each the place in ``long`` of its text.
    """
    names = [n for n in CONTENT[:2] if n in source.dataset.column_names]
    texts = source.dataset.select_columns(names).select(long)
    options: dict[str, Any] = {"truncation": True, "max_length": args.max_seq_length}
    if args.long_text == "split":
        room = args.max_seq_length - tokenizer.num_special_tokens_to_add()
        if args.stride >= room:
            raise ConfigError(
                f"stride is {args.stride}, expected less than {room}: max_seq_length"
                " without the special tokens"
            )
        if not tokenizer.is_fast:
            raise ConfigError(
                "long_text split needs a fast tokenizer (tokenizer.json); use"
                " --long_text truncate"
            )
        options |= {"return_overflowing_tokens": True, "stride": args.stride}
    made: dict[str, list[pa.Array]] = {name: [] for name in kinds}
    of_text, start = [], 0
    for batch in batches(texts, BATCH, _CHARACTERS):
        some = tokenizer(
            batch["text"],
            batch.get("text_pair"),
            return_attention_mask=False,
            return_token_type_ids=True,
            **options,
        )
        for name, kind in kinds.items():
            made[name].append(pa.array(some[name], kind))
        count = len(batch["text"])
        found = some.get("overflow_to_sample_mapping", range(count))
        of_text.append(np.asarray(found, np.int64) + start)
        start += count
    return made, np.concatenate(of_text)
