"""Blocks of token ids made on the way, from files of any size, in little memory.

The default way of reading tokenizes everything before training and keeps it in the
cache; ``--streaming`` begins at once and keeps nothing, but reads again every epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, dropwhile, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from llmft.config.fields import LanguageModelingDataArguments
from llmft.console import warn
from llmft.data.read.check import Rows
from llmft.data.read.store import Source, in_memory, in_parts
from llmft.data.tokens.encode import BATCH, CHARACTERS, encode_ahead
from llmft.errors import DataError

_Row = tuple[int, int, int]  # its file and line, and which of that line's it is
_START: _Row = (0, 0, 0)
# A block, and its first token's file, line and place there; with its number before.
_Block = tuple[dict[str, Any], tuple[int, ...]]

HELD_OUT = 1000  # rows for validation, unless max_eval_samples says how many


class Stream(IterableDataset):
    """The blocks of a training, made anew in every epoch, in a shuffled order.

    Without the shuffling they are those of ``lm_blocks``. Not one of ``datasets``: its
    checks of each example cost more than the tokenizer.

    Args:
        rows: what is read, from the start in each epoch.
        args: how to cut them, and the size of the windows in which blocks are
            shuffled.
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
        return (block for block, _ in self.going_on())

    def going_on(
        self, window: Sequence[int] = (0, 0, 0, 0, 0), done: int = 0
    ) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Yield blocks, each with the window that it is from and its place there.

        Blocks are shuffled in windows of ``buffer_size``, so that it needs one window
        alone to go on from any of them. A window is told by the place of its first
        block: its number, its row as ``_numbered`` has it, and its first token there.
        While one is handed on, the next is read.

        Args:
            window: to begin with. done: blocks of it that are left out.
        """
        size = max(self.buffer_size, 1)
        blocks = self._placed(*window)
        held = list(islice(blocks, size))
        while held:
            after: list[_Block] = []
            first = held[0][1]
            if self.buffer_size:
                random.Random(f"{self.seed}/{self.epoch}/{first[0]}").shuffle(held)
            for place, (block, _) in enumerate(held):
                after.extend(islice(blocks, 1))
                if place >= done:
                    yield block, [*first, place]
            held, done = after, 0

    def in_order(self) -> Iterator[dict[str, Any]]:
        """Yield the blocks in the order of the file, as ``lm_blocks`` has them."""
        return (block for block, _ in self._placed())

    def _placed(self, number: int = 0, *at: int) -> Iterator[_Block]:
        """Yield the blocks in that order, each with its place.

        Args: the place of the first of them.
        """
        cut = self._rows if self.policy == "row" else self._packed
        file, line, nth, token = at or (0, 0, 0, 0)
        first = number
        for block, place in cut((file, line, nth), token, number > 0):
            block["row"] = number
            yield block, (number, *place)
            number += 1
        if first == number == 0:
            said = "0 tokens to train on"
            raise DataError(said, "expected text", path=self.rows.name)

    def _encoded(self, start: _Row) -> Iterator[tuple[np.ndarray, np.ndarray, list]]:
        """Yield ids and lengths of some texts at a time, and the rows of these.

        Those before the row ``start`` are not tokenized, nor read where lines are rows.
        """
        rows = _numbered(replace(self.rows, start=start[:2]))
        if start > _START:
            rows = dropwhile(lambda row: row[0] < start, rows)
        else:
            rows = islice(rows, self.skip, None)
        found = in_parts(rows, lambda row: len(row[1]), BATCH, CHARACTERS)
        parts: Iterator[dict[str, list[Any]]] = (
            {"text": [text for _, text in part], "rows": [row for row, _ in part]}
            for part in found
        )
        how = (self.tokenizer, self.end_token, None)
        for part, (ids, lengths, _) in encode_ahead(parts, how):
            yield ids, lengths, part["rows"]

    def _rows(self, start: _Row, token: int, later: bool) -> Iterator[_Block]:
        for ids, lengths, rows in self._encoded(start):
            documents = np.split(ids, np.cumsum(lengths)[:-1])
            for row, document in zip(rows, documents, strict=True):
                for place in range(token, len(document), self.size):
                    # A copy: a view would keep all ids of its batch in the buffer.
                    part = document[place : place + self.size].copy()
                    yield {"input_ids": part}, (*row, place)
                token = 0

    def _packed(self, start: _Row, token: int, later: bool) -> Iterator[_Block]:
        """Yield full blocks; what is left in the end is one only if it is all.

        Args:
            start, token: where to begin. later: whether blocks come before that.
        """
        ids, rows, any_block = np.empty(0, np.int32), list[_Row](), later
        begins = np.empty(0, np.int64)  # where those rows begin in the ids
        for new, lengths, new_rows in self._encoded(start):
            starts = len(ids) + np.cumsum(lengths) - lengths
            begins, rows = np.append(begins, starts) - token, rows + new_rows
            ids, token = np.append(ids, new)[token:], 0
            whole = len(ids) // self.size * self.size
            any_block = any_block or whole > 0
            yield from self._blocks(ids[:whole], self.size, begins, rows)
            ids, begins = ids[whole:], begins - whole
            first = int(_rows_of(0, begins))
            begins, rows = begins[first:], rows[first:]
        if not any_block and len(ids) > 1:
            yield from self._blocks(ids, len(ids), begins, rows)
        elif len(ids) and self.epoch == 0:
            said = f"{len(ids):,} tokens of the last partial block left out"
            warn(f"{self.rows.name}: {said}, in every epoch")

    def _blocks(
        self, ids: np.ndarray, size: int, begins: np.ndarray, rows: list[_Row]
    ) -> Iterator[_Block]:
        """Yield blocks of ``size`` tokens, each with the place of its first one.

        Args:
            begins: where the rows begin in the ids, the first of them at or before 0.
        """
        starts = np.arange(0, len(ids), size)
        firsts = _rows_of(starts, begins)
        tokens = (starts - begins[firsts]).tolist()
        for at, first, token in zip(
            starts.tolist(), firsts.tolist(), tokens, strict=True
        ):
            # A copy: a view would keep all ids of its batch in the buffer.
            block: dict[str, Any] = {"input_ids": ids[at : at + size].copy()}
            if "seq_lengths" in self.column_names:
                last = int(_rows_of(at + size - 1, begins))
                inside = begins[first + 1 : last + 1] - at
                block["seq_lengths"] = np.diff(np.unique([0, *inside, size]))
            yield block, (*rows[first], token)


def _rows_of(tokens: Any, begins: np.ndarray) -> np.ndarray:
    """Return which rows tokens are of; of some without tokens, it is none."""
    return np.maximum(begins.searchsorted(tokens, "right") - 1, 0)


class Passes(IterableDataset):
    """The passes over a stream, one after another without an end.

    Trainer does not know how long a pass is and takes all steps for one: a resume goes
    on behind so many batches of the data, and state.epoch says how much is done. With
    passes of its own it would begin the first one again. Blocks have the pass they are
    from as ``epoch``, which their masks depend on, and the first one of a later pass
    has ``begins_epoch``; a batch may be of two.

    Attributes:
        position: of the last block that was trained on, to go on behind; None: from
            the start. Each block has its own: the pass, the window with its first row
            and token, and the place in the window, see ``Stream.going_on``.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.position: list[int] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield blocks: those of ``Stream``, and what the class says."""
        start, *window, place = self.position or [0, 0, 0, 0, 0, 0, -1]
        for epoch in count(start):
            self.stream.set_epoch(epoch)
            for block, where in self.stream.going_on(window, place + 1):
                begins = epoch > 0 and where[0] == where[-1] == 0
                found = {"epoch": epoch, "begins_epoch": begins}
                yield {**block, **found, "position": [epoch, *where]}
            window, place = [0, 0, 0, 0, 0], -1


def _numbered(rows: Rows) -> Iterator[tuple[_Row, str]]:
    """Yield texts with file, line, and their number in that line, from 0.

    A line of a JSON list may hold all of its rows.
    """
    before, nth = (-1, -1), 0
    for row in rows:
        at = row["file"], row["line"]
        before, nth = at, nth + 1 if at == before else 0
        yield (*at, nth), str(row["text"])


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
