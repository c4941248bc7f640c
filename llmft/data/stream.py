"""Blocks of token ids made on the way, from files of any size, in little memory.

The default way of reading tokenizes everything before training and keeps it in the
cache; ``--streaming`` begins at once and keeps nothing, but reads again every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from llmft.arguments import LanguageModelingDataArguments
from llmft.data.columns import Columns
from llmft.data.encode import encode_batch
from llmft.data.formats import Reading
from llmft.data.read import Source, Versions, file_versions, stream_rows
from llmft.errors import DataError

HELD_OUT = 1000  # rows for validation, unless max_eval_samples says how many
_BATCH = 1000  # texts that a tokenizer gets at once


@dataclass(frozen=True)
class Stream:
    """How to make the blocks of a training, over and over.

    Attributes:
        name, columns, reading: as for ``read_file``.
        skip: rows at the start, which are held out for validation.
        end_token: is added to each text that does not end with it; the blocks then
            tell the documents apart by ``position_ids``.
    """

    name: str
    columns: Columns
    reading: Reading
    tokenizer: PreTrainedTokenizerBase
    size: int
    policy: str
    skip: int = 0
    end_token: int | None = None
    versions: Versions = field(default_factory=list)

    def __post_init__(self) -> None:
        found = file_versions(self.name, self.reading)
        object.__setattr__(self, "versions", found)

    def texts(self) -> Iterator[str]:
        """Yield the texts after those that are held out.

        Raises:
            DataError: a bad row, when it is reached; or no row at all.
        """
        rows = stream_rows(self.name, self.columns, self.reading, self.versions)
        yield from (
            str(values["text"]) for _, _, values in islice(rows, self.skip, None)
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield blocks: ``input_ids`` (int32), ``row``, maybe ``position_ids``."""
        tokens, first = np.empty(0, np.int32), np.empty(0, bool)
        texts, row = self.texts(), 0
        while part := list(islice(texts, _BATCH)):
            ids, lengths, _ = encode_batch(
                {"text": part}, self.tokenizer, self.end_token
            )
            if self.policy == "row":
                for document in np.split(ids, np.cumsum(lengths)[:-1]):
                    for start in range(0, len(document), self.size):
                        yield {
                            "input_ids": document[start : start + self.size],
                            "row": row,
                        }
                        row += 1
                continue
            begins = np.zeros(len(ids), bool)
            begins[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
            tokens, first = np.append(tokens, ids), np.append(first, begins)
            whole = len(tokens) // self.size * self.size
            for start in range(0, whole, self.size):
                end = start + self.size
                yield self._block(tokens[start:end], first[start:end], row)
                row += 1
            tokens, first = tokens[whole:], first[whole:]
        if row == 0 and len(tokens) < 2:
            raise DataError("0 tokens to train on", "expected text", path=self.name)
        if row == 0:
            yield self._block(tokens, first, row)

    def _block(self, ids: np.ndarray, first: np.ndarray, row: int) -> dict[str, Any]:
        block: dict[str, Any] = {"input_ids": ids, "row": row}
        if self.end_token is not None:
            places = np.arange(len(ids))
            starts = np.maximum.accumulate(np.where(first, places, 0))
            block["position_ids"] = (places - starts).astype(np.int32)
        return block


def stream_blocks(
    args: LanguageModelingDataArguments,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    skip: int,
    *,
    end_documents: bool = False,
) -> IterableDataset:
    """Return the blocks of ``train_file`` as ``lm_blocks`` would make them, on the way.

    Args:
        seed: shuffles, among ``buffer_size`` blocks.
        skip: rows at the start, which are held out for validation.
        end_documents: as for ``lm_blocks``.

    Raises:
        DataError: while training: a bad row, a file that changed, or no row at all.
    """
    stream = Stream(
        str(args.train_file),
        Columns(args.text_column_name),
        Reading.of(args),
        tokenizer,
        args.max_seq_length,
        args.block_policy,
        skip,
        tokenizer.eos_token_id if end_documents else None,
    )
    names = {"input_ids": List(Value("int32")), "row": Value("int64")}
    if stream.end_token is not None and stream.policy == "pack":
        names["position_ids"] = List(Value("int32"))
    blocks = IterableDataset.from_generator(
        _blocks_of, Features(names), {"stream": stream}
    )
    if not args.buffer_size:
        return blocks
    return blocks.shuffle(seed, buffer_size=args.buffer_size)


def _blocks_of(stream: Stream) -> Iterator[dict[str, Any]]:
    yield from stream


def held_out(name: str, columns: Columns, reading: Reading, rows: int) -> Source:
    """Return the first ``rows`` rows of a stream's files, for validation."""
    found = list(islice(stream_rows(name, columns, reading), rows))
    data = {
        "text": [values["text"] for _, _, values in found],
        "file": [file for file, _, _ in found],
        "line": [line for _, line, _ in found],
    }
    files = tuple(path for path, _, _ in file_versions(name, reading))
    note = f"the first {len(found):,} rows, which training leaves out"
    return Source(Dataset.from_dict(data), name, [note], files)
