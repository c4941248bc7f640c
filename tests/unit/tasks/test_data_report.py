"""``llmft data`` as its user calls it; hostile texts do nothing to the page."""

import html.parser
import json
import subprocess
import sys
from pathlib import Path

import pytest
import recipe_process as process
import tiny
from transformers import AutoTokenizer

from llmft import cli
from llmft.data.look.findings import ERROR, Finding
from llmft.data.look.report import Report, Section
from llmft.errors import DataError
from llmft.tasks.data_report import as_html, as_text

TRAIN = [
    (f"review number {i} is {'good' if i % 2 else 'bad'}", i % 2) for i in range(30)
]


@pytest.fixture
def llmft(tmp_path):
    """Run the command in a folder with train.csv and test.csv."""
    for name, rows in {"train": TRAIN, "test": [*TRAIN[4:6], ("new", 1)]}.items():
        lines = [f"{text},{label}" for text, label in rows]
        text = "\n".join(["text,label", *lines, ""])
        (tmp_path / f"{name}.csv").write_text(text)

    def llmft(*argv):
        start = "import sys; from llmft.cli import main; main(sys.argv[1:])"
        return subprocess.run(
            [sys.executable, "-c", start, *argv],
            cwd=tmp_path,
            env=process.user_env(
                tmp_path / "home", PYTHONPATH=str(process.RECIPES.parent)
            ),
            capture_output=True,
            encoding="utf-8",
        )

    return llmft


def test_files_are_examined_and_nothing_else_is_written(llmft, tmp_path, tiny_bert):
    done = llmft(
        *("data", "train.csv", "--test_file", "test.csv", "--html", "r.html"),
        *("--model_name_or_path", str(tiny_bert), "--max_seq_length", "12"),
    )
    assert done.returncode == 3, done.stderr  # what a training would refuse
    assert "tokenizing" not in done.stdout
    for said in (
        "\n  train.csv  30    695         530\n",
        "error: 2 of 3 rows of test are in train.csv too, 2 of them to the letter\n"
        "    test.csv:2 = train.csv:6, test.csv:3 = train.csv:7\n",
        "warning: rows of more than 12 tokens in train.csv:",
        "  0      15    50 %   ########################################\n",
        "\n\nwritten to r.html\n",
    ):
        assert said in done.stdout, done.stdout
    assert "2 of 3 rows of test are in train.csv too" in (
        tmp_path / "r.html"
    ).read_text("utf-8")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"train.csv", "test.csv", "r.html", "home"}


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (
            [],
            2,
            "ConfigError: no file named: llmft data FILE..., before its flags, or"
            " --train_file FILE",
        ),
        (
            ["train.csv", "--max_bad_rows", "x", "--file_format", "xls"],
            2,
            "ConfigError: 2 problems: file_format is 'xls', expected one of csv, tsv,"
            " json, jsonl, txt, parquet, arrow; max_bad_rows is 'x', expected a whole"
            " number",
        ),
        (
            ["train.csv", "train.csv"],
            2,
            "ConfigError: a file named twice: train.csv, train.csv",
        ),
        (
            ["train.csv", "--html", "test.csv"],
            2,
            "ConfigError: html is 'test.csv', expected a name that ends in .html",
        ),
        (
            ["train.csv", "--label_column_name", "lable"],
            3,
            "SchemaError train.csv: no column 'lable'; it has 'text', 'label'; did you"
            " mean label? name it with --label_column_name",
        ),
    ],
)
def test_mistakes(llmft, argv, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where the fixture wrote the files
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", *argv])
    assert ended.value.code == code
    assert capsys.readouterr() == ("", f"llmft: {said}\n")


def test_a_bad_row_is_an_error_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": 5}\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "bad.jsonl", "--html", "bad.html"])
    assert ended.value.code == 3
    fault = "bad.jsonl:2: 'text' is 5 (int); expected text in every row"
    assert fault in capsys.readouterr().err
    page = Path("bad.html").read_text("utf-8")
    assert f"SchemaError {fault}" in html.unescape(page)


HOSTILE = [
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style>"),
    *("{{7*7}} {0} {title}", "javascript:alert(1)", "\u2028line", "&amp;", "</title>"),
]


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_names_all_places_and_the_terminal_three():
    every = ", ".join(f"a.csv:{line} = a.csv:2" for line in range(3, 9))
    first = ", ".join(every.split(", ")[:3]) + ", ..."
    report = Report([], [Finding(ERROR, "rows", first, every=every)])
    assert first in as_text(report)
    assert "a.csv:8" not in as_text(report)
    assert every in as_html(report, "")


def test_html_holds_texts_as_texts():
    report = Report(
        [Section(text, [text], [[text]], [1.0]) for text in HOSTILE],
        [Finding(ERROR, text, text, text) for text in HOSTILE],
    )
    page = as_html(report, "".join(HOSTILE))
    tags = _Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.found}
    assert not names & {"script", "img"}
    assert "meter" in names
    given = {name for _, attributes in tags.found for name in attributes}
    assert not {name for name in given if name.startswith("on") or name == "src"}
    links = {value["href"] for _, value in tags.found if "href" in value}
    assert links == {"#findings", "#tables"}
    for text in HOSTILE:
        shown = text.replace("\u2028", "\\u2028")
        assert tags.text.count(shown) >= 6
    assert "default-src 'none'" in page


