"""``llmft predict``: what a model says of texts on the command line, or of a file.

A file is read, tokenized and predicted a window at a time, in as little memory for a
million rows as for a thousand. A window's texts run in batches of like length; the rows
come out in their order.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from llmft.config.command_line import words_of
from llmft.config.convert import separator
from llmft.config.facts import fields_of, from_flags
from llmft.config.fields import (
    ClassificationDataArguments,
    ModelArguments,
    TrainingArguments,
)
from llmft.console import say, table
from llmft.data.read.check import Check, Checked, Rows
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading, is_pipe, named_files
from llmft.data.read.rows import file_rows
from llmft.data.read.store import Source, in_parts
from llmft.data.read.text import require_clean
from llmft.errors import ConfigError, counted
from llmft.files import file_sha256, to_json
from llmft.machine import choose
from llmft.model.identity import fingerprint
from llmft.process import quiet_libraries, versions
from llmft.tasks.named import Named, find_model
from llmft.tasks.prediction_output import (
    OF_CSV,
    Part,
    Printed,
    cells,
    check_target,
    is_formula,
    opened_part,
)
from llmft.tasks.predictors import (
    FLAGS,
    Predictor,
    cpu_arguments,
    data_arguments,
    load_predictor,
    source_of,
)

# Rows that are sorted by length, predicted and written together, and characters of
# them: 15 batches or so, some seconds of a small model. That much a kill costs.
WINDOW, CHARACTERS = 2048, 2**18
# With fewer rows than this, trying what is fastest would take longer than it saves.
FEW = 256
CLASSES = (ClassificationDataArguments, ModelArguments, TrainingArguments)
OUTPUT = ("row", "file", "line", "text", "text_pair", "prediction", "probability")
OF_MACHINE = ("attn_implementation", "precision", "num_threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``llmft predict``."""
    said = "a run or its name, a folder, hub id or pypi:NAME, with a trained head"
    parser.add_argument("model", metavar="RUN_OR_MODEL", help=said)
    parser.add_argument("file", metavar="FILE", nargs="?", help="texts to predict")
    for name, said in (
        ("text", "a text, may be given several times"),
        ("text_pair", "its second text, where the model compares two"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], help=said)
    said = "columns of FILE that go along with the predictions, such as an id"
    parser.add_argument("--keep_columns", metavar="NAME", nargs="+", help=said)
    said = "csv or jsonl by its ending; none: standard output, as lines of JSON"
    parser.add_argument("--output_file", metavar="FILE", help=said)
    said = "put ' before texts of a csv that a spreadsheet would run as formulas"
    parser.add_argument("--escape_formulas", action="store_true", help=said)
    said = "begin a csv with the mark (BOM) by which Excel knows UTF-8"
    parser.add_argument("--bom", action="store_true", help=said)
    said = "between its fields: one character, or tab (default: a comma)"
    parser.add_argument("--output_delimiter", metavar="CHARACTER", help=said)
    said = "the sign before the decimals of its numbers (default: .)"
    parser.add_argument("--output_decimal", choices=[".", ","], help=said)
    fields = fields_of(*CLASSES)
    for name in (*FLAGS, *OF_MACHINE):
        default = str(fields[name].default)
        if name in FLAGS:
            default = f"that of the run, else {default}"
        if name == "max_seq_length":
            default = "that of the run, else what the model allows, up to 512"
        said = f"{fields[name].facts['help']} (default: {default})"
        options: dict[str, Any] = {"metavar": "VALUE", **words_of(fields[name])}
        parser.add_argument(f"--{name}", help=said.replace("%", "%%"), **options)


