"""Packed files, encodings, and files made to do harm."""

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pytest

from llmft.data.read import packed
from llmft.data.read import text as decode
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.notes import Notes
from llmft.data.read.store import read_file
from llmft.errors import DataError, DataFormatError, EncodingError

GERMAN = "text\nDas Hotel war schön, das Frühstück übersüß.\nGrüße aus Köln\n"
CHINESE = "text\n这家酒店很好,早餐也不错。\n服务员的态度非常热情。\n"
JAPANESE = "text\nこのホテルはとても良かったです。\n朝食が美味しかった。\n"
RUSSIAN = "text\nГостиница была очень хорошая, завтрак вкусный.\nСпасибо за всё!\n"


def zstd(raw):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def texts(path, **reading):
    return read_file(path, Columns(), Reading(**reading)).dataset["text"][:]


def said(path, kind=DataError, **reading):
    with pytest.raises(kind) as caught:
        read_file(path, Columns(), Reading(**reading))
    assert caught.value.exit_code == 3
    return str(caught.value).removeprefix(f"{caught.value.kind} ")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", ["a.csv", "a.JSONL", "a.txt", "a.json"])
def test_packed_files(name, ending):
    content = {
        "a.csv": "text\none\n",
        "a.JSONL": '{"text": "one"}\n',
        "a.txt": "one\n",
        "a.json": '[{"text": "one"}]',
    }
    path = Path(f"{name}.{ending}")
    path.write_bytes(PACK[ending](content[name].encode()))
    assert texts(path) == ["one"]


@pytest.mark.parametrize("ending", PACK)
def test_members_are_read_as_one(ending):
    Path(f"a.txt.{ending}").write_bytes(PACK[ending](b"one\ntw") + PACK[ending](b"o\n"))
    assert texts(f"a.txt.{ending}") == ["one", "two"]


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-3],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw + b"junk behind it",
    ],
)
def test_damaged_packed_files(ending, damage):
    lines = "".join(f"line {i * 7919 % 10007}\n" for i in range(20_000))
    path = Path(f"a.txt.{ending}")
    path.write_bytes(damage(PACK[ending](lines.encode())))
    assert said(path, DataFormatError).startswith(f"{path}: damaged ")


@pytest.mark.parametrize("ending", PACK)
def test_a_text_that_was_never_packed(ending):
    Path(f"a.txt.{ending}").write_text("one\n")
    found = said(f"a.txt.{ending}", DataFormatError)
    assert "as its name says; take" in found
    assert f"take .{ending} off its name" in found


def test_zstd_that_begins_with_a_frame_to_skip():
    frame = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    Path("a.txt.zst").write_bytes(frame + PACK["zst"](b"one\n"))
    assert texts("a.txt.zst") == ["one"]


def test_a_changed_byte_in_a_gz():
    raw = bytearray(gzip.compress(b"one\ntwo\n"))
    raw[-6] ^= 1  # of the checksum
    Path("a.txt.gz").write_bytes(raw)
    assert "incorrect data check" in said("a.txt.gz", DataFormatError)


@pytest.mark.parametrize("ending", PACK)
def test_what_unpacks_to_far_too_much(monkeypatch, ending):
    monkeypatch.setattr(packed, "_RATIO_FROM", 2**20)
    Path(f"a.txt.{ending}").write_bytes(PACK[ending]((b"0" * 999 + b"\n") * 2**13))
    assert said(f"a.txt.{ending}", DataFormatError).startswith(
        f"a.txt.{ending}: unpacks to more than 200 times its "
    )
    Path("b.txt").write_bytes(b"0\n" * 10)
    assert len(texts("b.txt")) == 10


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_line_without_end_is_not_read_whole(monkeypatch, name):
    monkeypatch.setattr(decode, "MAX_LINE", 1000)
    with open(name, "wb") as stream:
        stream.write(b"text\nfine\n" if name == "a.csv" else b"")
        stream.write(b"x" * 10**6)
    found = said(name, DataFormatError)
    line = 3 if name == "a.csv" else 1
    assert found.startswith(f"{name}:{line}: a line of more than 1,000 characters")
    os.truncate(name, 500)
    if name == "a.txt":
        assert texts(name) == ["x" * 500]


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (GERMAN, "cp1252"),
        (CHINESE, "gb18030"),
        (JAPANESE, "cp932"),
        (RUSSIAN, "cp1251"),
    ],
)
def test_another_encoding_is_named_and_read_where_asked(content, encoding):
    expected = content.splitlines()[1:]
    Path("a.csv").write_bytes(content.replace(",", ";").encode(encoding))
    found = said("a.csv", EncodingError)
    offset = content.replace(",", ";").encode(encoding)
    first = next(i for i, byte in enumerate(offset) if byte > 127)
    assert found.startswith(
        f"a.csv:2: byte 0x{offset[first]:02x} at offset {first} is not UTF-8;"
    )
    assert f"add --encoding {encoding}, if this is right: " in found
    assert "it also" not in found
    expected = [line.replace(",", ";") for line in expected]
    assert texts("a.csv", encoding=encoding) == expected
    assert texts("a.csv", encoding="auto") == expected
    source = read_file("a.csv", Columns(), Reading(encoding="auto"))
    assert source.notes[0] == f"looks like {encoding}, read so"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be", "utf-16"])
