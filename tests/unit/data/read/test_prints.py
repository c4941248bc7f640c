"""Prints tell the same texts as ever, however fast they are made."""

import random
import unicodedata
from itertools import islice

import numpy as np
import psutil
import pyarrow as pa
import pytest

from llmft.data.read import prints, store
from llmft.data.read.columns import Columns
from llmft.data.read.prints import PRINTS, normalised, row_prints, with_prints
from llmft.data.read.store import prints_of, read_file
from llmft.errors import DataError, EnvironmentFault


def spell(text):
    """``normalised`` of one text, told a second time, character by character."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kinds = [(c, unicodedata.category(c)) for c in folded]
    return "".join(
        c
        for c, kind in kinds
        if c in "\0\x01" or (kind[0] != "Z" and kind not in ("Cc", "Cf"))
    )


TEXTS = [
    *("Good  film", "good film", "GOOD FILM", "g\u00adood\u200b film\n", "Straße"),
    *(
        "STRASSE",
        "ﬁne",
        "fine",
        "e\u0301t\u00e9",
        "\u00e9te\u0301",
        "हिन्दी",
        "हनद",
        "C++",
    ),
    *(
        "C",
        "👍",
        "👎",
        "漢字。",
        "漢字",
        "...",
        "!",
        "",
        " ",
        "x" * 100_000,
        "Ⅷ",
        "viii",
    ),
]


def test_case_and_white_space_are_taken_away():
    assert normalised(TEXTS) == [spell(text) for text in TEXTS]
    assert [normalised([text]) for text in TEXTS] == [[spell(t)] for t in TEXTS]
    same = [normalised(TEXTS)[i] for i in range(4)]
    assert same == ["goodfilm"] * 4
    assert normalised([]) == []


def test_adversarial_texts_as_they_were_normalised_before():
    """All of the first plane, and 20,000 strings of what is odd about characters."""
    every = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    odd = [c for c in every if unicodedata.normalize("NFKC", c).casefold() != c]
    odd += [c for c in every if unicodedata.category(c)[0] in "ZCM"][:700]
    odd += [*map(chr, range(128)), "\U000e0041", "\U0001f1e9", "\U00013430"]
    draw = random.Random(7)
    made = ["".join(draw.choices(odd, k=draw.randrange(9))) for _ in range(20_000)]
    made += ["a b", "a\0b", "\0", "\x01", "\xff", "\x7f", "i\u0307", "\u0130", ""]
    assert normalised(every + made) == [spell(text) for text in every + made]


def test_no_other_planes_have_characters_to_leave_out():
    kinds = {unicodedata.category(chr(c)) for c in range(0x20000, 0xE0000)}
    kinds |= {unicodedata.category(chr(c)) for c in range(0xE1000, 0x110000)}
    assert not kinds & {"Zs", "Zl", "Zp", "Cc", "Cf"}
    assert (~prints._kept()).sum() > 200


def test_prints_are_stored_and_carried_along(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    rows = [*TEXTS[:5], "A", "a", "", " ", "x"]
    path.write_text("text,more\n" + "".join(f'"{t}",{t[:1]}.\n' for t in rows))
    columns = Columns("text", text_pair="more")
    source = read_file(path, columns)
    assert {*PRINTS} < {*source.dataset.column_names}
    order = np.random.default_rng(3).permutation(len(rows))
    chosen = source.select(order).dataset
    monkeypatch.setattr(store, "BATCH", 3)
    made = prints_of(chosen.remove_columns([*PRINTS]))
    for found, again in zip(prints_of(chosen), made, strict=True):
        assert found.tolist() == again.tolist()
    some = source.select(order[:4]).dataset
    bare = some.remove_columns([*PRINTS])
    assert store.content_hash(bare) == store.content_hash(some)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((["a"], ["b"]), (["ab"], [""])),
        ((["a\x01"], ["b"]), (["a"], ["\x01b"])),
        ((["a"], ["b"]), (["a\x01b"],)),
        ((["a"],), (["A"],)),
    ],
)
def test_different_texts_have_different_hashes(one, other):
    """So that what a cache holds of one is never taken for the other."""
    assert row_prints(one)[0] != row_prints(other)[0]
    assert row_prints(one)[0] == row_prints(one)[0]


def rows_of(count):
    """Batches of a text and its pair, one a row."""
    for i in range(count):
        texts = {"text": [f"{i} {TEXTS[i % len(TEXTS)]}"], "text_pair": [f"Ü {i}"]}
        yield pa.RecordBatch.from_pydict(texts)


@pytest.mark.parametrize("count", [1, 16, 17, 21, 60])
def test_another_process_makes_the_same_prints(count, tmp_path, monkeypatch):
    (tmp_path / "xxhash.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    made = [*with_prints(rows_of(count))]
    monkeypatch.setattr(prints, "_FEW", 10**9)
    assert made == [*with_prints(rows_of(count))]
    assert len(made) == count
    assert made[0].schema.names[-3:] == [*PRINTS]


def test_a_process_of_prints_that_dies_is_told():
    made = with_prints(rows_of(300))
    before = {*psutil.Process().children()}
    assert len([*islice(made, 30)]) == 30
    (worker,) = {*psutil.Process().children()} - before
    worker.kill()
    with pytest.raises(EnvironmentFault, match=r"there twice has ended \(-9\)"):
        list(made)
    assert not worker.is_running()


def test_a_bad_row_ends_the_process_of_prints():
    def some():
        yield from rows_of(40)
        raise DataError("bad")

    before = {*psutil.Process().children()}
    with pytest.raises(DataError, match="bad"):
        [*with_prints(some())]
    assert {*psutil.Process().children()} == before
