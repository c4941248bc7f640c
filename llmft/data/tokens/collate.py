"""From examples to batches, with randomness that belongs to the row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import get_worker_info
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from llmft.config.fields import MaskedLMDataArguments
from llmft.data.tokens.masking import (
    FATE,
    TOKEN,
    Draws,
    SpanLengths,
    choose,
    word_edges,
)
from llmft.errors import DataError

IGNORED = -100
FIXED_EPOCH = -1


@dataclass
class SeededDataCollatorForLanguageModeling(DataCollatorForLanguageModeling):
    """``DataCollatorForLanguageModeling`` whose masks depend on (seed, epoch, row).

    The one of transformers draws from a stream, so that a worker, a look-ahead or a
    resume changes every later mask. Here each is a hash of what it belongs to, made for
    a whole batch at once, and a row has at least one unless all its tokens are special.
    Examples need ``input_ids`` and ``row``; those with ``epoch`` have the masks of that
    one, and those with ``labels`` are taken as they are.

    ``mlm_masking`` is token, whole_word or span: ``word_edges`` says what a word is,
    ``SpanLengths`` what ``geometric_p`` and ``max_span_length`` mean.

    For causal models (``mlm=False``) labels are the inputs, -100 where padded. The
    parent would also ignore every eos token of a model that pads with eos, such as
    GPT-2, which then never learns to stop.

    Examples with ``seq_lengths`` hold several documents of so many tokens, whose
    positions each count from 0. The first token of a document is no label, since what
    stands before it belongs to another one.

    Returns batches of ``input_ids``, ``labels`` (int64, shape (batch, length)),
    ``position_ids`` of several documents and, only with padding, ``attention_mask``;
    of a stream also ``begins_epoch`` (bool, shape (batch,)) and ``position`` (int64,
    shape (batch, 7)).
    """

    mask_seed: int = 42
    mlm_masking: Literal["token", "whole_word", "span"] = "token"
    geometric_p: float = MaskedLMDataArguments.geometric_p
    max_span_length: int = MaskedLMDataArguments.max_span_length
    # Shared memory: worker processes see the epoch that the trainer sets.
    _epoch: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        special = self.tokenizer.all_special_ids
        self._special = np.zeros(max(special, default=-1) + 2, bool)  # and one behind
        self._special[special] = True
        self._size = len(self.tokenizer)
        # Once: reading one of the tokenizer takes 5 us (Intel Xeon).
        self._mask, pad = self.tokenizer.mask_token_id, self.tokenizer.pad_token_id
        self._pad = 0 if pad is None else pad
        by_token, by_span = self.mlm_masking == "token", self.mlm_masking == "span"
        self._edges = None if by_token else word_edges(self.tokenizer)
        lengths = (self.geometric_p, self.max_span_length)
        self._spans = SpanLengths.geometric(*lengths) if by_span else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the masks of ``epoch`` from now on."""
        self._epoch.fill_(epoch)

    def torch_call(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Make a batch; see the class."""
        lengths = np.array([len(example["input_ids"]) for example in examples])
        ids = _joined(examples, "input_ids")
        if "labels" in examples[0]:
            labels = _joined(examples, "labels")
        elif self.mlm:
            ids, labels = self._masked(ids, lengths, examples)
        else:
            labels = ids.copy()
        longest = lengths.max()
        full = longest == lengths.min()
        inside = None if full else np.arange(longest) < lengths[:, None]

        def padded(values: np.ndarray, fill: int) -> torch.Tensor:
            if inside is None:
                return torch.from_numpy(values.reshape(len(lengths), longest))
            batch = np.full(inside.shape, fill, np.int64)
            batch[inside] = values
            return torch.from_numpy(batch)

        batch = {
            "input_ids": padded(ids, self._pad),
            "labels": padded(labels, IGNORED),
        }
        if "seq_lengths" in examples[0]:
            documents = np.concatenate([example["seq_lengths"] for example in examples])
            places = np.arange(len(ids))
            places -= np.repeat(np.cumsum(documents) - documents, documents)
            batch["position_ids"] = padded(places, 0)
            batch["labels"][batch["position_ids"] == 0] = IGNORED
        if inside is not None:
            batch["attention_mask"] = torch.from_numpy(inside.astype(np.int64))
        for name in ("begins_epoch", "position"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return shared(batch)

    def are_special(self, ids: np.ndarray) -> np.ndarray:
        """Return which ids are of special tokens (bool): they are never masked."""
        return self._special[np.minimum(ids, len(self._special) - 1)]

    def _masked(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        examples: Sequence[Mapping[str, Any]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose tokens, words or spans of all rows; mask, replace or keep them.

        Each has one fate, as in SpanBERT; each token that is replaced gets a random one
        of its own. BERT's whole-word code decides for each token, which leaves parts of
        the word in sight that is to be guessed.
        """
        epoch = int(self._epoch)
        epochs = np.array([example.get("epoch", epoch) for example in examples])
        rows = np.array([example["row"] for example in examples], np.int64)
        draws = Draws(self.mask_seed, epochs, rows, lengths)
        share, maskable = float(self.mlm_probability or 0), ~self.are_special(ids)
        chosen, unit = choose(ids, maskable, share, draws, self._edges, self._spans)
        at = np.flatnonzero(chosen)
        fate = draws.of_tokens(FATE, unit[at])
        random = (draws.of_tokens(TOKEN, at) * self._size).astype(np.int64)
        to_mask = self.mask_replace_prob
        before, inputs, labels = ids[at], ids.copy(), np.full(len(ids), IGNORED)
        new = np.where(fate < to_mask + self.random_replace_prob, random, before)
        inputs[at] = np.where(fate < to_mask, self._mask, new)
        labels[at] = before
        return inputs, labels


def _joined(examples: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Return the ids of all examples, one behind the other (int64)."""
    parts = [example[name] for example in examples]
    return np.concatenate(parts, dtype=np.int64, casting="unsafe")


def shared(batch: Any) -> Any:
    """Put a batch that a worker made to where the main process reads it.

    Too little room there is so an error like others: behind the collator, the worker
    would lose the batch, and the training wait for it without end.
    """
    if get_worker_info():
        for tensor in batch.values():
            tensor.share_memory_()
    return batch


def fix_masks(
    dataset: Dataset,
    collator: SeededDataCollatorForLanguageModeling,
    split: str = "validation",
) -> Dataset:
    """Return ``dataset`` with column ``epoch``, so that its masks are always the same.

    They are those of (seed, epoch -1, row): evaluations can be compared. Raises
    DataError where all tokens are special, so that there is nothing to measure.
    """
    if all(collator.are_special(ids).all() for ids in dataset["input_ids"]):
        tokens = sum(len(ids) for ids in dataset["input_ids"])
        raise DataError(
            f"all {tokens:,} {split} tokens are special ones, or unknown to the"
            " tokenizer",
            "expected at least one to mask, and to measure on",
            f"give more {split} text",
        )
    return dataset.add_column("epoch", np.full(len(dataset), FIXED_EPOCH))


def unmasked(batch: Mapping[str, Any]) -> list[list[int]]:
    """Return the ids of each row as they were before masking, without padding."""
    ids, labels = batch["input_ids"], batch.get("labels")
    # Of classes there may be as many as tokens.
    if labels is not None and (labels.shape, labels.dtype) == (ids.shape, ids.dtype):
        ids = torch.where(labels == IGNORED, ids, labels)
    keep = batch.get("attention_mask", torch.ones_like(ids)).bool()
    return [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]


def examples_by_row(batch: Mapping[str, Any], dataset: Any) -> list[list[int]]:
    """Return for each row of a batch the places in a data set that have its tokens.

    They are none of a stream, nor where the batch has no tokens.
    """
    if "input_ids" not in batch or not isinstance(dataset, Dataset):
        return [[] for _ in next(iter(batch.values()))]
    rows = [np.array(row, np.int64).tobytes() for row in unmasked(batch)]
    found: dict[bytes, list[int]] = {row: [] for row in rows}
    place = 0
    for part in dataset.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
        column = part["input_ids"].combine_chunks()
        tokens = np.asarray(column.values, np.int64)
        for start, end in pairwise(column.offsets.tolist()):
            if (row := tokens[start:end].tobytes()) in found:
                found[row].append(place)
            place += 1
    return [found[row] for row in rows]


BATCH_TOKENS = 4096  # of a batch that a model reads only, on a CPU


def by_length(
    lengths: Sequence[int] | np.ndarray, tokens: int = BATCH_TOKENS
) -> Iterator[list[int]]:
    """Yield the places of texts, longest first, so many as a batch of ``tokens`` has.

    Padding to a multiple of 8 counts, a text that is longer comes alone, and what is
    left at the end comes in powers of two: torch keeps kernels for each number of
    tokens that a batch had, of MiniLM in bf16 3 MB for each (AMD EPYC).
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    start = 0
    while start < len(order):
        size = max(1, tokens // max(8, -(-int(lengths[order[start]]) // 8) * 8))
        left = len(order) - start
        size = size if size <= left else 1 << (left.bit_length() - 1)
        yield order[start : start + size]
        start += size


_NO_INPUT = ("length", "row")


@dataclass
class DataCollatorForClassification(DataCollatorWithPadding):
    """``DataCollatorWithPadding`` that drops what is no input: ``length``, ``row``.

    Labels are int64 of shape (batch,), float32 of shape (batch, classes) where a text
    has several, or float32 of shape (batch,) for a regression.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch to its longest text."""
        kept = [{k: v for k, v in f.items() if k not in _NO_INPUT} for f in features]
        return shared(super().__call__(kept))
