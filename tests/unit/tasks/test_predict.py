"""``llmft predict`` and ``llmft.load`` against plain computations."""

import codecs
import csv
import gzip
import io
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pandas
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import llmft
from llmft import cli
from llmft.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvironmentFault,
    LengthError,
    LlmftError,
)
from llmft.files import try_lock
from llmft.process import libraries_as_before
from llmft.tasks import predict, prediction_output
from llmft.tasks.predictors import Classifier, Predictor
from llmft.train.steps import Steps

NAMES = {0: "bad", 1: "good", 2: "odd"}
KINDS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "number": "regression",
}
TEXTS = [*tiny.sentences(4), "a", "", *tiny.sentences(3, seed=1, words=40)]
PLAIN = ("--precision", "fp32", "--num_threads", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny classifiers by kind; of a run with its model; and of a pair."""
    root = tmp_path_factory.mktemp("models")
    for name, kind in KINDS.items():
        names = {0: "stars"} if name == "number" else NAMES
        labels = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
        tiny.save(root / name, "bert", "classification", problem_type=kind, **labels)
        weights = load_file(root / name / "model.safetensors")
        weights["classifier.weight"] *= 40  # else it says nearly the same of all texts
        save_file(weights, root / name / "model.safetensors", {"format": "pt"})
    arguments = {
        "do_train": True,
        "text_column_name": "body",
        "delimiter": ";",
        "max_seq_length": 16,
        "long_text": "split",
        "label_column_name": "stars",
    }
    for name, more in {"run": {}, "pairs": {"text_pair_column_name": "b"}}.items():
        shutil.copytree(root / "single", root / name / "model")
        given = arguments | more
        if more:
            given |= {"text_column_name": "a", "long_text": "truncate"}
        shown = {n: {"value": v, "from": "command line"} for n, v in given.items()}
        record = {"recipe": "classify", "status": "complete", "arguments": shown}
        (root / name / "run.json").write_text(json.dumps(record))
    return root


@pytest.fixture
def llmft_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        with libraries_as_before():
            cli._run(["predict", *map(str, argv)])

    return call


def logits_of(folder, *texts):
    """The logits of one text, or pair, alone: no padding, no batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    options = {"truncation": True, "max_length": 64, "return_token_type_ids": True}
    given = tokenizer(*texts, return_tensors="pt", **options)
    with torch.no_grad():
        return model(**given).logits[0].double()


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_gets_what_the_model_says_of_it_alone(models, kind):
    found = llmft.load(models / kind)(TEXTS)
    assert [row["text"] for row in found] == TEXTS
    for text, row in zip(TEXTS, found, strict=True):
        logits = logits_of(models / kind, text)
        if kind == "number":
            assert row["prediction"] == pytest.approx(float(logits[0]), abs=1e-5)
            assert row.keys() == {"text", "prediction"}
            continue
        several = kind == "multi"
        wanted = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        assert [*row["probabilities"].values()] == pytest.approx(wanted, abs=1e-5)
        assert [*row["probabilities"]] == [*NAMES.values()]
        if several:
            assert row["prediction"] == [
                n for n, p in row["probabilities"].items() if p >= 0.5
            ]
        else:
            assert row["probability"] == pytest.approx(max(wanted), abs=1e-5)
            assert row["prediction"] == NAMES[wanted.index(max(wanted))]


def test_a_threshold_and_pairs_are_those_that_are_given(models):
    for least in (0.0001, 0.3, 0.9999):
        model = llmft.load(models / "multi", multi_label_threshold=least)
        likely = logits_of(models / "multi", "a film").sigmoid() >= least
        wanted = [NAMES[i] for i in likely.nonzero()[:, 0].tolist()]
        assert model("a film")[0]["prediction"] == wanted
    wanted = logits_of(models / "single", "a film", "good").softmax(-1).tolist()
    same = {"text": "a film", "text_pair": "good"}
    found = llmft.load(models / "pairs")([("a film", "good"), same])
    for row in found:
        assert [*row["probabilities"].values()] == pytest.approx(wanted, abs=1e-5)
        assert row["text_pair"] == "good"


def test_windows_of_a_long_text_are_averaged(models):
    text = " ".join(tiny.WORDS[:30])
    (row,) = llmft.load(models / "run")(text)  # the run says split, 16 tokens
    tokenizer = AutoTokenizer.from_pretrained(models / "single")
    options = {"max_length": 16, "return_overflowing_tokens": True}
    windows = tokenizer(text, truncation=True, **options)["input_ids"]
    assert len(windows) == 3
    model = AutoModelForSequenceClassification.from_pretrained(models / "single")
    with torch.no_grad():
        each = [model(torch.tensor([ids])).logits[0] for ids in windows]
    wanted = torch.stack(each).mean(0).softmax(-1).tolist()
    assert [*row["probabilities"].values()] == pytest.approx(wanted, abs=1e-5)


def test_masks_are_filled_as_by_the_pipeline(tiny_bert):
    texts = ["the [MASK] was good.", "a <mask> film", "the [MASK] of [MASK] was sad"]
    found = llmft.load(tiny_bert)(texts)
    fill = pipeline("fill-mask", model=str(tiny_bert), top_k=5, device="cpu")
    for text, row in zip(texts, found, strict=True):
        wanted = fill(text.replace("<mask>", "[MASK]"))
        wanted = wanted if isinstance(wanted[0], list) else [wanted]
        assert len(row["fills"]) == len(wanted) == text.lower().count("mask")
        for ours, theirs in zip(row["fills"], wanted, strict=True):
            assert [f["token"] for f in ours] == [f["token_str"] for f in theirs]
            scores = [f["score"] for f in theirs]
            got = [f["probability"] for f in ours]
            assert got == pytest.approx(scores, abs=1e-5)
        assert row["prediction"] == [fills[0]["token"] for fills in row["fills"]]


def test_the_length_of_a_text_with_masks(tiny_bert):
    """Nothing is cut; what is longer than was asked for is refused."""
    long = "the [MASK] " + "film " * 20
    assert llmft.load(tiny_bert)(long)
    with pytest.raises(LlmftError, match="expected at most 16"):
        llmft.load(tiny_bert, max_seq_length=16)(long)
    with pytest.raises(LlmftError, match="is 65, this model has 64 positions"):
        llmft.load(tiny_bert, max_seq_length=65)
    with pytest.raises(ConfigError, match="no pairs"):
        llmft.load(tiny_bert)([("the [MASK]", "a film")])


def test_threads_share_a_model(tiny_bert):
    """A call picks the positions of its masks on the model itself."""
    model = llmft.load(tiny_bert)
    texts = ["the [MASK] was good", "a film was [MASK] and the man was sad"]
    alone = [model(text) for text in texts]
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(model, texts * 40)]
    assert found == alone * 40


