"""Files as people have them train with at most one flag beside the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_cases
import pyarrow as pa
import pyarrow.parquet
import pytest
import recipe_process as process

from llmft.process import run_command

QUICK = (
    *process.QUICK,
    *("--do_train", "--do_eval", "--max_steps", "2", "--fast_path", "off"),
)
ROWS = [
    (f"the {i} film was so {'good' if i % 2 else 'bad'} for me", i % 2)
    for i in range(40)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return data_cases.models(tmp_path_factory.mktemp("models"))


def table(header: list[str], rows: list[Any], delimiter: str = ",") -> str:
    """Return a csv as the libraries write it."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return stream.getvalue()


def german(path: Path) -> None:
    """Excel's export: semicolons, decimal commas, cp1252."""
    rows = [(t.replace("film", "Film, größer"), f"{4 * i},5") for t, i in ROWS]
    path.write_bytes(table(["Kommentar", "Bewertung"], rows, ";").encode("cp1252"))


def spam(path: Path) -> None:
    """Kaggle's, in latin-1, with columns without a name that hold a text's end."""
    rows = [("spam" if i else "ham", f"£5: {t}", "", "", "") for t, i in ROWS]
    rows[7] = (*rows[7][:2], ' so there"', "", "")
    path.write_bytes(table(["v1", "v2", "", "", ""], rows).encode("latin-1"))


def imdb(path: Path) -> None:
    """Kaggle's: quotes and line breaks in the texts."""
    rows = [(f'"{t}"<br />\nso, yes', ("negative", "positive")[i]) for t, i in ROWS]
    path.write_text(table(["review", "sentiment"], rows), newline="")


def sentiment140(path: Path) -> None:
    """Six columns in quotes, no header."""
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        for n, (text, i) in enumerate(ROWS):
            day = "Mon Apr 06 22:19:45 PDT 2009"
            writer.writerow([4 * i, 1467810369 + n, day, "NO_QUERY", "_me_", text])


def pandas_dump(path: Path) -> None:
    """With the index, and lists as Python writes them."""
    rows = [(n, t, str(["joy", "fear"][: i + 1])) for n, (t, i) in enumerate(ROWS)]
    path.write_text(table(["", "text", "labels"], rows))


def hub_clone(path: Path) -> None:
    """Parquet in parts, with the files of a repository."""
    (path / ".git").mkdir(parents=True)
    (path / "README.md").write_text("# Films")
    (path / "data").mkdir()
    for n, split in enumerate(("train", "validation", "test")):
        rows = [{"text": f"{t} {n}", "label": i} for t, i in ROWS]
        name = path / "data" / f"{split}-00000-of-00001.parquet"
        pa.parquet.write_table(pa.Table.from_pylist(rows), name)


def sharegpt(path: Path) -> None:
    """Conversations, one of which the model's template refuses."""
    path.write_bytes(data_cases.sharegpt())


def r_csv(path: Path) -> None:
    """write.csv: names of rows, all text in quotes, NA."""
    lines = ['"","text","label"']
    lines += [f'"{n}","{t}","{("no", "yes")[i]}"' for n, (t, i) in enumerate(ROWS)]
    path.write_text("\n".join([*lines, '"41","so it goes",NA']))


def utf16(path: Path) -> None:
    """Excel's "Unicode text": tabs, UTF-16 with its mark, an empty row and columns."""
    rows = [(t, ("no", "yes")[i], "", "") for t, i in ROWS]
    said = table(["Text", "Label", "", ""], [*rows, ("", "", "", "")], "\t")
    path.write_bytes(said.encode("utf-16"))


