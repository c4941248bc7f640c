"""Near duplicates: planted ones are found, and no pair is named that is none."""

import random

import numpy as np
import pytest
import tiny
from datasets import Dataset

from llmft.data.look.near import PIECE, THRESHOLD, near_duplicates
from llmft.data.read.prints import normalised
from llmft.data.read.store import Source
from llmft.data.split.duplicates import prints

WORDS = [f"{a}{b}" for a in tiny.WORDS for b in tiny.WORDS]


def source(texts):
    return Source(Dataset.from_dict({"text": texts}), "a.csv")


def near(*texts):
    sources = [source(part) for part in texts]
    return near_duplicates(sources, [prints(part) for part in sources])


def draw(count, words=30, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


def jaccard(one, two):
    """Share of common pieces, told a second time with sets of strings."""
    one, two = (
        {t[i : i + PIECE] for i in range(len(t) - PIECE + 1)}
        for t in normalised([one, two])
    )
    return len(one & two) / len(one | two)


def changed(text, words, seed=0):
    rng, parts = random.Random(seed), text.split()
    for i in rng.sample(range(len(parts)), words):
        parts[i] = rng.choice(WORDS)
    return " ".join(parts)


def test_planted_ones_are_found_where_they_are():
    texts = draw(3000)
    train, validation = texts[:2500], texts[2500:]
    train[2000] = changed(train[7], 1)
    validation[30] = changed(train[8], 1)
    assert near(train, validation) == [((0, 2000), (0, 7)), ((1, 30), (0, 8))]


def test_almost_all_at_the_threshold_are_found_and_none_below():
    originals = draw(400)
    copies = [changed(text, i % 6, i) for i, text in enumerate(originals)]
    alike = [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    found = {row for row, _ in near([*originals, *copies])}
    found = {row - 400 for _, row in found}
    assert all(alike[row] >= THRESHOLD for row in found)
    expected = {i for i, share in enumerate(alike) if THRESHOLD <= share < 1}
    assert len(expected) > 50
    assert len(expected - found) <= 0.05 * len(expected)


@pytest.mark.parametrize("other", ["{}", " {} ", "x {}", "{}!"])
def test_what_is_the_same_is_left_to_the_others(other):
    """The last two are near; the others are the same, with or without spaces."""
    text = draw(1)[0]
    again = other.format(text.upper())
    expected = int(bool(other.replace("{}", "").strip()))
    assert len(near([text, again])) == expected
    assert len(near([text], [again])) == expected


def test_short_texts_and_nothing_at_all():
    assert near(["too short for this"] * 3, ["", "..."]) == []
    assert near(draw(1)) == []


def test_other_scripts_count_in_characters():
    text = "".join(chr(0x4E00 + i * 37 % 2000) for i in range(200))
    assert near([text, text[:150] + "新" + text[150:]]) == [((0, 1), (0, 0))]


def test_many_alike_need_few_comparisons(monkeypatch):
    """A template of which all rows are near: each is compared with the first."""
    base = draw(1, 60)[0]
    texts = [f"{base} {number}" for number in np.arange(500)]
    assert near(texts) == [((0, row), (0, 0)) for row in range(1, 500)]
