"""A hundred thousand hostile strings come through every format as they are."""

import csv
import json
import random
import unicodedata

import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmft.data.read.columns import Columns
from llmft.data.read.store import read_file
from llmft.data.tokens.encode import encode

COUNT = 100_000
LOOKALIKES = (
    "NA N/A null NULL None nan NaN inf -inf 1e5 1E400 007 -0 +1 0x1F 1_000 1,5 .5 5."
    " true True yes no on off 2020-01-01 01/02/03 12:30 10:00:00Z {} [] #REF! =1+1 @x"
    " <NA> #N/A undefined None. '' \"\" \\N \\n \\u0041 %41 &amp; --- ... ~ ` |"
).split(" ")
PIECES = [
    *LOOKALIKES,
    *('"', '""', "'", ",", ";", "\t", "|", "\\", '\\"', '","', '"\n"', "\n", "\r\n"),
    *("\r", "\n\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u2028"),
    *("\u2029", "\ufeff", "\u200b", "\u200d", "\u200e", "\u200f", "\u202e", "\u2066"),
    *("\u00a0", "\u3000", "\u2003", "\u00ad", "\ufffc", "\ufffd", "\ufffe", "\uffff"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "e\u0301"),
    *("שלום", "العربية", "漢字", "ไทย", "한국어", "\u1112\u1161\u11ab", "ﬁ"),
    *("Å", "İ", "ß", "\x01", "\x07", "\x08", "\x1b[31m", "\x7f", "\x80", "\x9f"),
    *("\U0010ffff", " ", "a"),
]  # fmt: skip


CODES = [*range(1, 0xD800), *range(0xE000, 0x20000)]


def strings(line=False):
    """Return strings, each character of Unicode among them; ``line``: of one line.

    A NUL is an error of its own, and halves of characters are no text.
    """
    draw = random.Random(5)
    found = [*LOOKALIKES, *map(chr, draw.sample(CODES, 40_000))]
    while len(found) < COUNT:
        parts = draw.choices(PIECES, k=draw.randrange(1, 6))
        if draw.random() < 0.5:
            parts.append(chr(draw.choice(CODES)))
        draw.shuffle(parts)
        found.append("".join(parts))
    if line:
        found = [text.replace("\n", " ") for text in found]
        # A line end of \r\n is taken off, a lone \r within is text.
        found = [text.rstrip("\r") or "x" for text in found]
    return [text if text.strip() else f"x{text}" for text in found]


def write_csv(path, texts, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["text", "n"])
        writer.writerows([text, i] for i, text in enumerate(texts))


def write_jsonl(path, texts):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        for i, text in enumerate(texts):
            row = json.dumps({"n": i, "text": text}, ensure_ascii=i % 2 == 0)
            stream.write(row + "\n")


WRITERS = {
    "a.csv": write_csv,
    "a.tsv": lambda path, texts: write_csv(path, texts, "\t"),
    "a.jsonl": write_jsonl,
    "a.json": lambda path, texts: path.write_text(
        json.dumps([{"text": text} for text in texts])
    ),
    "a.txt": lambda path, texts: path.write_bytes(
        b"".join(
            text.encode() + (b"\n", b"\r\n")[i % 2] for i, text in enumerate(texts)
        )
    ),
    "a.parquet": lambda path, texts: pa.parquet.write_table(
        pa.table({"text": texts}), path
    ),
}


@pytest.fixture(scope="module")
def by_bytes():
    """A tokenizer with a token for every byte, which gives any text back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_the_strings_are_what_they_should_be():
    found = strings()
    assert len(found) == COUNT
    kinds = {unicodedata.category(c) for text in found for c in text}
    every = {unicodedata.category(chr(c)) for c in range(0x20000)} - {"Cs"}
    assert kinds == every


@pytest.mark.parametrize("name", WRITERS)
def test_every_string_reaches_the_tokenizer(tmp_path, by_bytes, name):
    texts = strings(line=name == "a.txt")
    WRITERS[name](tmp_path / name, texts)
    source = read_file(tmp_path / name, Columns(text="text"))
    assert source.dataset["text"][:] == texts
    encoded = encode(source.dataset, by_bytes, "train")
    letters = {v: k for k, v in pre_tokenizers_bytes().items()}
    value_of = {i: letters[c] for c, i in by_bytes.get_vocab().items()}
    raw = bytes(value_of[int(i)] for i in encoded.tokens)
    assert raw == "".join(texts).encode()
    assert encoded.lengths.tolist() == [len(text.encode()) for text in texts]


def pre_tokenizers_bytes():
    """The character by which byte-level tokenizers write each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = (b for b in range(256) if b not in table)
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}
