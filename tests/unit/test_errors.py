"""What an error says: escaped, on one line, and with its exit code."""

import pytest

from llmft.errors import ConfigError, DataError, counted, escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\nc\td\0", r"a\rb\nc\td\x00"),
        ("a\x85b\x9b", r"a\x85b\x9b"),  # C1: next line, and an 8-bit CSI
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\u202eevil\u202c \u2066x\u2069", r"\u202eevil\u202c \u2066x\u2069"),
        ("lone \ud83d half", r"lone \ud83d half"),
        ("👩\u200d💻 漢字 a\u00a0b é", "👩\u200d💻 漢字 a\u00a0b é"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown


def test_escape_cuts_after_escaping():
    assert escape("\n" * 10, 8) == r"\n\n\..."[:8]
    assert escape("12345678", 8) == "12345678"
    assert escape("123456789", 8) == "12345..."
    assert escape(None) == "None"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("bad"), "DataError: bad"),
        (
            DataError("bad", "want", "do", path="a.csv"),
            "DataError a.csv: bad; want; do",
        ),
        (DataError("bad", hint="do", path="a", line=7), "DataError a:7: bad; do"),
        (DataError("a\nb", path="x\x1b[2J\n"), r"DataError x\x1b[2J\n: a\nb"),
        (ConfigError("one"), "ConfigError: one"),
        (ConfigError("one", "two"), "ConfigError: 2 problems: one; two"),
    ],
)
def test_an_error_is_one_line(error, line):
    assert str(error) == line
    assert error.args == (line,)


@pytest.mark.parametrize(
    ("what", "one"),
    [
        ("rows", "1 row"),
        ("empty lines passed over", "1 empty line passed over"),
        ("texts are empty, used as they are", "1 text is empty, used as they are"),
        ("labels that differ from 'x'", "1 label that differs from 'x'"),
        ("rows cut to 16 tokens, 28 tokens", "1 row cut to 16 tokens, 28 tokens"),
    ],
)
def test_one_of_a_kind_is_told_in_the_singular(what, one):
    assert counted(1, what) == one
    assert counted(0, what) == f"0 {what}"
    assert counted(1234, what) == f"1,234 {what}"
