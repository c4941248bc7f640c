"""Blocks of token ids made on the way, from files of any size, in little memory.

The default way of reading tokenizes everything before training and keeps it in the
cache; ``--streaming`` begins at once and keeps nothing, but reads again every epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from llmft.config.fields import LanguageModelingDataArguments
from llmft.console import warn
from llmft.data.read.check import Rows, in_parts
from llmft.data.read.store import Source, in_memory
from llmft.data.tokens.encode import BATCH, CHARACTERS, encode_ahead
from llmft.errors import DataError

HELD_OUT = 1000  # rows for validation, unless max_eval_samples says how many


class Stream(IterableDataset):
    """The blocks of a training, made anew in every epoch, in a shuffled order.

    Without the shuffling they are those of ``lm_blocks``. Not one of ``datasets``: its
    checks of each example cost more than the tokenizer.

    Args:
        rows: what is read, from the start in each epoch.
        args: how to cut them, and the size of the buffer in which a block changes
            places with one of as many others.
        seed: of the shuffling. skip: rows at the start, held out for validation.
        end_documents: as for ``lm_blocks``.

    Raises:
        DataError: on the way: a bad row, a file that changed, or no row at all.
    """

    def __init__(
        self,
        rows: Rows,
        args: LanguageModelingDataArguments,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        skip: int,
        *,
        end_documents: bool = False,
    ) -> None:
        self.rows, self.tokenizer = rows, tokenizer
        self.size, self.policy = args.max_seq_length, args.block_policy
        self.buffer_size, self.seed, self.epoch = args.buffer_size, seed, 0
        self.skip = skip
        self.end_token = tokenizer.eos_token_id if end_documents else None
        self.column_names = ["input_ids", "row"]
        if self.end_token is not None and self.policy == "pack":
            self.column_names.append("seq_lengths")

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch`` from now on."""
        self.epoch = epoch

    def remove_columns(self, name: str) -> Stream:
        """Leave a column out from now on, as the method of ``datasets`` would."""
        self.column_names.remove(name)
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield blocks: ``input_ids`` (int32), ``row``, maybe ``seq_lengths``."""
        draw = random.Random(f"{self.seed}/{self.epoch}")
        held: list[dict[str, Any]] = []
        for block in self.in_order():
            if len(held) < self.buffer_size:
                held.append(block)
                continue
            if held:
                place = draw.randrange(len(held))
                block, held[place] = held[place], block
            yield block
        draw.shuffle(held)
        yield from held

    def in_order(self) -> Iterator[dict[str, Any]]:
        """Yield the blocks in the order of the file, as ``lm_blocks`` has them."""
        cut = self._rows if self.policy == "row" else self._packed
        row = -1
        for row, block in enumerate(cut()):
            block["row"] = row
            yield block
        if row < 0:
            said = "0 tokens to train on"
            raise DataError(said, "expected text", path=self.rows.name)

    def _encoded(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and lengths of some texts at a time."""
        rows = islice(self.rows, self.skip, None)
        texts = (str(values["text"]) for values in rows)
        parts = ({"text": part} for part in in_parts(texts, len, BATCH, CHARACTERS))
        how = (self.tokenizer, self.end_token, None)
        for _, (ids, lengths, _) in encode_ahead(parts, how):
            yield ids, lengths

    def _rows(self) -> Iterator[dict[str, Any]]:
        for ids, lengths in self._encoded():
            for document in np.split(ids, np.cumsum(lengths)[:-1]):
                for start in range(0, len(document), self.size):
                    # A copy: a view would keep all ids of its batch in the buffer.
                    yield {"input_ids": document[start : start + self.size].copy()}

    def _packed(self) -> Iterator[dict[str, Any]]:
        """Yield full blocks; what is left in the end is one only if it is all."""
        tokens, first, any_block = np.empty(0, np.int32), np.empty(0, bool), False
        for ids, lengths in self._encoded():
            begins = np.zeros(len(ids), bool)
            begins[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
            tokens, first = np.append(tokens, ids), np.append(first, begins)
            whole = len(tokens) // self.size * self.size
            for start in range(0, whole, self.size):
                any_block, part = True, slice(start, start + self.size)
                yield self._block(tokens[part].copy(), first[part])
            tokens, first = tokens[whole:], first[whole:]
        if not any_block and len(tokens) > 1:
            yield self._block(tokens, first)
        elif len(tokens) and self.epoch == 0:
            left = f"{len(tokens):,} tokens of the last partial block left out"
            warn(f"{self.rows.name}: {left}, in every epoch")

    def _block(self, ids: np.ndarray, first: np.ndarray) -> dict[str, Any]:
        if "seq_lengths" not in self.column_names:
            return {"input_ids": ids}
        bounds = np.union1d(np.flatnonzero(first), [0, len(ids)])
        return {"input_ids": ids, "seq_lengths": np.diff(bounds)}


class Passes(IterableDataset):
    """The passes over a stream, one after another without an end.

    Trainer does not know how long a pass is and takes all steps for one: a resume goes
    on behind so many batches of the data, and state.epoch says how much is done. With
    passes of its own it would begin the first one again. Blocks have the pass they are
    from as ``epoch``, which their masks depend on, and the first one of a later pass
    has ``begins_epoch``; a batch may be of two.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield blocks: those of ``Stream``, and what the class says."""
        for epoch in count():
            self.stream.set_epoch(epoch)
            for place, block in enumerate(self.stream):
                begins = epoch > 0 and place == 0
                yield {**block, "epoch": epoch, "begins_epoch": begins}


def held_out(rows: Rows, count: int) -> Source:
    """Return the first ``count`` rows of those to train on, for validation."""
    source = head(rows, count + 1)
    if len(source.dataset) <= count:
        raise DataError(
            f"all of its {len(source.dataset):,} rows are held out for validation",
            "expected more, to train on",
            "lower --max_eval_samples, or give --validation_file",
            path=rows.name,
        )
    note = f"the first {count:,} rows, which training leaves out"
    return replace(source.select(range(count)), notes=[note])


def head(rows: Rows, count: int) -> Source:
    """Return the first ``count`` rows, or as many as there are."""
    source = in_memory(rows, count + 1)
    found = min(count, len(source.dataset))
    more = " of more; --max_eval_samples N takes N" * (len(source.dataset) > count)
    note = f"the first {found:,} rows{more}"
    return replace(source.select(range(found)), notes=[note])
