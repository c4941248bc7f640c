"""From examples to batches, with randomness that belongs to the row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from llmft.config.fields import MaskedLMDataArguments
from llmft.data.tokens.masking import SpanLengths, choose, draws, word_edges
from llmft.errors import DataError

IGNORED = -100
FIXED_EPOCH = -1


@dataclass
class SeededDataCollatorForLanguageModeling(DataCollatorForLanguageModeling):
    """``DataCollatorForLanguageModeling`` whose masks depend on (seed, epoch, row).

    The one of transformers draws from a stream, so that a worker, a look-ahead or a
    resume changes every later mask. Here each row seeds its own draw, and has at least
    one masked token unless all are special. Examples need ``input_ids`` and ``row``;
    those with ``epoch`` have the masks of that one, and those with ``labels`` are taken
    as they are.

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
    of a stream also ``begins_epoch`` (bool, shape (batch,)).
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
        self._special = torch.tensor(self.tokenizer.all_special_ids)
        by_token, by_span = self.mlm_masking == "token", self.mlm_masking == "span"
        self._edges = None if by_token else word_edges(self.tokenizer)
        lengths = (self.geometric_p, self.max_span_length)
        self._spans = SpanLengths.geometric(*lengths) if by_span else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the masks of ``epoch`` from now on."""
        self._epoch.fill_(epoch)

    def torch_call(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Make a batch; see the class."""
        pairs = [self._example(example, int(self._epoch)) for example in examples]
        ids, labels = ([pair[i] for pair in pairs] for i in (0, 1))
        pad = self.tokenizer.pad_token_id
        batch = {
            "input_ids": pad_sequence(ids, True, 0 if pad is None else pad),
            "labels": pad_sequence(labels, True, IGNORED),
        }
        if "seq_lengths" in examples[0]:
            of_each = [
                torch.cat([torch.arange(n) for n in example["seq_lengths"]])
                for example in examples
            ]
            batch["position_ids"] = pad_sequence(of_each, batch_first=True)
            batch["labels"][batch["position_ids"] == 0] = IGNORED
        if len({*map(len, ids)}) > 1:
            batch["attention_mask"] = pad_sequence([*map(torch.ones_like, ids)], True)
        if "begins_epoch" in examples[0]:
            found = [example["begins_epoch"] for example in examples]
            batch["begins_epoch"] = torch.tensor(found)
        return shared(batch)

    def _example(
        self, example: dict[str, Any], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.as_tensor(example["input_ids"], dtype=torch.int64)
        if "labels" in example:
            return ids, torch.as_tensor(example["labels"], dtype=torch.int64)
        if not self.mlm:
            return ids, ids.clone()
        epoch = int(example.get("epoch", epoch))
        seed = row_seed(self.mask_seed, epoch, int(example["row"]))
        generator = torch.Generator().manual_seed(seed)
        special = torch.isin(ids, self._special)
        if self._edges is None:
            self.generator = generator
            inputs, labels = self.torch_mask_tokens(ids[None].clone(), special[None])
            self.generator = None  # it cannot be sent to a worker that is spawned
            if (labels != IGNORED).any():
                return inputs[0], labels[0]
        return self._mask_words(ids.numpy(), ~special.numpy(), generator)

    def _mask_words(
        self, ids: np.ndarray, maskable: np.ndarray, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose words or spans, and mask, replace or keep them.

        Each has one fate, as in SpanBERT; each token that is replaced gets a random one
        of its own. BERT's whole-word code decides for each token, which leaves parts of
        the word in sight that is to be guessed.
        """
        share, size = float(self.mlm_probability or 0), len(self.tokenizer)
        chosen, unit = choose(ids, maskable, share, generator, self._edges, self._spans)
        fate = np.where(chosen, draws(len(ids), generator)[unit], np.inf)
        random = torch.randint(size, (len(ids),), generator=generator).numpy()
        to_mask = self.mask_replace_prob
        inputs = np.where(fate < to_mask + self.random_replace_prob, random, ids)
        inputs = np.where(fate < to_mask, self.tokenizer.mask_token_id, inputs)
        labels = np.where(chosen, ids, IGNORED)
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def shared(batch: Any) -> Any:
    """Put a batch that a worker made to where the main process reads it.

    Too little room there is so an error like others: behind the collator, the worker
    would lose the batch, and the training wait for it without end.
    """
    if get_worker_info():
        for tensor in batch.values():
            tensor.share_memory_()
    return batch


def row_seed(seed: int, epoch: int, row: int) -> int:
    """Return a seed of 63 bits that depends on the three numbers alone."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


def fix_masks(
    dataset: Dataset,
    collator: SeededDataCollatorForLanguageModeling,
    split: str = "validation",
) -> Dataset:
    """Return ``dataset`` with column ``epoch``, so that its masks are always the same.

    They are those of (seed, epoch -1, row): evaluations can be compared. Raises
    DataError where all tokens are special, so that there is nothing to measure.
    """
    rows = (collator._example(example, FIXED_EPOCH) for example in dataset)
    if not any((labels != IGNORED).any() for _, labels in rows):
        tokens = sum(len(ids) for ids in dataset["input_ids"])
        raise DataError(
            f"all {tokens:,} {split} tokens are special ones, or unknown to the"
            " tokenizer",
            "expected at least one to mask, and to measure on",
            f"give more {split} text",
        )
    return dataset.add_column("epoch", np.full(len(dataset), FIXED_EPOCH))


def examples_of(batch: Mapping[str, Any], dataset: Any) -> list[int]:
    """Return the places in a data set of the examples that a batch was made of.

    They are found by their tokens; none of a stream, nor of features made before.
    """
    if "input_ids" not in batch or not isinstance(dataset, Dataset):
        return []
    ids, labels = batch["input_ids"], batch.get("labels")
    if labels is not None and (labels.shape, labels.dtype) == (ids.shape, ids.dtype):
        ids = torch.where(labels == IGNORED, ids, labels)  # as before masking
    keep = batch.get("attention_mask", torch.ones_like(ids)).bool()
    made_of = {tuple(row[kept].tolist()) for row, kept in zip(ids, keep, strict=True)}
    rows = (row for part in dataset.iter(1000) for row in part["input_ids"])
    return [i for i, row in enumerate(rows) if tuple(row) in made_of]


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
