"""What the cache holds is listed with its size, and goes when asked."""

import os
import platform
import subprocess
import sys
import time
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
    found = cache.parts()
    assert list(found) == list(cache.PARTS)
    sizes = [p.stat().st_size for p in filled.rglob("*") if p.is_file()]
    assert [entry.size for entry in found["read"]] == [sum(sizes)]
    assert found["tokenized"] == []


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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), "needs either parts or --all, or --older_than TIME; known: assets, "),
        (("read", "--all"), "needs either parts or --all"),
        (("read", "--all", "--older_than", "3d"), "needs either parts or --all"),
        (("reed",), "did you mean read?"),
        (("--older_than", "old"), "--older_than is 'old', expected a time such as 30d"),
        (("--older_than", "0d"), "--older_than is '0d', expected a time such as 30d"),
    ],
)
def test_what_is_not_understood_clears_nothing(filled, words, wanted, capsys):
    assert command("clear", *words) == 2
    assert wanted in capsys.readouterr().err
    assert list(filled.rglob("data.arrow"))


def test_clearing_takes_nothing_else(filled):
    kept = Path(filled, "own.txt")
    kept.write_text("mine")
    cache.clear(list(cache.PARTS))
    assert kept.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"the cache has no '\.\.'"):
        cache.clear([".."])


def used(path, days):
    """Make a file or folder of the cache one that was made and used so long ago."""
    when = time.time() - days * 86400
    for one in [*path.rglob("*"), path]:
        os.utime(one, (when, when))


def test_what_was_not_used_for_long_goes(filled, tmp_path, capsys):
    (old,) = (filled / "read").iterdir()
    (tmp_path / "b.txt").write_text("three\n")
    read_file(tmp_path / "b.txt", Columns())
    (filled / "hardware").mkdir()
    (filled / "hardware" / "a.json").write_text("{}")
    used(old, 40)
    used(filled / "hardware" / "a.json", 31)
    found = cache.parts()["read"]
    days = sorted((time.time() - entry.used) / 86400 for entry in found)
    assert days == pytest.approx([0, 40], abs=0.1)
    assert command() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = next(row for row in rows if row[:2] == ["read", "2"])
    assert "40 d ago today data" in " ".join(row)
    assert command("clear", "--older_than", "41d") == 0
    assert "read: 0 entries" in capsys.readouterr().out
    assert command("clear", "read", "--older_than", "30d") == 0
    assert capsys.readouterr().out.startswith("read: 1 entries, ")
    assert not old.exists()
    assert len(list((filled / "read").iterdir())) == 1
    assert (filled / "hardware" / "a.json").exists()
    assert command("clear", "--older_than", "30d") == 0
    assert not (filled / "hardware" / "a.json").exists()


def test_a_use_is_marked(filled, tmp_path):
    (entry,) = (filled / "read").iterdir()
    used(entry, 40)
    read_file(tmp_path / "a.txt", Columns())
    (found,) = cache.parts()["read"]
    assert time.time() - found.used < 60
    assert time.time() - found.made > 39 * 86400


def test_what_killed_runs_left_goes_at_the_next_start(filled, tmp_path):
    """Of this machine, and of no process that lives."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, read = platform.node(), filled / "read"
    names = {
        f".{kind}-{who}"
        for kind in ("a.staging", "a.older", "b.c.staging")
        for who in (f"{host}-{dead.pid}-1", f"{host}-{os.getppid()}-2", "else-x-9-3")
    }
    for name in names | {".staging-x", ".a.staging-x-y-z"}:
        (read / name).mkdir()
        (read / name / "tokens").write_text("half")
    read_file(tmp_path / "a.txt", Columns())  # is in the cache: nothing is written
    left = {path.name for path in read.iterdir() if path.name.startswith(".")}
    kept = {name for name in names if f"-{dead.pid}-" not in name}
    assert left == kept | {".staging-x", ".a.staging-x-y-z"}
    for words in (("--older_than", "1s"), ("read",)):
        (read / ".b.wheels").mkdir(exist_ok=True)
        assert command("clear", *words) == 0
        aside = {".b.wheels"} if len(words) > 1 else set()
        assert {path.name for path in read.iterdir() if path.name[0] == "."} == (
            left | aside
        )
    assert {path.name for path in read.iterdir()} == left
