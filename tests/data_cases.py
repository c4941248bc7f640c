"""Files with faults, and what a recipe has to make of each.

One list for the tests and for ``scripts/data_faults.py``, which prints the table of
today's ``datasets`` and ``TrainingArguments`` beside llmft. The ids are those of the
matrix of faults: D of data, E of arguments.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import tiny

Content = bytes | Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """Files, the flags of a run on them, and its outcome.

    Attributes:
        said: what the one line of the error says, or (code 0) what the output says.
        flags: beside those that name the model; the first file is train_file unless
            they name one, or a file of arguments.
        model: one of ``models``; that of the recipe where there is none.
    """

    id: str
    what: str
    files: dict[str, Content]
    said: str
    code: int = 3
    flags: tuple[str, ...] = ()
    recipe: str = "classify"
    kind: str = "DataFormatError"
    model: str = ""

    @property
    def name(self) -> str:
        return f"{self.id} {self.what}".replace(" ", "-")

    def write(self, folder: Path) -> list[Path]:
        """Write the files; return their paths."""
        paths = []
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content() if callable(content) else content)
            paths.append(path)
        return paths

    def command_line(self, models: dict[str, Path]) -> list[str]:
        """Return the flags of a run that checks everything and trains nothing."""
        model = models[self.model or self.recipe]
        named = {"--train_file", "--args"}.intersection(self.flags)
        file = [] if named else ["--train_file", next(iter(self.files))]
        return [*FLAGS, "--model_name_or_path", str(model), *file, *self.flags]


FLAGS = (
    *("--do_train", "--dry_run", "--num_threads", "1", "--precision", "fp32"),
    *("--attn_implementation", "eager", "--max_seq_length", "32"),
)


def models(folder: Path) -> dict[str, Path]:
    """Make a tiny model for each recipe, and three with faults of their own."""
    made = {
        name: tiny.save(folder / name, "bert", "masked-lm")
        for name in ("classify", "mlm", "foreign tokenizer", "no pad token")
    }
    made["no mask token"] = tiny.save(folder / "gpt2", "gpt2", "causal-lm")
    made["chat"] = tiny.save(folder / "chat", "llama", "causal-lm")
    (made["chat"] / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    made["strict chat"] = tiny.save(folder / "strict chat", "llama", "causal-lm")
    (made["strict chat"] / "chat_template.jinja").write_text(ALTERNATE)
    more = tiny.wordpiece_tokenizer("\u00e4\u00f6\u00fc")
    more.save_pretrained(made["foreign tokenizer"])
    bare = tiny.wordpiece_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(made["no pad token"])
    return made


def rows(count: int = 24, start: int = 0) -> list[dict[str, str]]:
    """Return rows of two classes, each text another one."""
    return [
        {"text": f"the {i} film was good", "label": ("pos", "neg")[i % 2]}
        for i in range(start, start + count)
    ]


def csv(more: str = "", count: int = 24, header: str = "text,label") -> bytes:
    lines = [header, *(f"{r['text']},{r['label']}" for r in rows(count))]
    return ("\n".join(lines) + "\n" + more).encode()


def jsonl(more: str = "", count: int = 24) -> bytes:
    return ("".join(json.dumps(row) + "\n" for row in rows(count)) + more).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows(2000)), sink)
    return sink.getvalue()


def arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def only(content: Content, ending: str = "csv") -> dict[str, Content]:
    return {f"a.{ending}": content}


def with_test(test: str) -> dict[str, Content]:
    return {"a.csv": csv(), "t.csv": test.encode()}


def arguments(values: str) -> dict[str, Content]:
    return {
        "args.json": f'{{"train_file": "a.csv", {values}}}'.encode(),
        "a.csv": csv(),
    }


def wrong(id: str, what: str, values: str, said: str) -> Case:
    """A file of arguments with a fault, which is checked before any data."""
    flags = ("--args", "args.json")
    return Case(id, what, arguments(values), said, 2, flags, kind="ConfigError")


TEST = ("--test_file", "t.csv", "--do_predict", "--do_eval")
MANY = "".join(f"text {i},{'pn'[i % 2]}\n" for i in range(12_000))
STRINGS = ("NA", "null", "None", "nan", "007", "1e5", "true", "2020-01-01")

# As many templates do.
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BITS = b"id,comment_text,toxic,obscene\n" + b"".join(
    b"%x,you are all a film %d,%d,%d\n" % (7**i, i, i % 2, i % 3 == 0)
    for i in range(24)
)
SAVED = {"dataset_info.json": b"{}", "state.json": b'{"_split": null}'}


def saved(start: int = 0) -> bytes:
    return arrow(pa.Table.from_pylist(rows(start=start)))


def talks_csv(count: int) -> bytes:
    lines = ["messages"]
    for i in range(count):
        roles = ("user", "assistant")
        talk = json.dumps([{"role": r, "content": f"the film {i}"} for r in roles])
        lines.append('"' + talk.replace('"', '""') + '"')
    return ("\n".join(lines) + "\n").encode()


def sharegpt(more: bytes = b"") -> bytes:
    """Conversations of two turns, and in line 25 one that the assistant begins."""
    talks = [("human", "gpt")] * 24 + [("gpt", "human", "gpt")]
    lines = [
        {"conversations": [{"from": s, "value": f"film {i}"} for s in speakers]}
        for i, speakers in enumerate(talks)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode() + more


def damaged() -> bytes:
    """The same, with a byte that is not UTF-8 and a line that is too long."""
    talk = b'{"conversations": [{"from": "gpt", "value": "%s"}]}\n'
    fine = "größer und schöner".encode()
    return sharegpt(talk % fine + talk % b"\xff" + talk % (b"x" * (17 << 20)))


# Files that are a little odd, the note of each, and what it is with --strict.
NOTED: list[tuple[str, dict[str, Content], str, tuple[str, ...], str]] = [
    ("columns without a name", only(csv().replace(b"\n", b",,\n")),
     "2 columns without a name not used", (), "2 columns without a name not used"),
    ("values in such columns", only(csv("a,pos,so\n").replace(b"label\n", b"label,\n")),
     "1 row holds something in columns without a name (a.csv:26)", (), "a column"),
    ("columns named twice", only(csv().replace(b"\n", b",1,2\n").replace(
        b"label,1,2", b"label,n,n")), "columns named twice: 'n'", (), "columns named "),
    ("rows of separators", only(csv(",\n,\n")),
     "2 rows of empty fields passed over (a.csv:26, ...)", (), "rows of empty fields "),
    ("empty fields too many", only(csv("so,pos,,\n")),
     "1 row ends in empty fields, left out (a.csv:26)", (), "rows end in empty fields"),
    ("sep=; above", only(b"sep=;\n" + csv().replace(b",", b";")),
     "Excel's 'sep=;' above the column names", (), "Excel's 'sep=;' above the column"),
    ("semicolons", only(csv("x, y;pos\n").replace(b",", b";").replace(b"; y", b", y")),
     "separated by ';'", (), "separated by ';'"),
    ("tabs in a csv", only(csv().replace(b",", b"\t")), "separated by tabs", (),
     "separated by tabs"),
    ("UTF-16 with its mark", only(csv().decode().encode("utf-16")),
     "read as utf-16, by its byte-order mark", (), "read as utf-16, by its byte-order"),
    ("a folder of save_to_disk", {"in/data-00000-of-00001.arrow": saved, **{
        f"in/{n}": c for n, c in SAVED.items()}}, "22 rows of in (1 file",
     ("--train_file", "in"), ""),
    ("a folder of save_to_disk of several splits", {
        "in/dataset_dict.json": b"{}",
        **{f"in/{p}/{n}": c for p in ("train", "test") for n, c in SAVED.items()},
        "in/train/data-00000-of-00001.arrow": saved,
        "in/test/data-00000-of-00001.arrow": lambda: saved(50)},
     "24 rows of in (1 file of test", ("--train_file", "in", "--do_predict"), ""),
    ("files with other columns that are not used", {
        "in/a.csv": csv(), "in/b.csv": csv().replace(b"\n", b",1\n").replace(
            b"label,1", b"label,n").replace(b"the", b"a")},
     "columns that are not used differ", ("--train_file", "in"), "columns that are no"),
    *((f"the ending {e}", only(c, e), f"22 rows of a.{e}", (), "")
      for e, c in (("ndjson", jsonl()), ("JSONL", jsonl()), ("CSV", csv()))),
    ("JSON lines named json", only(jsonl(), "json"), "22 rows of a.json", (), ""),
    ("columns in another case", only(csv(header="Text,LABEL")),
     "text = 'Text', label = 'LABEL'", (), ""),
    ("two columns of which one is known", only(csv(header="review,sentiment")),
     "text = 'review', label = 'sentiment'", (), ""),
    ("two columns of which one has sentences", only(csv(header="v1,v2")),
     "text = 'v1', label = 'v2'", (), ""),
    ("whole numbers with a point", only(csv().replace(b",pos", b",1.0").replace(
        b",neg", b",0.0")), "labels such as 1.0 taken for the class 1", (),
     "labels such as 1.0 taken for"),
    ("True and true", only(csv("so,true\n").replace(b",pos", b",True")),
     "1 label that differs from 'True' by case alone, taken for it (a.csv:26)", (),
     "labels that differ from 'True' by case"),
    ("decimal commas", only(csv().replace(b",", b";").replace(b";pos", b";4,5").replace(
        b";neg", b";3,0")), "24 numbers with a decimal comma (a.csv:2, ...)", (),
     "separated by ';'"),
    ("NUL characters", only(csv("so\0so,pos\n")),
     "1 text holds NUL characters (a.csv:26)", ("--allow", "nul"), ""),
    ("columns of 0 and 1", only(BITS), "text = 'comment_text'",
     ("--label_column_name", "toxic", "obscene"), ""),
]  # fmt: skip

CASES = [
    # Files that hold nothing, or are none.
    *(
        Case("D01", f"empty {e}", only(b"", e), f"a.{e}: 0 bytes; expected at le")
        for e in ("csv", "tsv", "json", "jsonl", "txt", "parquet", "arrow")
    ),
    Case("D02", "header only", only(b"text,label\n"), "a.csv: 0 rows: a header line"),
    Case("D02", "blank lines only", only(b"\n \n\n", "jsonl"), "a.jsonl: 0 rows",
         kind="DataError"),
    Case("D03", "a pattern without files", {"a.csv": csv()},
         "b*.csv: no file matches, from ", flags=("--train_file", "b*.csv"),
         kind="DataError"),
    Case("D04", "a folder without data", {"in/a.md": b"x"},
         "in: a folder without files that end in csv, tsv",
         flags=("--train_file", "in"), kind="DataError"),
    Case("D04", "an Excel file named csv", only(b"PK\x03\x04" + bytes(50)),
         "a.csv: an Excel workbook or another zip file, not text; export it as csv"),
    # Encodings and line ends.
    Case("D05", "a byte-order mark", only(b"\xef\xbb\xbf" + csv()),
         "byte-order mark left out", 0),
    Case("D06", "gbk", only("text,label\n好,a\n坏,b\n".encode("gbk")),
         "a.csv:2: byte 0xba at offset 11 is not UTF-8; ", kind="EncodingError"),
    Case("D06", "latin-1", only("text,label\nschön süß,a\nfaß,b\n".encode("latin1")),
         "looks like cp1252; add --encoding cp1252, if this is right: 'schön süß,a'",
         kind="EncodingError"),
    Case("D07", "UTF-16 with its mark as another", only(
        csv().decode().encode("utf-16")), "a.csv: UTF-16, by its byte-order mark, not"
         " cp1252; expected UTF-8; add --encoding utf-16",
         flags=("--encoding", "cp1252"), kind="EncodingError"),
    Case("D07", "UTF-16 without", only(csv().decode().encode("utf-16-le")),
         "a.csv: looks like utf-16-le: every other byte is NUL; expected UTF-8; add"
         " --encoding utf-16-le", kind="EncodingError"),
    Case("D08", "other line ends", only(
        "".join(f"{i} one\r\n{i} a\rb\u2028c\x0bd\x85e\n" for i in range(20))
        .encode(), "txt"), "20 texts hold lone carriage returns", 0, recipe="mlm"),
    Case("D09", "a NUL byte", only(csv("a\0b,pos\n")),
         "a.csv:26: 'text' holds a NUL byte, as character 2; expected text"),
    # Files made to do harm, and damaged ones.
    Case("D10", "a line without end", only(lambda: b"text,label\n" + b"x" * (17 << 20)),
         "a.csv:2: a line of more than 16,777,216 characters"),
    Case("D11", "a gz cut off", only(lambda: gzip.compress(csv())[:-9], "csv.gz"),
         "a.csv.gz: damaged gzip file: Truncated compressed stream, after "),
    Case("D11", "a gz with a wrong checksum", only(
        lambda: gzip.compress(csv())[:-8] + bytes(8), "csv.gz"),
         "a.csv.gz: damaged gzip file: zlib inflate failed: incorrect "),
    Case("D11", "a gz with more behind it", only(
        lambda: gzip.compress(csv()) + b"junk", "csv.gz"),
         "a.csv.gz: damaged gzip file: "),
    Case("D11", "a gz of two members", only(
        lambda: gzip.compress(csv()[:99]) + gzip.compress(csv()[99:]), "csv.gz"),
         "22 rows of a.csv.gz", 0),
    Case("D12", "a gz bomb", only(
        lambda: gzip.compress((b"0" * 999 + b"\n") * (1 << 17)), "txt.gz"),
         "a.txt.gz: unpacks to more than 200 times its ", recipe="mlm"),
    Case("D13", "a parquet cut off", only(lambda: parquet()[:-100], "parquet"),
         "a.parquet: damaged, or not a parquet file: "),
    # Rows.
    Case("D14", "malformed JSON", only(jsonl('{"text": "a", label}\n'), "jsonl"),
         "a.jsonl:25:15: not JSON: "),
    Case("D14", "a last line cut off", only(jsonl('{"text": "a", "lab'), "jsonl"),
         "a.jsonl:25:15: not JSON: Unterminated string starting at near "),
    Case("D15", "a key twice", only(jsonl('{"text": "a", "text": "b"}'), "jsonl"),
         "a.jsonl:25: 'text' occurs twice in an object"),
    Case("D15", "a line that is no object", only(jsonl("5\n"), "jsonl"),
         "a.jsonl:25: not a JSON object: 5; expected "),
    Case("D15", "two objects in a line", only(jsonl('{"text": "a"} {"text": "b"}'),
         "jsonl"), "a.jsonl:25:15: not JSON: Extra data near "),
    Case("D16", "a text that is a number", only(
        jsonl('{"text": 5, "label": "pos"}'), "jsonl"),
         "a.jsonl:25: 'text' is 5 (int); expected text in every row",
         kind="SchemaError"),
    Case("D17", "texts that look like something else", only(
        csv("".join(f"{s},pos\n" for s in STRINGS))), "29 rows of a.csv", 0),
    # Labels.
    Case("D18", "labels spelled in two ways", only(csv("a,Pos\n")),
         "a.csv:26: the labels 'pos' (11 rows) and 'Pos' (1 row) look like one class",
         kind="LabelError"),
    Case("D18", "7 and 007", only(b"text,label\na,7\nb,007\nc,8\nd,8\n" + b"".join(
        b"x%d,7\n" % i for i in range(20))),
         "a.csv:3: the labels '7' (19 rows) and '007' (1 row) look like one class",
         kind="LabelError"),
    Case("D18", "1 and true", only(
        b'{"text": "a", "label": 1}\n{"text": "b", "label": true}\n', "jsonl"),
         "labels of different kinds: 1 at a.jsonl:1, true at a.jsonl:2",
         kind="LabelError"),
    Case("D19", "a label missing", only(csv("a,\nb,\n")),
         "a.csv:26: 'label' is ''; expected a label", kind="LabelError"),
    Case("D19", "a label NaN", only(jsonl('{"text": "a", "label": NaN}'), "jsonl"),
         "a.jsonl:25: 'label' is nan; expected a label", kind="LabelError"),
    Case("D20", "a label that train has not", with_test("text,label\na,pos\nb,5\n"),
         "t.csv:3: test has labels that train has not: '5' (1 row); known are 'neg', "
         "'pos'", flags=TEST, kind="LabelError"),
    Case("D21", "one class", only(b"text,label\n" + b"".join(
        b"x%d,a\n" % i for i in range(20))),
         "a.csv: all 18 training rows have the label 'a'; expected at least two ",
         kind="LabelError"),
    Case("D22", "a class of the test only", with_test("text,label\na,pos\nb,new\n"),
         "t.csv:3: test has labels that train has not: 'new' (1 row)", flags=TEST,
         kind="LabelError"),
    # Columns.
    Case("D23", "a test without labels", with_test("text\na b\n"),
         "t.csv: no label column found; columns are 'text'; name it with",
         flags=TEST, kind="SchemaError"),
    Case("D24", "a column by another name", only(csv(header="body,label")),
         "a.csv: no column 'bdy'; it has 'body', 'label'; did you mean body? name it"
         " with --text_column_name", flags=("--text_column_name", "bdy"),
         kind="SchemaError"),
    Case("D25", "a key mistyped in one row of many", only(lambda: jsonl(
        '{"text": "a", "lable": "pos"}\n', 10_000), "jsonl"),
         "a.jsonl:10001: no 'label' in this row; it has 'text', 'lable'; did you mean",
         kind="SchemaError"),
    Case("D26", "a row too long", only(csv("a,b,pos\n")),
         "a.csv:26: 3 fields; expected 2 as in the header; quote texts"),
    Case("D26", "a row too short", only(csv("a\n")), "a.csv:26: 1 fields; expected 2"),
    Case("D26", "all rows longer than the header", only(
        b"text,label\n" + b"so, then,pos\n" * 9),
         "a.csv:2: 3 fields; expected 2 as in the header; 9 rows are bad"),
    Case("D26", "a quote never closed", only(csv('"a,pos\nb,neg\n')),
         "a.csv:26: not csv: a quote that is never closed"),
    Case("D26", "a tsv whose quotes are text", only(
        csv().replace(b",", b"\t") + b'"So" it goes\tpos\n', "tsv"),
         "where quotes are text, --quoting none; or --max_bad_rows 1"),
    Case("D26", "the same read as such", only(
        csv().replace(b",", b"\t") + b'"So" it goes\tpos\n"never closed\tneg\n', "tsv"),
         "23 rows of a.tsv", 0, ("--quoting", "none")),
    Case("D26", "a column name twice", only(b"text,text,label\na,b,c\n"),
         "a.csv:2: 'text' is not readable (the header has its name twice)",
         kind="SchemaError"),
    Case("D26", "tabs in a csv, not in all rows", only(
        csv("a,pos\n").replace(b",", b"\t", 9)), "a.csv:1: looks separated by tabs;"
         " expected ',' between the column names; add --delimiter tab"),
    Case("D27", "a text like a number after row 10,000", only(
        lambda: ("text,label\n" + MANY + "1e5,p\n").encode()),
         "10,801 rows of a.csv", 0),
    Case("D28", "files with other columns", {
        "in/a.csv": csv(), "in/b.csv": csv(header="body,label")},
         "in/b.csv: columns are 'body', 'label'; expected those of in/a.csv: 'text'",
         flags=("--train_file", "in"), kind="SchemaError"),
    # Rows that are there twice, and rows that are too long.
    Case("D29", "rows twice", only(csv(csv(count=4).decode().split("\n", 1)[1])),
         "4 of 26 rows (15 %) repeat an earlier one, 4 of them to the letter: ", 0),
    Case("D30", "a text with two labels", only(csv("the 3 film was good,pos\n")),
         "texts with more than one label: 1: a.csv:26 / a.csv:5", 0),
    Case("D31", "rows of the test in train", with_test(
        "text,label\nthe 3 film was good,neg\nThe 4  film was GOOD!,pos\n"),
         "a.csv", flags=TEST, kind="LeakageError"),
    Case("D33", "a long text split", only(csv("a " * 50 + ",pos\n")),
         "1 text split into 2 examples of up to 32 tokens (long_text auto)", 0),
    Case("D33", "a long text refused", only(csv("a " * 50 + ",pos\n")),
         "a.csv:26: a text of 52 tokens; expected at most 32; raise --max_seq_length",
         flags=("--long_text", "error"), kind="LengthError"),
    Case("D33", "more tokens than positions", only(csv()),
         "max_seq_length", 2, ("--max_seq_length", "100"), kind="ConfigError"),
    # Models that do not fit the data.
    Case("D34", "the tokenizer of another model", only(csv()),
         "the tokenizer has", 2, kind="ConfigError", model="foreign tokenizer"),
    Case("D35", "no mask token", only(csv()), "has no mask token, which masked", 2,
         recipe="mlm", kind="ConfigError", model="no mask token"),
    Case("D35", "no pad token", only(csv()), "has no pad and no eos token: set ", 2,
         kind="ConfigError", model="no pad token"),
    Case("D32", "a text of spaces", only(csv("  ,pos\n")),
         "a.csv:26: 'text' is empty; expected a text to classify"),
    Case("D39", "half a character in a JSON escape", only(
        jsonl('{"text": "a \\ud83d", "label": "pos"}'), "jsonl"),
         "a.jsonl:25: 'text' holds half of a character (a lone surrogate)"),
    Case("D39", "emoji, right to left, many marks", only(
        csv("👩\u200d👩\u200d👧 שלום e" + "\u0301" * 100_000 + ",pos\n")),
         "23 rows of a.csv", 0),
    Case("D40", "nothing left after bad rows", only(b"text,label\na\nb\n"),
         "a.csv: 0 rows left after 2 bad ones", flags=("--max_bad_rows", "9"),
         kind="DataError"),
    # What was silent: D41. The first byte that is not UTF-8 in a file that is.
    Case("D41", "one bad byte", only(csv("größe,pos\nschön,neg\n") + b"gr\xfcn,pos\n"),
         "a.csv:28: 'text' holds byte 0xfc, which is not of its encoding, as character"
         " 3; near 'gr\ufffdn'; mend it; or --max_bad_rows 1 leaves",
         kind="EncodingError"),
    Case("D41", "one bad byte read on", only(csv("größe,pos\nschön,neg\n")
         + b"gr\xfcn,pos\n"), "1 bad row left out (a.csv:28)", 0,
         ("--max_bad_rows", "1", "--encoding", "auto")),
    *(Case("D41", f"a label {na}", only(csv(f"a,{na}\nb,{na}\n")),
           f"a.csv:26: 'label' is '{na}', which stands for no value; expected a label",
           kind="LabelError") for na in ("NA", "NaN", "null")),
    Case("D41", "missing labels left out", only(csv("a,NA\nb,\n")),
         "2 bad rows left out (a.csv:26, a.csv:27)", 0, ("--max_bad_rows", "2")),
    Case("D41", "NA as a class", only(csv("a,NA\nb,NA\nc,NA\n")),
         "24 rows of a.csv", 0, ("--allow", "na_labels")),
    Case("D41", "lists written as text", only(b"text,label\n" + b"".join(
        b"film %d,\"['joy', 'fear']\"\nsong %d,\"['joy']\"\n" % (i, i)
        for i in range(12))), "24 labels are lists written as text (a.csv:2, ...)", 0),
    Case("D41", "a list among names", only(csv("a,\"['pos', 'neg']\"\n")),
         "a.csv: labels of different kinds: 'pos' at a.csv:2, \"['pos', 'neg']\" at a.",
         kind="LabelError"),
    Case("D41", "bits written as text", only(b"text,label\n" + b"".join(
        b'film %d,"[0, 1, 0]"\n' % i for i in range(12))),
         "a.csv: each label is a list of 3 values that are 0 or 1", kind="LabelError"),
    Case("D41", "a stray quote closed later", only(
        csv().replace(b",", b"\t") + b'"So it goes\tpos\nfine\tneg\nhe said no"\tpos\n',
        "tsv"), "1 quoted text looks like several rows behind a stray quote (a.tsv:2",
         0),
    Case("D41", "line breaks in quotes", only(csv('"so, then\n1,000 so\non",pos\n')),
         "(1 row with line breaks in quotes (a.csv:26))", 0),
    Case("D41", "a folder of train, validation and test", {
        "in/train.csv": csv(), "in/validation.csv": csv(count=5), "in/test.csv": csv()},
         "5 of 5 rows of validation are in train too", kind="LeakageError",
         flags=("--train_file", "in")),
    Case("D41", "parts of a folder", {
        "in/data/train-00000-of-00001.csv": csv(),
        "in/data/validation-00000-of-00001.csv": csv(count=40).replace(b"the", b"a"),
        "in/data/test-00000-of-00001.csv": csv().replace(b"the", b"some")},
         "test              24 rows of in (1 file of test", 0,
         ("--train_file", "in", "--do_predict")),
    Case("D41", "a test file among others", {"in/a.csv": csv(), "in/test.csv": csv()},
         "in: a folder without files of train: it has 1 of no split, 1 of test; name",
         flags=("--train_file", "in"), kind="DataError"),
    Case("D41", "messages as JSON in a csv", only(lambda: talks_csv(12)),
         "12 conversations are written as text (a.csv:2, ...)", 0,
         ("--max_seq_length", "60"), recipe="generate",
         model="chat"),
    Case("D41", "messages of which some are JSON", only(
        lambda: talks_csv(12) + b"hello there\n"),
         "a.csv:14: 'messages' is 'hello there' (str); expected a list of",
         recipe="generate", model="chat", kind="SchemaError"),
    Case("D41", "no header", only(csv(header="the first film was good,pos")),
         "first line taken for column names, though it looks like data: 'pos'", 0,
         ("--text_column_name", "the first film was good")),
    Case("D41", "no header, with names", only(csv(header="the first film,pos")),
         "23 rows of a.csv", 0, ("--column_names", "text,label")),
    Case("D41", "no header, with numbers for names", only(csv(header="one film,pos")),
         "text = 'column_1', label = 'column_2'", 0, ("--no_header",)),
    # What was refused, and is read with a note: D42.
    *(Case("D42", what, files, said, 0, flags)
      for what, files, said, flags, _ in NOTED),
    *(Case("D42", f"{what}, strict", files, said, 3, (*flags, "--strict"))
      for what, files, _, flags, said in NOTED if said),
    Case("D42", "a stream of odd files", {
        "in/train.csv": csv(count=40).replace(b"\n", b",,\n").replace(b",", b";"),
        "in/test.csv": csv()}, "1 file of train, of 2 files; separated by ';'; 2"
         " columns without a name not used; columns not used: 'label'", 0,
         ("--train_file", "in", "--streaming", "--max_steps", "2",
          "--max_eval_samples", "9"), "mlm"),
    # Faults of a row go through one count: D43.
    Case("D43", "roles that do not alternate", only(sharegpt(), "jsonl"),
         "a.jsonl:25: the chat template refuses this conversation: roles must"
         " alternate; mend it, or give another template with --chat_template_path; or"
         " --max_bad_rows 1 leaves bad rows out", recipe="generate",
         model="strict chat"),
    Case("D43", "roles that do not alternate left out", only(sharegpt(), "jsonl"),
         "; 1 conversations that the chat template refuses left out (a.jsonl:25)", 0,
         ("--max_bad_rows", "1"), "generate", model="strict chat"),
    Case("D43", "faults of three kinds", only(damaged, "jsonl"),
         "the chat template refuses this conversation: roles must alternate; ", 3,
         ("--max_bad_rows", "2"), "generate", model="strict chat"),
    Case("D43", "faults of three kinds left out", only(damaged, "jsonl"),
         "2 bad rows left out (a.jsonl:27, a.jsonl:28)", 0,
         ("--max_bad_rows", "4"), "generate", model="strict chat"),
    Case("D43", "long lines", only(lambda: csv("x" * (17 << 20) + ",pos\nso,neg\n")),
         "1 bad row left out (a.csv:26)", 0, ("--max_bad_rows", "1")),
    # Arguments.
    wrong("E01", "an unknown key", '"learning_rat": 1', "args.json: unknown key "
          "'learning_rat', did you mean learning_rate?"),
    Case("E01", "an unknown flag", only(csv()), "unknown argument --learning_rat, did "
         "you mean learning_rate?", 2, ("--learning_rat", "1"), kind="ConfigError"),
    wrong("E02", "a key twice", '"seed": 1, "seed": 2', "'seed' stands there twice"),
    wrong("E02", "a number as text", '"learning_rate": "1e-4"',
          'args.json: learning_rate is "1e-4", expected a number'),
    wrong("E02", "a truth as text", '"do_eval": "no"', 'do_eval is "no", expected '),
    wrong("E03", "minus one", '"learning_rate": -1', "learning_rate is -1, expected a "
          "number in (0, 100]"),
    wrong("E03", "zero", '"per_device_train_batch_size": 0',
          "per_device_train_batch_size is 0, expected a number in [1, inf)"),
    wrong("E03", "nan", '"weight_decay": NaN', "weight_decay is nan, expected a "),
    wrong("E03", "1e400", '"warmup_steps": 1e400', "warmup_steps is inf, expected a"),
    wrong("E03", "a fraction", '"max_steps": 1.5', "max_steps is 1.5, expected a"),
    wrong("E03", "true", '"num_train_epochs": true', "num_train_epochs is True, "),
    wrong("E04", "the best of no evaluation", '"eval_strategy": "no", '
          '"load_best_model_at_end": true', "load_best_model_at_end needs eval_"),
    wrong("E05", "a metric misspelt", '"metric_for_best_model": "acuracy"',
          "did you mean accuracy?"),
    *(Case("E07", what, {"args.json": content, "a.csv": csv()}, said, 2,
           ("--args", "args.json"), kind="ConfigError")
      for what, content, said in (
          ("an empty file", b"", "args.json: not JSON: "),
          ("100 MB", lambda: b" " * 10**8, "args.json: "),
          ("nested deeply", b"[" * 10**5, "args.json: nested too deeply"))),
    Case("E07", "a folder", {"args.json/a": b"", "a.csv": csv()},
         "args.json: cannot read it: Is a directory", 2, ("--args", "args.json"),
         kind="ConfigError"),
]  # fmt: skip
