"""What reaches the terminal: escaped, cut to its columns, whatever reads it."""

import io
import os
import subprocess
import sys
from pathlib import Path

from llmft import console
from llmft.console import say, table

ROOT = Path(__file__).resolve().parents[2]


def test_say_goes_on_when_the_reader_has_gone():
    program = """
import sys
from llmft.console import say
for i in range(3):
    say("line")
print("went on", file=sys.stderr)
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"went on\n")


def test_say_keeps_lines_and_survives_an_ascii_terminal(monkeypatch, capsys):
    say("one\ntwo\r\x1b[1m")
    assert capsys.readouterr().out == "one\ntwo\\r\\x1b[1m\n"
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    say("é漢")
    assert raw.getvalue() == rb"\xe9\u6f22" + b"\n"


def test_warn_goes_to_standard_error(capsys):
    console.warn("a\nb")
    assert capsys.readouterr() == ("", "llmft: warning: a\\nb\n")


def test_table_alignment():
    rows = [["one", 5, "x\n"], ["three", 12.5, "é"]]
    assert table(rows, ["name", "count", "text"]) == (
        "  name   count  text\n"  #
        "  one        5  x\\n\n"
        "  three   12.5  é"
    )


def test_table_counts_columns_not_characters():
    shown = table([["漢字", 1], ["e\u0301t", 20]], ["name", "n"]).split("\n")
    assert shown == ["  name   n", "  漢字   1", "  e\u0301t    20"]
    assert {console.width(line) for line in shown} == {10}
    assert console.width("a👩\u200d💻") == 5


def test_cut():
    assert console.cut("12345678", 8) == "12345678"
    assert console.cut("123456789", 8) == "12345..."
    assert console.cut("漢字漢字漢", 9) == "漢字漢..."
    assert console.cut("漢字漢字漢", 8) == "漢字..."


def test_a_table_is_cut_to_the_terminal_only(monkeypatch):
    rows = [["x" * 100, "y" * 30, "short", 1]]
    header = ["one", "two", "three", "n"]
    assert "x" * 100 in table(rows, header)  # a pipe has no width
    monkeypatch.setattr(console, "terminal_columns", lambda: 50)
    lines = table(rows, header).split("\n")
    assert [len(line) for line in lines] == [50, 50]
    assert lines[1].endswith("y...  short  1")
    monkeypatch.setattr(console, "terminal_columns", lambda: 5)
    narrow = table(rows, header).split("\n")[1]
    assert narrow == "  xxxxxxxxx...  yyyyyyyyy...  short  1"