def test_a_causal_model_completes_prompts(tiny_gpt2):
    model = llmft.load(tiny_gpt2, max_new_tokens=4)
    first = model(["the film", "a"], do_sample=False)
    assert [row["prompt"] for row in first] == ["the film", "a"]
    assert all(row["completion"] for row in first)
    assert model("a", do_sample=False) == first[1:]
    assert len(model("a", num_return_sequences=2)) == 2
    random.seed(1)  # the caller's own numbers go on
    wanted = random.Random(1).random()
    model("a")
    assert random.random() == wanted
    with pytest.raises(ConfigError, match="a prompt is tuple, expected str"):
        model([("a", "b")])
    with pytest.raises(ConfigError, match="seed is -1"):
        model("a", seed=-1)
    with pytest.raises(LlmftError, match="lone surrogate"):
        model("\ud83d")
    assert len(model(["a"] * 40, seed=2**32 - 1)) == 40  # more than a window
    with pytest.raises(ConfigError, match="the texts would be the same"):
        model("a", num_return_sequences=2, temperature=0.0)


# A column named label is no text, whatever is in it; that of the run is its own.
FILES = {
    "plain.csv": (("single",), "text,label\nx y,w\n"),
    "body.tsv": (("single",), "body\tlabel\nx y\tno such label\n"),
    "lines.txt": (("single",), "x y\n"),
    "rows.jsonl.gz": (("single",), '{"text": "x y"}\n'),
    "other.csv": (
        ("single", "--text_column_name", "b", "--delimiter", ";"),
        "a;b\n1;x y\n",
    ),
    "run.csv": (("run",), "body;stars;id\nx y;5;7\n"),
    "run.jsonl": (("run/model",), '{"body": "x y", "stars": null}\n'),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_all_formats_are_read_as_the_run_read_its_own(
    models, llmft_predict, capfdbinary, name
):
    (model, *flags), text = FILES[name]
    pack = gzip.compress if name.endswith(".gz") else bytes
    Path(name).write_bytes(pack(text.encode()))
    llmft_predict(models / model, name, *flags, *PLAIN)
    (line,) = capfdbinary.readouterr().out.decode().splitlines()
    row = json.loads(line)
    assert (row["row"], row["text"]) == (0, "x y")
    wanted = logits_of(models / "single", "x y").softmax(-1).tolist()
    assert [*row["probabilities"].values()] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_other_columns_go_along(models, llmft_predict, capfdbinary, ending):
    table = pandas.DataFrame({"text": ["x y", "z"], "id": ["007", None], "n": [1, 2]})
    if ending == "parquet":
        table["day"] = pandas.to_datetime(["2024-01-02", None])
    write = {"csv": table.to_csv, "parquet": table.to_parquet}
    if ending == "jsonl":
        table.to_json("in.jsonl", orient="records", lines=True)
    else:
        write[ending](f"in.{ending}", index=False)
    kept = ["n", "id", *(["day"] if ending == "parquet" else [])]
    llmft_predict(models / "single", f"in.{ending}", *PLAIN, "--keep_columns", *kept)
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    one = "1" if ending == "csv" else 1
    assert (rows[0]["n"], rows[0]["id"]) == (one, "007")
    assert rows[1]["id"] == ("" if ending == "csv" else None)
    assert [row["text"] for row in rows] == ["x y", "z"]
    if ending == "parquet":
        assert rows[0]["day"].startswith("2024-01-02")


def test_a_csv_for_excel_begins_with_its_mark_once(models, llmft_predict):
    Path("in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in HARD))
    for out, flags in (("plain.csv", ()), ("excel.csv", ("--bom",))):
        flags = ("--output_file", out, *flags, *PLAIN)
        llmft_predict(models / "single", "in.jsonl", *flags)
    plain, marked = (Path(n).read_bytes() for n in ("plain.csv", "excel.csv"))
    assert marked == codecs.BOM_UTF8 + plain
    flags = ("--output_file", "german.csv", "--output_delimiter", ";", *PLAIN)
    llmft_predict(models / "single", "in.jsonl", *flags)
    with open("german.csv", newline="", encoding="utf-8") as stream:
        found = [row["text"] for row in csv.DictReader(stream, delimiter=";")]
    assert found == HARD
    out, flags = "comma.csv", (*flags[2:], "--output_decimal", ",")
    llmft_predict(models / "single", "in.jsonl", "--output_file", out, *flags)
    plain, german = (
        [*csv.reader(io.StringIO(Path(n).read_bytes().decode()), delimiter=sign)]
        for n, sign in (("plain.csv", ","), (out, ";"))
    )
    assert plain[0] == german[0]
    at = [i for i, name in enumerate(plain[0]) if name.startswith("prob")]
    assert [r[i].replace(".", ",") for r in plain[1:] for i in at] == [
        r[i] for r in german[1:] for i in at
    ]
    assert all("," in row[at[-1]] for row in german[1:])


HARD = ['say "no"', "two\nlines", "a\rb", "=1+1", "é 电影", "a,b;c", " x "]


def test_formulas_of_a_csv_are_counted_and_escaped_where_asked(
    models, llmft_predict, capsys
):
    """As OWASP has it; what is faithful stays the default."""
    texts = ["=HYPERLINK(1)", "+1", "-1", "@a", "\tb", "a = b", "1-1"]
    Path("in.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for out, flags, how in (
        ("raw.csv", (), "--escape_formulas"),
        ("safe.csv", ("--escape_formulas",), "escaped"),
    ):
        llmft_predict(
            models / "single", "in.jsonl", "--output_file", out, *flags, *PLAIN
        )
        said = f"  5 cells that a spreadsheet takes for formulas ({how})\n"
        assert said in capsys.readouterr().err
        with open(out, newline="", encoding="utf-8") as stream:
            found = [row["text"] for row in csv.DictReader(stream)]
        safe = [f"'{text}" for text in texts[:5]] + texts[5:]
        assert found == (safe if flags else texts)


@pytest.mark.parametrize("kind", KINDS)
def test_csv_and_jsonl_hold_the_same(models, llmft_predict, kind):
    Path("in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in HARD))
    for out in ("out.jsonl", "out.csv"):
        llmft_predict(models / kind, "in.jsonl", "--output_file", out, *PLAIN)
    with open("out.csv", newline="", encoding="utf-8") as stream:
        table = [*csv.DictReader(stream)]
    for number, (ours, cells) in enumerate(
        zip(rows_of("out.jsonl"), table, strict=True)
    ):
        assert (ours["row"], ours["line"]) == (number, number + 1)
        assert cells["text"] == ours["text"] == HARD[number]
        said = cells["prediction"]
        if kind == "number":
            assert float(said) == ours["prediction"]
        elif kind == "multi":
            assert json.loads(said) == ours["prediction"]
        else:
            assert said == ours["prediction"]
        for label, p in ours.get("probabilities", {}).items():
            assert float(cells[f"probabilities.{label}"]) == p
    assert {p.name for p in Path().iterdir()} == {"in.jsonl", "out.jsonl", "out.csv"}


def test_texts_of_the_command_line_become_a_table(
    models, tiny_bert, llmft_predict, capsys
):
    llmft_predict(models / "single", "--text", "a film", "--text", "b\x1b[2J", *PLAIN)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    head, first, *_ = out.strip().split("\n\n")[0].splitlines()[0:3]
    assert (head, first.split()) == ("a film", ["label", "probability"])
    llmft_predict(models / "number", "--text", "a film", *PLAIN)
    wanted = float(logits_of(models / "number", "a film")[0])
    assert f"\n  {wanted:.6g}"[:8] in capsys.readouterr().out
    llmft_predict(models / "number", "--text", "a \u2603", *PLAIN)
    assert "1 token is unknown to this model ([UNK])\n" in capsys.readouterr().err
    llmft_predict(tiny_bert, "--text", "the [MASK] was good", *PLAIN)
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 5


def test_what_a_file_lacks_is_told_before_the_model_is_loaded(
    models, llmft_predict, monkeypatch
):
    def load(*args):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(predict, "load_predictor", load)
    Path("f.csv").write_text("review,n\nfine,1\n")
    flags = ("f.csv", "--text_column_name", "reviw", *PLAIN)
    with pytest.raises(DataError, match="did you mean review"):
        llmft_predict(models / "single", *flags)


def test_a_file_of_utf_8_is_read_so_also_after_a_run_of_another_encoding(
    models, llmft_predict, capsys, monkeypatch
):
    monkeypatch.setattr(
        "llmft.tasks.named.Named.recorded",
        lambda self, name: "cp1252" if name == "encoding" else None,
    )
    Path("f.csv").write_text("text\n99 \u20ac\n", "utf-8")
    flags = ("--output_file", "o.jsonl", *PLAIN)
    llmft_predict(models / "single", "f.csv", *flags)
    assert [row["text"] for row in rows_of("o.jsonl")] == ["99 \u20ac"]
    said = "encoding   Unicode, as f.csv is; that of the run: cp1252\n"
    assert said in capsys.readouterr().err
    Path("o.jsonl").unlink()
    for encoding, name in (("cp1252", "f.csv"), ("utf-16", "f.csv"), ("utf-8", "in")):
        path = Path(name) / "f.csv" if name == "in" else Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("text\n99 \u20ac\n", encoding)
        llmft_predict(models / "single", name, *flags)
        assert [row["text"] for row in rows_of("o.jsonl")] == ["99 \u20ac"]
        Path("o.jsonl").unlink()
    # A damaged byte is told by its line, never read as another encoding.
    Path("f.csv").write_bytes("text\n99 \u20ac \u00e9\nx".encode() + b"\x93\n")
    with pytest.raises(DataError, match=r"f.csv:3"):
        llmft_predict(models / "single", "f.csv", *flags)


REFUSED = [
    ("{single}", ConfigError, "give either a FILE or --text"),
    ("{single} f.txt --text x", ConfigError, "give either a FILE or --text"),
    ("{single} --text x --text_pair a --text_pair b", ConfigError, "for each --text"),
    ("{single} --text x --output_file o.csv", ConfigError, "of a FILE"),
    ("{single} --text x --keep_columns id", ConfigError, "keep_columns is for the pre"),
    ("{single} f.txt --keep_columns line", ConfigError, "keep_columns has line, which"),
    ("{single} f.txt --keep_columns probability", ConfigError, "has probability,"),
    (
        "{single} f.txt --output_file o.csv --output_decimal , --output_delimiter ,",
        ConfigError,
        "output_decimal is , as output_delimiter is",
    ),
    (
        "{single} f.txt --output_file o.csv --output_delimiter=",
        ConfigError,
        "output_delimiter is '', expected one character, or tab",
    ),
    ("{single} f.txt --keep_columns id", DataError, "no column 'id'"),
    ("{single} f.txt --output_file o.xlsx", ConfigError, "ends in .csv or .jsonl"),
    ("{single} f.txt --output_file f.csv", ConfigError, "output_file is there"),
    (
        "{single} f.txt --output_file o.csv --output_delimiter ;;",
        ConfigError,
        "output_delimiter is ';;', expected one character, or tab",
    ),
    ("{single} f.txt --output_file o.jsonl --bom", ConfigError, "bom is for an output"),
    ("{single} f.txt --output_file no/o.csv", ConfigError, "folder is not there"),
    ("{single} f.txt --max_seq_length 3", ConfigError, "max_seq_length is '3'"),
    ("{single} f.txt --max_seq_length 80", ConfigError, "has 64 positions"),
    ("{single} f.txt --encoding nope", ConfigError, "encoding is 'nope'"),
    ("{single} none.txt", DataError, "no such file"),
    ("{single} f.csv --output_file o.csv", DataError, "f.csv:2"),
    (
        "{single} f.txt --long_text error --max_seq_length 8 --output_file o.csv",
        LengthError,
        "f.txt:1",
    ),
    ("{pairs} --text x", ConfigError, "trained on pairs"),
    ("{mlm} f.txt", DataError, "f.txt:1: a text without a mask"),
    ("{gpt} f.txt", ConfigError, "llmft generate --model_name_or_path"),
    ("pypi:all-MiniLM-L6-v3 --text x", ConfigError, "pypi:all-MiniLM-L6-v3"),
    ("empty --text x", ConfigError, "no run and no model"),
    ("nowhere --text x", EnvironmentFault, "no run in outputs has that in its"),
]


@pytest.mark.parametrize(("argv", "error", "said"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    models, tiny_bert, tiny_gpt2, llmft_predict, argv, error, said
):
    Path("f.txt").write_text("the film was good and the man was very very sad\n")
    Path("f.csv").write_text("text\n\x00\n")
    Path("empty").mkdir()
    places = {n: models / n for n in ("single", "pairs")}
    places |= {"mlm": tiny_bert, "gpt": tiny_gpt2}
    before = {p.name for p in Path().iterdir()}
    with pytest.raises(error) as found:
        llmft_predict(
            *(word.format(**places) for word in argv.split()), "--num_threads", 1
        )
    assert said in str(found.value)
    assert {p.name for p in Path().iterdir()} - {"llmft-home"} == before


def test_a_run_is_found_by_a_part_of_its_name(models, llmft_predict, capsys):
    for name in ("2026-a1", "2026-a2"):
        shutil.copytree(models / "run", Path("outputs", "classify", name))
    llmft_predict("a2", "--text", "x", *PLAIN)
    assert "good" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="in the name of 2 runs"):
        llmft_predict("2026", "--text", "x")
    shutil.rmtree("outputs/classify/2026-a2/model")
    with pytest.raises(ConfigError, match="this run saved no model"):
        llmft_predict("a2", "--text", "x")


@contextmanager
def stopping_in_the_third_window(monkeypatch):
    calls = []

    def stop(self, source):
        calls.append(source)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Predictor.__call__(self, source)

    with monkeypatch.context() as during:
        during.setattr(Classifier, "__call__", stop)
        yield


@pytest.fixture
def stopped(models, llmft_predict, monkeypatch):
    """A command that was stopped in its third window of four, with 8 rows each."""
    monkeypatch.setattr(predict, "WINDOW", 8)
    texts = [" ".join(tiny.WORDS[i : i + i % 7 + 1]) for i in range(30)]
    Path("in.txt").write_text("\n".join(texts))
    command = (models / "single", "in.txt", "--output_file", "out.csv", *PLAIN)
    whole = (*command[:3], "whole.csv", *PLAIN)
    llmft_predict(*whole)
    with stopping_in_the_third_window(monkeypatch), pytest.raises(KeyboardInterrupt):
        llmft_predict(*command)
    assert len(rows := Path("out.csv.part").read_text().splitlines()) == 17, rows
    return command


def test_a_command_that_was_stopped_goes_on(stopped, llmft_predict, capsys):
    with open("out.csv.part", "ab") as part:
        part.write(b"a torn li")
    llmft_predict(*stopped)
    assert "after 16 rows" in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not [*Path().glob("*.part*")]


def test_what_is_fastest_is_tried_on_the_first_texts(
    models, llmft_predict, monkeypatch, capsys
):
    monkeypatch.setattr(predict, "FEW", 4)
    texts = tiny.sentences(4)
    for count in (3, 4):
        Path("in.txt").write_text("\n".join(texts[:count]))
        llmft_predict(models / "single", "in.txt", "--num_threads", 1)
        out, said = capsys.readouterr()
        assert ("  precision " in said, "  attention " in said) == (count == 4,) * 2
        for line, text in zip(out.splitlines(), texts, strict=False):
            wanted = logits_of(models / "single", text).softmax(-1).tolist()
            found = [*json.loads(line)["probabilities"].values()]
            assert found == pytest.approx(wanted, abs=0.05)  # it may be bf16


def test_the_trial_is_of_batches_as_they_are_predicted(
    models, llmft_predict, monkeypatch, capsys
):
    texts = tiny.sentences(40) * 50
    Path("in.txt").write_text("\n".join(texts))
    tried, predicted = set(), []
    run, batches = Steps.run, Predictor.batches

    def seen_run(self, candidate, part, *trains):
        tried.add(len(part))
        run(self, candidate, part, *trains)

    def seen_batches(self, features):
        for places, batch in batches(self, features):
            predicted.append(len(places))
            yield places, batch

    monkeypatch.setattr(Steps, "run", seen_run)
    monkeypatch.setattr(Predictor, "batches", seen_batches)
    llmft_predict(models / "single", "in.txt", "--max_seq_length", 16)
    assert "trying " in capsys.readouterr().err
    typical = int(np.repeat(predicted, predicted)[len(texts) // 2])
    assert tried == {1, typical // 2, typical}  # to see if it runs, contest, whole


def test_bf16_is_taken_where_it_is_asked_for(models):
    for asked, taken in (({}, "fp32"), ({"precision": "bf16"}, "bf16")):
        assert llmft.load(models / "single", **asked).predictor.precision == taken


def test_what_was_chosen_before_is_taken_again(stopped, llmft_predict, monkeypatch):
    state = json.loads(Path("out.csv.part.state").read_text())
    assert state["choices"] == {"precision": "fp32", "attention": "sdpa"}
    state["choices"] = {"precision": "bf16", "attention": "eager"}
    Path("out.csv.part.state").write_text(json.dumps(state))
    monkeypatch.setattr(predict, "FEW", 0)
    monkeypatch.setattr(Predictor, "choose", lambda *_: pytest.fail("tried again"))
    taken = []
    take = Predictor.take
    monkeypatch.setattr(
        Predictor, "take", lambda self, *a, **k: (taken.append(k), take(self, *a, **k))
    )
    llmft_predict(*stopped)
    assert taken == [{"precision": "bf16", "attention": "eager"}]


def _other_input():
    Path("in.txt").write_text("\n".join(["a film"] * 30))


def _cut_part():
    Path("out.csv.part").write_text("short")


def _no_state():
    Path("out.csv.part.state").unlink()


CHANGED = {
    "input": (_other_input, (), "other input; give the same as before, or remove"),
    "arguments": (None, ("--max_seq_length", 9), "made with other arguments"),
    "cut": (_cut_part, (), "the part has 5 bytes of"),
    "state": (_no_state, (), "nothing says what this part"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_part_of_something_else_is_refused(stopped, llmft_predict, name):
    change, flags, said = CHANGED[name]
    if change:
        change()
    before = Path("out.csv.part").read_bytes()
    with pytest.raises(CheckpointError, match=said):
        llmft_predict(*stopped, *flags)
    assert Path("out.csv.part").read_bytes() == before


def test_a_part_that_was_taken_away_begins_anew(stopped, llmft_predict):
    Path("out.csv.part").unlink()
    llmft_predict(*stopped)
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not [*Path().glob("*.part*")]


@pytest.mark.parametrize("same", [True, False])
def test_standard_input_goes_on_only_where_it_is_the_same(
    stopped, llmft_predict, monkeypatch, same
):
    """The input of the part is told by its hash: the number of rows is the same."""
    text = Path("in.txt").read_text()

    def give(words):
        stream = io.TextIOWrapper(io.BytesIO(words.encode()))
        monkeypatch.setattr("sys.stdin", stream)
        rest = ("--output_file", "piped.csv", "--file_format", "txt", *PLAIN)
        llmft_predict(stopped[0], "-", *rest)

    with stopping_in_the_third_window(monkeypatch), pytest.raises(KeyboardInterrupt):
        give(text)
    if same:
        give(text)
        assert len(Path("piped.csv").read_text().splitlines()) == 31
        return
    with pytest.raises(CheckpointError, match="made with other input"):
        give(text.replace("the", "a"))


def test_two_processes_do_not_write_one_file(stopped, llmft_predict):
    with open("out.csv.part", "rb") as other:
        assert try_lock(other.fileno())
        with pytest.raises(EnvironmentFault, match="another process is writing there"):
            llmft_predict(*stopped)


def test_standard_input_is_read(models, llmft_predict, monkeypatch, capfdbinary):
    pipe = io.TextIOWrapper(io.BytesIO(b"a film\nx\n"))
    monkeypatch.setattr("sys.stdin", pipe)
    flags = ("--file_format", "txt", *PLAIN)
    llmft_predict(models / "single", "-", *flags)
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a film", "x"]


def test_a_reader_that_has_gone_ends_it(models, llmft_predict, monkeypatch):
    monkeypatch.setattr(predict, "WINDOW", 8)
    Path("in.txt").write_text("a film\n" * 20)
    written = []

    def write(self, rows, counts):
        written.append(rows)
        self.over = True

    monkeypatch.setattr(prediction_output.Printed, "write", write)
    llmft_predict(models / "single", "in.txt", *PLAIN)
    assert len(written) == 1


def test_what_is_cut_or_empty_is_counted(models, llmft_predict, capsys):
    Path("in.csv").write_text('text\n""\n' + "a film " * 40 + "\n\u2603\u2602 x\n")
    llmft_predict(models / "single", "in.csv", *PLAIN)
    said = capsys.readouterr().err
    assert "  1 text is empty; used all the same\n" in said
    assert "  1 text is cut, of more than 64 tokens\n" in said
    unknown = r"  (1 token is|[2-9] tokens are) unknown to this model \(\[UNK\]\)\n"
    assert re.search(unknown, said)
    assert "predicted  3 rows in " in said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: llmft.load(m, max_seq_len=3), "did you mean max_seq_length"),
        (lambda m: llmft.load(m, max_seq_length="x"), "max_seq_length is 'x'"),
        (lambda m: llmft.load(m, max_seq_length=1.5), "max_seq_length is 1.5"),
        (lambda m: llmft.load(m, temperature=1.0), "unknown argument temperature"),
        (lambda m: llmft.load(m)([3]), "a text is int, expected str"),
        (lambda m: llmft.load(m)([("a", "b"), "c"]), "some texts have a pair"),
        (lambda m: llmft.load(m)([{"txt": "a"}]), "a text is dict"),
        (lambda m: llmft.load(m)("caf\udce9"), "holds byte 0xe9, which is not of its"),
    ],
)
def test_load_says_what_is_wrong(models, call, said):
    with pytest.raises(LlmftError) as found:
        call(models / "single")
    assert said in str(found.value)


def test_no_texts_are_no_predictions(models):
    assert llmft.load(models / "single")([]) == []


def test_other_columns_that_are_objects_go_along_as_json(models, llmft_predict):
    rows = [{"text": "x", "meta": {"a": 1}}, {"text": "y", "meta": {"b": 2}}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--keep_columns", "meta", "--output_file", "o.csv", *PLAIN)
    llmft_predict(models / "single", "in.jsonl", *flags)
    with open("o.csv", newline="", encoding="utf-8") as stream:
        found = [json.loads(row["meta"]) for row in csv.DictReader(stream)]
    assert found == [{"a": 1}, {"b": 2}]


def test_a_number_for_each_of_three_names_is_no_regression_of_one(tmp_path):
    names = {0: "valence", 1: "arousal", 2: "dominance"}
    labels = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    kind = {"problem_type": "regression", **labels}
    tiny.save(tmp_path / "vad", "bert", "classification", **kind)
    with pytest.raises(ConfigError, match="it gives 3 numbers for a text"):
        llmft.load(tmp_path / "vad")


def test_half_a_character_in_a_column_that_goes_along(models, llmft_predict):
    Path("in.jsonl").write_text('{"text": "x", "name": "a \\ud83d"}\n')
    flags = ("--keep_columns", "name", "--output_file", "o.jsonl", *PLAIN)
    llmft_predict(models / "single", "in.jsonl", *flags)
    assert rows_of("o.jsonl")[0]["name"] == "a \ud83d"


def test_a_file_that_came_meanwhile_is_not_replaced(models, llmft_predict, monkeypatch):
    Path("in.csv").write_text("text\nx\n")
    write = prediction_output.Part.write

    def meanwhile(self, rows, counts):
        write(self, rows, counts)
        self.target.write_text("precious")

    monkeypatch.setattr(prediction_output.Part, "write", meanwhile)
    with pytest.raises(EnvironmentFault, match="came while the predictions were made"):
        llmft_predict(models / "single", "in.csv", "--output_file", "o.csv", *PLAIN)
    assert Path("o.csv").read_text() == "precious"
    assert len(Path("o.csv.part").read_text().splitlines()) == 2


def test_rows_for_a_terminal_are_printed_there(monkeypatch, capsys):
    """Also where what else is said goes to standard error."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    printed = prediction_output.Printed()
    with redirect_stdout(io.StringIO()) as elsewhere:
        printed.write([{"prediction": "good"}], {})
    assert (terminal.getvalue(), elsewhere.getvalue()) == (
        '{"prediction": "good"}\n',
        "",
    )