def mac_folder(path: Path) -> None:
    """What the Finder and a zip of it leave."""
    (path / "__MACOSX").mkdir(parents=True)
    (path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (path / "._a.csv").write_bytes(b"\0\5\26\7")
    (path / "__MACOSX" / "._a.csv").write_bytes(b"\0\5\26\7")
    for name, rows in (("a.csv", ROWS[:20]), ("b.CSV", ROWS[20:])):
        (path / name).write_text(table(["text", "label"], rows))


def toxic(path: Path) -> None:
    """A column for each class."""
    path.write_bytes(data_cases.BITS)


Make = Callable[[Path], None]
# What makes the file, its name, the one flag, and what is said of it.
FILES: list[tuple[Make, str, tuple[str, ...], list[str]]] = [
    (
        german,
        "Umfrage.csv",
        ("--encoding", "cp1252"),
        ["separated by ';'", "numbers with a decimal comma"],
    ),
    (
        spam,
        "spam.csv",
        ("--encoding", "latin-1"),
        [
            "3 columns without a name not used",
            "1 row holds something in columns without a name (spam.csv:9)",
            "text = 'v2', label = 'v1'",
        ],
    ),
    (
        imdb,
        "IMDB Dataset.csv",
        (),
        ["40 rows with line breaks in quotes", "label = 'sentiment'"],
    ),
    (
        sentiment140,
        "training.csv",
        ("--column_names", "label,id,date,flag,user,text"),
        ["columns not used: 'id', 'date', 'flag', 'user'"],
    ),
    (
        pandas_dump,
        "dump.csv",
        (),
        ["a column without a name not used", "40 labels are lists written as text"],
    ),
    (
        hub_clone,
        "films",
        (),
        ["train             40 rows of films (1 file of train, of 3 files; "],
    ),
    (
        sharegpt,
        "talks.jsonl",
        ("--max_bad_rows", "1"),
        ["1 conversations that the chat template refuses left out (talks.jsonl:25)"],
    ),
    (
        r_csv,
        "r.csv",
        ("--max_bad_rows", "1"),
        ["1 bad row left out (r.csv:42)"],
    ),
    (
        utf16,
        "Unicode.csv",
        (),
        ["read as utf-16, by its byte-order mark", "separated by tabs"],
    ),
    (mac_folder, "mac", (), ["2 files; 3 other files passed over"]),
    (
        toxic,
        "toxic.csv",
        ("--label_column_name", "toxic", "obscene"),
        ["text = 'comment_text'"],
    ),
]


@pytest.mark.parametrize(
    ("make", "name", "flag", "notes"), FILES, ids=[f[0].__name__ for f in FILES]
)
def test_a_file_as_people_have_it(
    make: Make,
    name: str,
    flag: tuple[str, ...],
    notes: list[str],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(name))
    recipe, model = "classify", models["classify"]
    if make is sharegpt:
        recipe, model = "generate", models["strict chat"]
    words = [*QUICK, "--model_name_or_path", str(model), "--output_dir", "run"]
    words += ["--train_file", name, *flag]
    words += ["--ladder", "false"] if recipe == "classify" else []
    code = run_command(process.main_of(recipe), words)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert [note for note in notes if note not in said.out] == []
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "complete"
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "llmft-home") == [
        *sorted((name, "run"))
    ]


def test_all_that_is_to_be_mended_is_told_at_once(
    tmp_path: Path,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A newcomer needed three rounds for a German Excel file."""
    monkeypatch.chdir(tmp_path)
    rows = [(n, t, "schön", f"{n},5") for n, (t, _) in enumerate(ROWS)]
    said = table(["Nr", "Kommentar", "Ort", "Note"], rows, ";")
    Path("a.csv").write_bytes(said.encode("cp1252"))
    words = [*QUICK, "--model_name_or_path", str(models["classify"])]
    words += ["--train_file", "a.csv"]
    assert run_command(process.main_of("classify"), words) == 3
    (line,) = process.problems(capsys.readouterr().err)
    assert "a.csv:2: byte 0xf6 at offset " in line
    assert "add --encoding cp1252, if this is right: " in line
    assert line.endswith(
        "; then: no label column found; columns are 'Nr', 'Kommentar', 'Ort', 'Note';"
        " name it with --label_column_name"
    )
    assert not [p for p in tmp_path.iterdir() if p.name not in ("a.csv", "llmft-home")]


def test_rows_of_a_test_without_a_label_are_predicted(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All rows are; those that have a label are measured."""
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(table(["text", "label"], ROWS))
    blank = [("the film", ""), ("a good film", "NA")]
    Path("t.csv").write_text(table(["text", "label"], [*ROWS[:9], *blank]))
    common = [*process.QUICK, "--fast_path", "off", "--ladder", "false"]
    main = process.main_of("classify")
    train = ["--train_file", "a.csv", "--do_train", "--max_steps", "2"]
    given = ["--model_name_or_path", str(models["classify"]), "--output_dir", "run"]
    assert run_command(main, [*common, *train, *given]) == 0
    given = ["--model_name_or_path", "run/model", "--output_dir", "new"]
    test = ["--test_file", "t.csv", "--do_predict"]
    assert run_command(main, [*common, *test, *given]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "2 of 11 rows have no label (t.csv:11): predicted, not measured" in said
    rows = process.read_jsonl(tmp_path / "new" / "predictions.jsonl")
    assert [row["label"] for row in rows] == [
        *(str(i) for _, i in ROWS[:9]),
        None,
        None,
    ]
    right = sum(row["label"] == row["prediction"] for row in rows)
    found = process.read_json(tmp_path / "new" / "metrics.json")["test"]["accuracy"]
    assert (found["n"], found["value"]) == (9, pytest.approx(right / 9))
