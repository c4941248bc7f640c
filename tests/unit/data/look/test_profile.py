"""Lengths, scripts and odd texts, counted as a plain reading counts them."""

import numpy as np
import pytest
from datasets import Dataset

from llmft.data.look.profile import SIGNS, profile
from llmft.data.read.store import Source
from llmft.data.split import duplicates


def source(texts, **more):
    return Source(Dataset.from_dict({"text": texts, **more}), "a.csv")


def signs(text):
    return [*profile(source([text])).signs]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        *(
            (text, next(iter(SIGNS)))
            for text in ("schÃ¶n", "cafÃ©", "itâ€™s", "1 Â°C", "ï»¿a")
        ),
        ("Ã\x84", next(iter(SIGNS))),
        ("lost \ufffd", "characters lost to U+FFFD"),
        ("bell\x07", "control characters"),
        ("quote \x93here\x94", "control characters"),
        ("Tom &amp; Jerry", "HTML entities"),
        ("it&#39;s", "HTML entities"),
        ("so<br/>much", "HTML tags"),
        ('<a href="x">here</a>', "HTML tags"),
        (r"one\ntwo", "backslash escapes"),
        (r"caf\u00e9", "backslash escapes"),
        ("in\u200bvisible", "invisible characters"),
        ("cafe\u0301", "letters with their accents apart"),
        ("p\u0430ypal", "letters of two alphabets in a word"),
        (" N/A", "words for a missing value, and nothing else"),
        ("null", "words for a missing value, and nothing else"),
        ("2020-01-01", "a number, date or id, and nothing else"),
        ("ID-00123", "a number, date or id, and nothing else"),
        (
            "deadbeef-dead-beef-dead-beefdeadbeef",
            "a number, date or id, and nothing else",
        ),
        ("THIS IS LOUD", "capitals throughout"),
        ("x" * 80, "words of 80 characters or more"),
        ("see https://example.org", "web addresses"),
        ("write to a.b@example.org", "e-mail addresses"),
        ("the end ", "white space at an end"),
        ("\u00a0start", "white space at an end"),
    ],
)
def test_what_is_odd(text, what):
    assert what in signs(text)


@pytest.mark.parametrize(
    "text",
    [
        *("A plain line, with 2 numbers.", "naïve café, schön, NÃO, São Paulo, «ça»"),
        *(
            "a < b && c > d; x<y",
            "Привет, мир",
            "γειά σου",
            "漢字" * 90,
            "हिन्दी में",
            "l'été",
        ),
        *(
            "line\nbreak\tand tab",
            "null and void",
            "NASA",
            "👩\u200d💻",
            "A&B; C",
            "3 men",
        ),
    ],
)
def test_what_is_not(text):
    assert signs(text) == []


@pytest.mark.parametrize("batch", [2, 10_000])
def test_rows_are_counted_and_the_first_named(batch, monkeypatch):
    monkeypatch.setattr(duplicates, "BATCH", batch)
    texts = ["fine", "", "a <b>", " \u2003\n", "c <i>", "d", "<p>", "<u> ", "é漢"]
    found = profile(source(texts))
    tags = found.signs["HTML tags"]
    assert (len(tags), tags[:3].tolist()) == (4, [2, 4, 6])
    assert found.blank.tolist() == [1, 3]
    assert found.lengths.tolist() == [len(text) for text in texts]
    assert found.lengths.dtype == np.int32


def test_scripts_count_letters():
    texts = ["ab é 12 .,", "жук", "漢字", "ハ"]
    assert profile(source(texts)).scripts == {
        "Latin": 3,
        "Cyrillic": 3,
        "CJK": 2,
        "Katakana": 1,
    }


def test_pairs_are_read_whole():
    found = profile(source(["ab"], text_pair=["c&amp;"]))
    assert [*found.signs] == ["HTML entities"]
    assert found.lengths.tolist() == [9]