def test_a_mark_at_the_start_is_no_text(encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"  # this codec writes it itself
    given = Reading(encoding=encoding, sample_by="document")
    for name, content in (("a.json", '[{"text": "a"}]'), ("a.txt", "a")):
        Path(name).write_bytes((mark + content).encode(encoding))
        assert read_file(name, Columns(), given).dataset["text"][:] == ["a"]


@pytest.mark.parametrize("far", [0, 10_000])  # beyond what is decoded at once
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_another_encoding_and_separator_are_told_together(encoding, far):
    content = "text;label\nplain\n" + "plain;a\n" * far + GERMAN
    Path("a.csv").write_bytes(content.encode(encoding))
    found = said("a.csv", EncodingError)
    assert f"add --encoding {encoding}" in found
    assert found.endswith(
        "; then: looks separated by ';'; expected ',' between the column names; add"
        " --delimiter ';'; or rename the column if it is one"
    )


def test_big5_is_read_where_named():
    Path("a.txt").write_bytes("這家飯店很好".encode("big5"))
    assert texts("a.txt", encoding="big5") == ["這家飯店很好"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_named_and_never_read_as_text_full_of_nul(encoding):
    Path("a.csv").write_bytes("text\none\ntwo\n".encode(encoding))
    found = said("a.csv", DataError)
    assert found.startswith(f"a.csv: looks like {encoding}: ")
    assert f"--encoding {encoding}" in found
    assert texts("a.csv", encoding=encoding) == ["one", "two"]
    assert texts("a.csv", encoding="auto") == ["one", "two"]


def test_an_encoding_that_was_named_is_not_bent():
    Path("a.txt").write_bytes(b"fine\n\x81\x00\n")
    assert said("a.txt", EncodingError, encoding="utf-8").startswith(
        "a.txt:2: byte 0x81 at offset 5 is not UTF-8"
    )
    with pytest.raises(
        DataError, match=r"a\.txt:2: byte 0x81 at offset 5 is not CP125"
    ):
        texts("a.txt", encoding="cp1252")


def test_a_byte_order_mark_is_left_out_of_every_file():
    Path("in").mkdir()
    for name in "ab":
        Path("in", f"{name}.csv").write_text(f"\ufefftext\n\ufeff{name}\n", "utf-8")
    source = read_file("in", Columns())
    assert source.dataset["text"][:] == ["\ufeffa", "\ufeffb"]
    assert source.notes == ["2 files", "byte-order mark left out"]


def test_a_character_that_is_cut_at_the_end():
    Path("a.txt").write_bytes("fine\nhalf: é".encode()[:-1])
    assert said("a.txt", EncodingError).startswith(
        "a.txt:2: 'text' holds byte 0xc3, which is not of its encoding, as character 7;"
    )
    long = ("x" * (2**20 - 1) + "é\n") * 3  # across the blocks that are read
    Path("b.txt").write_bytes(long.encode() + b"\xe9")
    assert said("b.txt", EncodingError).startswith("b.txt:4: 'text' holds byte 0xe9")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b"PK\x03\x04rest",
            "an Excel workbook or another zip file, not text; exp",
        ),
        (
            gzip.compress(b"text\na\n", mtime=0),  # it becomes the test's name
            "packed by gzip, not text; give it an ending",
        ),
        (b"PAR1rest", "a parquet file, not text; add --file_format parquet"),
        (b"\x89PNG\r\n", "a PNG image, not text; name a file of text"),
    ],
)
def test_files_that_are_no_text(raw, expected):
    Path("a.csv").write_bytes(raw)
    assert said("a.csv", DataFormatError).startswith(f"a.csv: {expected}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_plain_file_read_as_utf16(encoding):
    Path("a.csv").write_text("text\none, two\n")
    assert said("a.csv", EncodingError, encoding=encoding).startswith(
        f"a.csv:1: byte 0x74 at offset 0 is not {encoding.upper()}"
    )


def test_the_mark_of_utf16_is_left_out_where_its_order_is_named():
    Path("a.csv").write_bytes("\ufefftext\none\n".encode("utf-16-le"))
    assert texts("a.csv", encoding="utf-16-le") == ["one"]


def test_an_empty_member_is_no_crash():
    parts = bz2.compress(b"one\n") + bz2.compress(b"") + bz2.compress(b"two\n")
    Path("a.txt.bz2").write_bytes(parts)
    assert said("a.txt.bz2", DataFormatError).startswith("a.txt.bz2: damaged bz2 file")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "gb18030"])
def test_utf8_is_not_read_as_something_else(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_text("schön\n" * 300_000, "utf-8")  # characters are cut by blocks
    with pytest.raises(EncodingError, match=r"it is UTF-8, not .*leave out --encoding"):
        decode.choose_encoding(path, encoding, Notes())
    for text in ("schön\n", "plain\n"):
        path.write_text(text, "cp1252")
        decode.choose_encoding(path, encoding, notes := Notes())
        (said,) = notes.said()
        assert said.startswith("read as ")
        assert "UTF-8" not in said


def test_the_encoding_of_excels_utf8_may_be_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("schön\n", "utf-8-sig")
    (other := tmp_path / "b.txt").write_text("schön\n", "utf-8")
    assert decode.choose_encoding(other, "utf-8-sig", Notes()) == "utf-8"
    assert decode.choose_encoding(path, "utf-8-sig", notes := Notes()) == "utf-8"
    assert notes.said() == ["byte-order mark left out"]
