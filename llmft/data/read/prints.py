"""Prints of rows: hashes of 8 bytes that tell which texts are equal, or nearly so.

Two texts are the same where they differ in nothing, or only in case and white space:
$1.50 is not $150, -5 not 5, and C# not C. Prints lie beside what was read, so that
they are made once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from hashlib import sha256
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from llmft.errors import EnvironmentFault

# Columns of what was read: int64 hashes of the text as it is (the first 8 bytes of its
# SHA-256) and of ``normalised`` (XXH3), and how many characters the latter has. Both
# texts of a pair count together.
PRINTS = ("exact", "normalised", "characters")
PAIR = "\x01"  # between the two texts of a row, where they are normalised

_FEW = 16  # batches that are not worth a process: it starts in 0.2 s
_AHEAD = 4  # batches that it gets before the prints of the first are waited for
# Of ASCII: its small letters, and what is no text; \xff is a byte of no text.
_SMALL, _NO_TEXT = bytes(range(256)).lower(), bytes([*range(2, 33), 127])
_END, _END_OF_TEXT = b"\xff", "\ud800"


def normalised(texts: Sequence[str]) -> list[str]:
    """Return texts without case and white space, NUL and \\x01 left as they are.

    NFKC and casefold; then no white space, control or format characters.
    """
    return [*map(bytes.decode, _normalised(texts))]


def _normalised(texts: Sequence[str]) -> list[bytes]:
    """Do ``normalised``, in UTF-8."""
    plain = [text.encode() for text in texts if text.isascii()]
    done = iter(_END.join(plain).translate(_SMALL, _NO_TEXT).split(_END))
    if len(plain) == len(texts):
        return [*done] if texts else []
    others = [unicodedata.normalize("NFKC", t) for t in texts if not t.isascii()]
    raw = _END_OF_TEXT.join(others).casefold().encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(raw, np.uint32)
    kept = codes[_kept()[codes]].tobytes().decode("utf-32-le", "surrogatepass")
    rest = iter(kept.split(_END_OF_TEXT))
    return [next(done) if text.isascii() else next(rest).encode() for text in texts]


@cache
def _kept() -> np.ndarray:
    """Return which code points are kept, bool; no other planes have such."""
    kept = np.ones(0x110000, bool)
    for code in (*range(2, 0x20000), *range(0xE0000, 0xE1000)):
        kind = unicodedata.category(chr(code))
        kept[code] = kind[0] != "Z" and kind not in ("Cc", "Cf")
    return kept


def row_prints(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, ...]:
    """Return the columns ``PRINTS`` of rows, from their columns of text."""
    rows = texts[0] if len(texts) == 1 else [*map(PAIR.join, zip(*texts, strict=True))]
    read = _normalised(rows)
    # The byte \xff stands in no UTF-8: no two pairs are joined to the same.
    raw = (map(str.encode, column) for column in texts)
    digests = b"".join([sha256(_END.join(t)).digest() for t in zip(*raw, strict=True)])
    exact = np.frombuffer(digests, "<i8")[::4].astype(np.int64)
    # Only looked for within the data: a sixth of the time of SHA-256, 1.5 s of a GB.
    like = np.fromiter(map(xxh3_64_intdigest, read), np.uint64).view(np.int64)
    bare = (text.strip(PAIR.encode()) for text in read)
    sizes = [len(t) if t.isascii() else len(t.decode()) for t in bare]
    return exact, like, np.array(sizes, np.int32)


def with_prints(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows with the columns ``PRINTS``.

    Those of many are made by another process while the caller reads on: they took 9 of
    the 28 s that went by before a GB was tokenized, now 25 (AMD EPYC, 2 cores, the
    latter on a slower day).

    Raises:
        EnvironmentFault: that process died.
    """
    for batch in islice(batches, _FEW):
        yield _joined(batch, _prints(batch))
    if (first := next(batches, None)) is None:
        return
    worker = subprocess.Popen(
        # -P: nothing is imported from where the user happens to be.
        [sys.executable, "-P", "-c", f"from {__name__} import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is for us
    )
    waiting, made = deque[pa.RecordBatch](), _received(worker)
    to = pa.ipc.new_stream(worker.stdin, first.schema)
    # In a thread, for a pipe holds less than a batch: each would wait for the other.
    pool = ThreadPoolExecutor(1)
    try:
        for batch in chain([first], batches):
            pool.submit(_send, batch, to, worker.stdin)
            waiting.append(batch)
            if len(waiting) > _AHEAD:
                yield _joined(waiting.popleft(), next(made))
        while waiting:
            yield _joined(waiting.popleft(), next(made))
    finally:
        worker.kill()
        pool.shutdown()
        worker.communicate()


def _send(batch: pa.RecordBatch, to: pa.RecordBatchStreamWriter, pipe: Any) -> None:
    to.write_batch(batch)
    pipe.flush()


def _received(worker: subprocess.Popen[bytes]) -> Iterator[pa.RecordBatch]:
    with suppress(pa.ArrowException, OSError):
        yield from pa.ipc.open_stream(worker.stdout)
    said = "the process that looks for texts that are there twice has ended"
    raise EnvironmentFault(f"{said} ({worker.wait()})", hint="is there memory left?")


def _serve() -> None:
    """Be the process that makes prints."""
    to = sys.stdout.buffer
    schema = pa.schema(
        [*zip(PRINTS, (pa.int64(), pa.int64(), pa.int32()), strict=True)]
    )
    with (
        pa.ipc.open_stream(sys.stdin.buffer) as given,
        pa.ipc.new_stream(to, schema) as made,
    ):
        for batch in given:
            _send(_prints(batch), made, to)


def _prints(batch: pa.RecordBatch) -> pa.RecordBatch:
    names = [name for name in ("text", "text_pair") if name in batch.schema.names]
    made = row_prints([batch.column(name).to_pylist() for name in names])
    return pa.record_batch([*map(pa.array, made)], [*PRINTS])


def _joined(batch: pa.RecordBatch, beside: pa.RecordBatch) -> pa.RecordBatch:
    columns, names = batch.columns + beside.columns, batch.schema.names
    return pa.record_batch(columns, [*names, *PRINTS])