def run(arguments: argparse.Namespace) -> None:
    """Do what ``llmft predict`` is asked.

    Raises:
        LlmftError: what keeps it from that.
    """
    flags = {name: getattr(arguments, name) for name in (*FLAGS, *OF_MACHINE)}
    given, problems = from_flags(flags, *CLASSES)
    texts, pairs, file = arguments.text, arguments.text_pair, arguments.file
    if bool(texts) == bool(file):
        problems.append("give either a FILE or --text, to predict")
    if pairs and len(pairs) != len(texts):
        problems.append("give a --text_pair for each --text, or none")
    names = ("output_file", "keep_columns", *OF_CSV)
    of_file = {n: getattr(arguments, n) for n in names}
    if of_none := [name for name, value in of_file.items() if value and not file]:
        problems.append(f"{of_none[0]} is for the predictions of a FILE")
    out = str(arguments.output_file or "").lower()
    for name in OF_CSV:
        if of_file[name] and not out.endswith(".csv"):
            problems.append(f"{name} is for an output_file that is csv")
    try:
        given_one = arguments.output_delimiter
        delimiter = separator("," if given_one is None else given_one)
    except ValueError as error:
        said = f"output_delimiter is {arguments.output_delimiter!r}"
        problems.append(f"{said}, expected {error}")
        delimiter = ""
    if delimiter == arguments.output_decimal:
        problems.append("output_decimal is , as output_delimiter is: give another")
    kept = of_file["keep_columns"] or ()
    if own := [
        name for name in kept if name in OUTPUT or name.startswith("probabilities")
    ]:
        problems.append(f"keep_columns has {own[0]}, which predictions have themselves")
    if problems:
        raise ConfigError(*problems)
    target = None
    if arguments.output_file:
        target = Path(arguments.output_file).expanduser()
        check_target(target)
    printed = Printed()
    quiet_libraries()  # those that came with this module
    with redirect_stdout(sys.stderr):  # standard output has predictions only
        predictor, named = _loaded(arguments.model, given, file)
        if file:
            kept = tuple(arguments.keep_columns or ())
            predictor.columns = replace(predictor.columns, carried=kept)
            how = {name: getattr(arguments, name) for name in OF_CSV}
            how["output_delimiter"] = delimiter
            _predict_file(predictor, named, file, target or printed, how)
            return
        found = predict_texts(predictor, texts, pairs)
        _tell(predictor)
    show(found)


def _loaded(
    name: str, given: Mapping[str, Any], file: str | None
) -> tuple[Predictor, Named]:
    named = find_model(name)
    if given.get("attn_implementation"):
        named.args.attn_implementation = given["attn_implementation"]
    training = cpu_arguments(
        **{n: given[n] for n in ("precision", "num_threads") if n in given}
    )
    choose.prepare_machine(training)
    data = data_arguments(named, given, file)
    if file and not is_pipe(file):
        reading, columns = Reading.of(data), Columns.of(data, label_optional=True)
        with named_files(file, reading) as (files, _, unit):
            # What keeps its first row from being read, before the model is loaded.
            rows = file_rows(file, columns, reading, (files, unit), hashed=False)
            next(Check(rows, plain=True).rows(), None)
    predictor = load_predictor(named, data, training)
    return predictor, named


