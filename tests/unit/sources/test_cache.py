"""What the cache holds is listed with its size, and goes when asked."""

from pathlib import Path

import pytest

from llmft import cli
from llmft.data.read.columns import Columns
from llmft.data.read.store import read_file
from llmft.errors import ConfigError
from llmft.sources import cache, catalog


@pytest.fixture
def filled(tmp_path):
    """A cache with one data set that was read."""
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    read_file(tmp_path / "a.txt", Columns())
    return catalog.cache_home()


def command(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["cache", *words])
    return ended.value.code


def test_parts_and_their_sizes(filled):
    found = {part.name: part for part in cache.parts()}
    assert list(found) == list(cache.PARTS)
    sizes = [p.stat().st_size for p in filled.rglob("*") if p.is_file()]
    assert (len(found["read"].entries), found["read"].size) == (1, sum(sizes))
    assert found["tokenized"].entries == []


def test_the_command_lists_and_clears(filled, capsys):
    assert command() == 0
    said = capsys.readouterr().out
    assert f"cache folder: {filled}" in said
    assert command("clear", "tokenized") == 0
    assert list(filled.rglob("data.arrow"))
    assert command("clear", "read") == 0
    assert "read: 1 entries, " in capsys.readouterr().out
    assert not list(filled.rglob("data.arrow"))
    assert command("clear", "--all") == 0


@pytest.mark.parametrize("words", [(), ("read", "--all"), ("reed",)])
def test_what_is_not_understood_clears_nothing(filled, words, capsys):
    assert command("clear", *words) == 2
    said = capsys.readouterr().err
    assert "did you mean read?" in said or "needs either parts or --all" in said
    assert list(filled.rglob("data.arrow"))


def test_clearing_takes_nothing_else(filled):
    kept = Path(filled, "own.txt")
    kept.write_text("mine")
    cache.clear(list(cache.PARTS))
    assert kept.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"the cache has no '\.\.'"):
        cache.clear([".."])
