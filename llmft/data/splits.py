"""Train, validation and test: as given, or made so that no text leaks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from llmft import assets
from llmft.arguments import DataArguments, TrainingArguments
from llmft.console import say
from llmft.data.read import Columns, Source, read_asset, read_file, read_hub, show
from llmft.errors import ConfigError, DataError


@dataclass(frozen=True)
class Splits:
    """The parts that a run uses, in the order train, validation, test."""

    parts: dict[str, Dataset]
    provenance: dict[str, dict[str, Any]]

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
    columns = Columns(
        args.text_column_name,
        getattr(args, "label_column_name", None),
        needs_label,
        args.split_group_column,
        label_optional=needed == {"test"},
    )
    sources = _read(args, columns, needed)
    sources = _fill(sources, args, seed, needed, stratify=needs_label)
    limits = {"train": args.max_train_samples}
    parts: dict[str, Dataset] = {}
    provenance: dict[str, dict[str, Any]] = {}
    say("data")
    for split in ("train", "validation", "test"):
        source = sources.get(split)
        if source is None or split not in needed:
            continue
        limit = limits.get(split, args.max_eval_samples)
        if limit is not None and limit < len(source.dataset):
            # At random: the first rows of a file sorted by label are of one class.
            chosen = np.random.default_rng(seed).permutation(len(source.dataset))
            note = f"{limit:,} of {len(source.dataset):,} at random, seed {seed}"
            source = replace(
                source,
                dataset=source.dataset.select(np.sort(chosen[:limit])),
                notes=[*source.notes, note],
            )
        if needs_label and "label" not in source.dataset.column_names:
            note = "no label column: predictions only, no metrics"
            source = replace(source, notes=[*source.notes, note])
        show(split, source)
        parts[split] = source.dataset
        provenance[split] = {
            "source": source.name,
            "rows": len(source.dataset),
            "sha256": source.sha256,
            "notes": source.notes,
        }
    return Splits(parts, provenance)


def _read(args: DataArguments, columns: Columns, needed: set[str]) -> dict[str, Source]:
    """Return the sources as they are given, by split."""
    if args.dataset_name is None:
        files = {
            "train": args.train_file,
            "validation": args.validation_file,
            "test": args.test_file,
        }
        return {
            split: read_file(Path(file).expanduser(), columns, args.sample_by)
            for split, file in files.items()
            if file is not None and (split in needed or split == "train")
        }
    if assets.is_asset(args.dataset_name):
        return _by_movie(read_asset(args.dataset_name, args.dataset_config_name))
    found = read_hub(
        args.dataset_name, args.dataset_config_name, args.dataset_revision, columns
    )
    wanted = {
        "train": (args.train_split_name,),
        "validation": (args.validation_split_name, "valid", "dev"),
        "test": (args.test_split_name,),
    }
    sources = {}
    for split, names in wanted.items():
        name = next((n for n in names if n in found), None)
        if name is not None and len(found[name].dataset):
            sources[split] = found[name]
    if "train" in needed and "train" not in sources:
        raise DataError(
            f"no split {args.train_split_name!r} in {args.dataset_name}",
            f"it has {', '.join(found)}",
            "name it with --train_split_name",
        )
    return sources


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
        split: Source(source.dataset.select(rows), source.name, [note])
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

    Rows with the same group stay together; otherwise labels keep their shares where
    ``stratify``. Classes with a single row stay in train.
    """
    data, part = source.dataset, percentage / 100
    rows = np.arange(len(data))
    how = "at random"
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
    elif stratify:
        labels = np.array(data["label"][:])
        names, counts = np.unique(labels, return_counts=True)
        alone = np.isin(labels, names[counts < 2])
        classes, several = int((counts > 1).sum()), int((~alone).sum())
        if not classes:
            raise DataError(
                f"all {len(rows):,} rows have different labels",
                hint="is --label_column_name right?",
                path=source.name,
            )
        size = min(max(classes, round(part * len(rows))), several - classes)
        kept, taken = train_test_split(
            rows[~alone],
            test_size=size,
            random_state=seed,
            stratify=labels[~alone],
        )
        kept = np.concatenate([kept, rows[alone]])
        how = "stratified by label"
    else:
        kept, taken = train_test_split(rows, test_size=part, random_state=seed)
    note = f"{percentage:g} % of train, {how}, seed {seed}"
    return (
        replace(source, dataset=data.select(np.sort(kept))),
        replace(source, dataset=data.select(np.sort(taken)), notes=[note]),
    )
