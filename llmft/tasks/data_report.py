"""``llmft data``: what is in the files, what a run will make of it, what helps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmft.config.facts import from_flags
from llmft.config.fields import ClassificationDataArguments, ModelArguments
from llmft.console import say, table
from llmft.data.look.findings import ERROR, NOTE, WARNING, Finding
from llmft.data.look.report import Report, examine
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading, folder_splits, is_pipe
from llmft.data.read.store import Source, read_file
from llmft.errors import ConfigError, DataError, escape
from llmft.files import write_text
from llmft.model import load
from llmft.runs.report import parts
from llmft.tasks.classify import check_labels
from llmft.tasks.generate import TASK

_SPLITS = ("train", "validation", "test")
_OF_CHAT = ("messages", "prompt", "completion")  # columns
_ALL = 2**31 - 1  # bad rows
_BAR = 40  # characters of the longest bar
_NUMBER = re.compile(r"[\d,.]+( %)?")
_TARGETS = (".html", ".htm")


def report_data(
    files: Sequence[str], flags: Mapping[str, Any], target: str | None
) -> None:
    """Read the files, print the report and, with a target, write it as HTML.

    Args:
        flags: raw values of data arguments, and ``model_name_or_path``, or None.

    Raises:
        ConfigError: a value is not what it should be, or no file is named.
        DataError: the files cannot be read; or, after the report, a row is bad, one of
            several has no label, or a training would refuse what was found.
    """
    model = ModelArguments(model_name_or_path=flags["model_name_or_path"])
    args = _arguments(flags)
    named = [(name, name) for name in files]
    splits = {split: getattr(args, f"{split}_file") for split in _SPLITS}
    named += [(split, file) for split, file in splits.items() if file]
    parts = dict(named)
    if len(parts) < len(named):
        raise ConfigError(f"a file named twice: {', '.join(name for name, _ in named)}")
    if not parts:
        said = "no file named: llmft data FILE..., before its flags"
        raise ConfigError(f"{said}, or --train_file FILE")
    if target is not None and Path(target).suffix.lower() not in _TARGETS:
        raise ConfigError(f"html is {target!r}, expected a name that ends in .html")
    chat = args.label_column_name is None
    of_chat: dict[str, Any]
    of_chat = {name: flags.get(f"{name}_column_name") for name in _OF_CHAT}
    columns = Columns.of(args, needs_label=True, label_optional=chat, chat=chat)
    columns = replace(columns, needs_text=not chat, **of_chat)  # as classify.py
    reading = Reading.of(args)
    tokenizer = None
    if model.model_name_or_path:
        located = load.locate(model, TASK.embedded_model, None)
        tokenizer = load.load_tokenizer(located, model)
    faults: list[DataError] = []
    sources = {
        _shown(name, split, len(parts)): _read(file, columns, reading, faults, split)
        for name, file in parts.items()
        for split in sorted(folder_splits(file, reading), key=_SPLITS.index) or (None,)
    }
    # What is in train, too, is a share of the others.
    sources = dict(sorted(sources.items(), key=lambda part: part[0] != _SPLITS[0]))
    report = examine(sources, tokenizer, args.max_seq_length)
    say(as_text(report))
    if target is None and any(f.where != f.every for f in report.findings if f.every):
        say("\n...: more places than are shown; --html data.html names up to 1,000")
    report.findings[:0] = [Finding(ERROR, str(fault)) for fault in faults]
    if target is not None:
        write_text(Path(target), as_html(report, f"Data: {', '.join(sources)}"))
        say(f"\nwritten to {target}")
    for fault in faults:
        raise fault
    if errors := sum(finding.level == ERROR for finding in report.findings):
        said = (
            f"{errors} of the findings {'is an error' if errors == 1 else 'are errors'}"
        )
        raise DataError(said, hint="a training refuses that; see what each one means")


def _shown(name: str, split: str | None, files: int) -> str:
    """Return what to call a part: the split alone, of a single folder."""
    return " ".join(filter(None, (name * (files > 1 or not split), split)))


def _read(
    name: str,
    columns: Columns,
    reading: Reading,
    faults: list[DataError],
    split: str | None,
) -> Source:
    """Read the good rows of a file; add to ``faults`` what a run would say."""
    try:
        return read_file(name, columns, reading, split)
    except DataError as fault:
        if reading.max_bad_rows or is_pipe(name):
            raise
        try:
            if fault.line is None:  # no row by itself: some have no label
                columns = replace(columns, label_optional=False)
            leaving = replace(reading, max_bad_rows=_ALL)
            source = read_file(name, columns, leaving, split)
        except DataError:
            raise fault from None
        faults.append(fault)
        return source


def _arguments(flags: Mapping[str, Any]) -> ClassificationDataArguments:
    """Return data arguments from raw values, checked as those of a recipe."""
    values, problems = from_flags(flags, ClassificationDataArguments)
    kind = values.get("problem_type")
    problems += check_labels(values.get("label_delimiter"), kind)
    if problems:
        raise ConfigError(*problems)
    return ClassificationDataArguments(**values)


def as_text(report: Report) -> str:
    """Return the report for a terminal."""
    shown = []
    for section in report.sections:
        header, rows = list(section.header), [[*map(str, r)] for r in section.rows]
        for i in range(len(header)):
            if all(_NUMBER.fullmatch(row[i]) for row in rows):
                widest = max((len(row[i]) for row in rows), default=0)
                for row in rows:
                    row[i] = row[i].rjust(widest)
        if section.bars:
            scale = _BAR / (max(section.bars) or 1)
            bars = ["#" * max(1, round(n * scale)) if n else "" for n in section.bars]
            rows = [[*row, bar] for row, bar in zip(rows, bars, strict=True)]
            header.append("")
        shown.append(f"{escape(section.title)}\n{table(rows, header)}")
    for finding in report.findings:
        lines = [f"{finding.level}: {finding.what}", finding.where, finding.means()]
        shown.append("\n    ".join(escape(line) for line in lines if line))
    if not report.findings:
        shown.append("nothing odd was found")
    return "\n\n".join(shown)


def as_html(report: Report, title: str) -> str:
    """Return the report as one HTML file: no script, nothing from elsewhere."""
    rows = [[f.level, f.what, f.means(), f.every or f.where] for f in report.findings]
    header = ["", "what was seen", "what may help", "where"]
    counts = Counter(finding.level for finding in report.findings)
    said = [f"{level}s: {counts[level]}" for level in (ERROR, WARNING, NOTE)]
    found = parts.Section("Findings", [], [parts.Table("Findings", header, rows)])
    tables = parts.Section("Tables")
    for one in report.sections:
        rows_of = parts.Table(one.title, one.header, one.rows, bars=one.bars)
        tables.blocks.append(rows_of)
    return parts.html(
        title,
        [", ".join(said) if rows else "Nothing odd was found."],
        [found if rows else parts.Section(""), tables],
        bad=bool(counts[ERROR]),
    )