def predict_texts(
    predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return what a model says of each text, or pair of texts.

    Raises ConfigError for one text where the model was trained on two, DataError for
    what is no text.
    """
    if predictor.columns.text_pair and not pairs:
        raise ConfigError("this model was trained on pairs: give a text_pair, too")
    for text in (*texts, *pairs):
        require_clean(text, "a text", "nul" in predictor.args.data.allow)
    both = zip(texts, pairs, strict=True)
    rows: list[dict[str, Any]]
    rows = [{"text": a, "text_pair": b} for a, b in both] if pairs else []
    rows = rows or [{"text": text} for text in texts]
    found = []
    for part in in_parts(rows, _characters, WINDOW, CHARACTERS):
        found += predictor(source_of(part))
    return found


def show(found: Iterable[Mapping[str, Any]]) -> None:
    """Print predictions for a terminal: labels or tokens with their probability."""
    for row in found:
        texts = [row[name] for name in ("text", "text_pair") if name in row]
        say("\n" + " / ".join(texts))
        if "fills" in row:
            for number, fills in enumerate(row["fills"], 1):
                rows = [(fill["token"], fill["probability"]) for fill in fills]
                title = f"mask {number}" if len(row["fills"]) > 1 else "token"
                say(table(rows, [title, "probability"]))
        elif "probabilities" in row:
            likely = sorted(row["probabilities"].items(), key=lambda item: -item[1])
            say(table(likely, ["label", "probability"]))
            if isinstance(row["prediction"], list):
                say(f"  predicted: {', '.join(row['prediction']) or 'none'}")
        else:
            say(f"  {row['prediction']:.6g}")


def _characters(row: Mapping[str, Any]) -> int:
    return len(row["text"]) + len(row.get("text_pair") or "")


def _predict_file(
    predictor: Predictor,
    named: Named,
    file: str,
    target: Path | Printed,
    of_csv: Mapping[str, Any],
) -> None:
    """Predict the rows of a file, each looked at before the first is predicted."""
    data = predictor.args.data
    reading = Reading.of(data)
    with named_files(file, reading) as (files, notes, unit):
        rows = file_rows(file, predictor.columns, reading, (files, unit), hashed=False)
        check = Check(rows, plain=True)
        total = sum(1 for _ in check.rows())
        notes = [*notes, *check.notes()]
        said = f" ({'; '.join(notes)})" if notes else ""
        say(f"  {total:,} rows of {file}{said}")
        if isinstance(target, Printed):
            _write(predictor, rows, total, target)
            return
        made_of = {
            "input": [total, _input(file, files, rows)],
            "model": fingerprint(named.located, predictor.tokenizer),
            "arguments": asdict(data) | {"output_file": target.name},
            "columns": asdict(predictor.columns),
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "precision": predictor.args.training.precision,
            "attn_implementation": predictor.args.model.attn_implementation,
            **of_csv,
        }
        with opened_part(target, made_of) as part:
            _write(predictor, rows, total, part)


def _input(file: str, files: Sequence[Path], rows: Rows) -> Any:
    """Return what tells an input from another; of a pipe, the hash of all of it."""
    if is_pipe(file):
        return [file_sha256(Path(path)) for path in files]
    return rows.described()


def _write(
    predictor: Predictor, rows: Rows, total: int, target: Part | Printed
) -> None:
    """Predict what is not yet in the target, and finish it."""
    done = row = target.rows
    if done:
        say(f"going on   after {done:,} rows, which are there already")
    check = Check(rows, plain=True)
    left = islice(check.rows(), done, None)
    bar = tqdm(total=total, initial=done, desc="predicting", unit="row", disable=None)
    started = time.perf_counter()
    with bar:
        for window in in_parts(left, _characters, WINDOW, CHARACTERS):
            source = source_of(window, rows.name, rows.files)
            if row == done:
                _choose(predictor, source, total, target)
                started = time.perf_counter()
            shown = _rows(predictor(source), window, row, rows)
            if isinstance(target, Part) and target.is_csv:
                how = "escaped" if target.escape_formulas else "--escape_formulas"
                said = f"cells that a spreadsheet takes for formulas ({how})"
                found = sum(is_formula(x) for r in shown for _, x in cells(r))
                predictor.counts.update({said: found} if found else {})
            target.write(shown, predictor.counts)
            row += len(window)
            bar.update(len(window))
            if target.over:  # as head has gone
                return
    target.finish()
    took = time.perf_counter() - started
    _tell(predictor)
    rate = (row - done) / max(took, 1e-9)
    say(f"predicted  {row - done:,} rows in {took:.1f} s, {rate:,.1f} rows/s")
    if isinstance(target, Part):
        say(f"output     {target.target}, {row:,} rows")


def _tell(predictor: Predictor) -> None:
    for what, count in predictor.counts.items():
        say(f"  {counted(count, what)}")


def _choose(
    predictor: Predictor, source: Source, total: int, target: Part | Printed
) -> None:
    """Take what is fastest, or what the rows before were predicted with."""
    if target.choices:
        predictor.take(**target.choices)
    elif total >= FEW:
        for choice in predictor.choose(source, total):
            say(f"  {choice.name:<10} {choice.value} ({choice.reason})")
    target.choices = {
        "precision": predictor.precision,
        "attention": predictor.attention,
    }
    predictor.counts.update(target.counts)


def _rows(
    found: Iterable[Mapping[str, Any]],
    window: Sequence[Checked],
    first: int,
    rows: Rows,
) -> list[dict[str, Any]]:
    """Return predictions with the place of each: its row, from 0, file and line."""
    shown = []
    for i, (values, said) in enumerate(zip(window, found, strict=True)):
        place: dict[str, Any] = {"row": first + i}
        if len(rows.files) > 1:
            place["file"] = rows.files[values["file"]]
        kept = {n: _plain(v) for n, v in values.get("carried", {}).items()}
        shown.append(place | {"line": values["line"], **kept, **said})
    return shown


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: dates, NaN and the like as text."""
    try:
        to_json(value)
    except (TypeError, ValueError):
        return str(value)
    return value