def test_the_terminal_gets_no_control_characters():
    bad = "\x1b[2J\r\x07"
    report = Report([Section(bad, [bad], [[bad]])], [Finding(ERROR, bad, bad, bad)])
    shown = as_text(report)
    assert "\\x1b[2J\\r\\x07" in shown
    assert not {*"\x1b\r\x07"} & {*shown.split("\n", 1)[1]}


def test_numbers_are_set_to_the_right_and_bars_are_scaled():
    rows = [["a", "5"], ["b", "1,000"], ["c", "0"]]
    report = Report([Section("t", ["", "n"], rows, [5, 1000, 0])])
    assert as_text(report) == (
        f"t\n     n\n  a      5  #\n  b  1,000  {'#' * 40}\n  c      0"
        "\n\nnothing odd was found"
    )


@pytest.mark.parametrize("text", ["123\n456\n", "\U0001f600\n", "...\n"])
def test_data_without_letters(text, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", str(tmp_path / "a.txt")])
    assert ended.value.code == 0
    assert "scripts" in capsys.readouterr().out


def test_bad_rows_are_told_after_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30))
    (tmp_path / "a.csv").write_text(f"text,label\n{rows}one\ntwo,a,b\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "a.csv", "--label_column_name", "label"])
    assert ended.value.code == 3
    shown = capsys.readouterr()
    assert "2 bad rows left out (a.csv:32, a.csv:33)" in shown.out
    assert "  a      15    50 %   ####" in shown.out
    assert shown.err.startswith(
        "llmft: DataFormatError a.csv:32: 1 fields; expected 2 "
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "a.csv", "--max_bad_rows", "2"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == ""
    for more, out, err in (
        (
            f"{rows}no label,\n",
            "1 bad row left out (c.csv:32)",
            "LabelError: 1 of 31 rows have no label, the first at c.csv:32",
        ),
        (
            "some text,a\n" * 9,
            "error: a single label in c.csv: 'a'",
            "DataError: 1 of the findings is an error; a training refuses",
        ),
    ):
        (tmp_path / "c.csv").write_text(f"text,label\n{more}")
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "c.csv"])
        assert ended.value.code == 3
        shown = capsys.readouterr()
        assert (out in shown.out, err in shown.err) == (True, True)
    # An empty text is a bad row where there are labels, as classify.py has it.
    (tmp_path / "d.csv").write_text(f"text,label\n{rows},a\ntwo,a,b\n")
    for more, said in (
        (["--label_column_name", "label"], "2 bad rows left out (d.csv:32, d.csv:33)"),
        ([], "1 bad row left out (d.csv:33)"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["data", "d.csv", *more])
        assert said in capsys.readouterr().out
    (tmp_path / "b.csv").write_text("text,label\none\n")
    with pytest.raises(SystemExit):
        cli.main(["data", "b.csv"])
    assert capsys.readouterr().out == ""


TALKS = [
    [("user", f"what about film {i}?"), ("assistant", f"it is the {i}th\n of all")]
    for i in range(6)
] + [[("system", "be brief"), ("user", "hello there"), ("assistant", "<b>yes</b>")]]


@pytest.mark.parametrize("template", [None, tiny.CHAT_TEMPLATE])
def test_conversations_are_reported(template, bpe, tmp_path, capsys, monkeypatch):
    """Their turns and who speaks; tokens where the model has a chat template."""
    monkeypatch.chdir(tmp_path)
    rows = [
        json.dumps({"messages": [{"role": r, "content": c} for r, c in talk]})
        for talk in TALKS
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join([*rows, rows[0]]))
    folder = tiny.save(tmp_path / "model", "gpt2", "causal-lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "talks.jsonl", "--model_name_or_path", str(folder)])
    shown = capsys.readouterr()
    assert (ended.value.code, shown.err) == (0, ""), shown.err
    for said in (
        "format = messages",
        "talks.jsonl: turns of a conversation\n  shortest  1 %",
        "\n  user       8      137         ####",
        "\n  system     1        8         #####\n",
        "HTML tags in talks.jsonl: 1",
        "talks.jsonl: 1 of 8 rows (12 %) of 32 characters or more repeats an earlier"
        " one, 1 of them to the letter"
        "\n    talks.jsonl:8 = talks.jsonl:1\n",
    ):
        assert said in shown.out, shown.out
    assert "backslash" not in shown.out  # of the JSON that conversations are kept in
    assert ("talks.jsonl: tokens of a row" in shown.out) == (template is not None)
    assert ("no chat template" in shown.out) == (template is None)


def test_a_folder_is_looked_at_as_a_training_reads_it(tmp_path, capsys):
    """What test shares with train is a share of test, and flags stand as in recipes."""
    rows = [f"text number {i};{i % 3 % 2};{i % 2}" for i in range(120)]
    parts = {"train": rows, "test": [*rows[:3], *(f"new {r}" for r in rows[:27])]}
    folder = tmp_path / "parts"
    folder.mkdir()
    for split, found in parts.items():
        (folder / f"{split}.csv").write_text("\n".join(["text;a;b", *found, ""]))
    flags = ("--label_column_name", "a", "b", "--strict", "--delimiter", ";")
    with pytest.raises(DataError, match="1 of the findings is an error"):
        cli._run(["data", str(folder), *flags])
    said = capsys.readouterr().out
    assert "error: 3 of 30 rows of test are in train too" in said
    assert "that train has no row of" not in said
