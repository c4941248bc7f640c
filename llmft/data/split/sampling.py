"""Setting rows of a data set aside, so that no text is on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from llmft.data.read.labels import MULTI, SINGLE, names_in
from llmft.data.read.store import Source
from llmft.data.split.duplicates import first_rows, prints
from llmft.errors import ConfigError, DataError


def sample(source: Source, limit: int | None, seed: int, by_label: bool) -> Source:
    """Return up to ``limit`` rows, drawn at random: a file may be sorted by label.

    With ``by_label`` the classes keep their shares, and each at least one row. Where a
    text has several labels, each of them has at least one row.
    """
    data = source.dataset
    if limit is None or limit >= len(data):
        return source
    order = np.random.default_rng(seed).permutation(len(data))
    how = "at random"
    if by_label and source.problem_type == MULTI:
        first = _one_of_each(data["label"][:], order)
        if limit < len(first):
            raise ConfigError(
                f"max_train_samples is {limit:,}, train has rare labels: use at least"
                f" {len(first):,} rows, for one of each"
            )
        order = np.append(first, order[~np.isin(order, first)])
        how = "at random, with a row of each label"
    elif by_label:
        classes = _codes(data["label"][:])
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


def _codes(labels: list[str]) -> np.ndarray:
    """Return a number for each label, in the order of the names.

    An array of the names themselves takes rows x longest name x 4 bytes.
    """
    codes = {name: i for i, name in enumerate(sorted(set(labels)))}
    return np.fromiter((codes[name] for name in labels), np.int64, len(labels))


def split_off(
    source: Source, split: str, percentage: float, seed: int, stratify: bool
) -> tuple[Source, Source]:
    """Return what stays of ``source``, and ``percentage`` of it for ``split``.

    Rows with the same group stay together, and train has a row of each class where it
    can; otherwise rows with the same text do, and labels keep their shares where
    ``stratify``. Classes with a single text stay in train, and so do rows with a label,
    among several, that no other row of train has.
    """
    data, part = source.dataset, percentage / 100
    rows = np.arange(len(data))
    more: list[str] = []
    if len(data) * part < 1 or len(data) < 2:
        said = f"{len(data)} rows are too few to set {percentage:g} % aside for {split}"
        hint = f"give --{split}_file or a larger --{split}_split_percentage"
        raise DataError(said, hint=hint, path=source.name)
    if "group" in data.column_names:
        groups = data["group"][:]
        if len(set(groups)) < 2:
            raise DataError("all rows have the same group", path=source.name)
        splitter = GroupShuffleSplit(1, test_size=part, random_state=seed)
        _, taken = next(splitter.split(rows, groups=groups))
        moved, back = _groups_back(source, groups, np.isin(rows, taken))
        kept, taken, how = rows[~moved], rows[moved], "by group"
        if back:
            more = [f"groups with a label that train had not stay there: {back:,}"]
    else:
        moved, how, more = _by_text(source, part, seed, stratify)
        kept, taken = rows[~moved], rows[moved]
        if not (len(kept) and len(taken)):
            said = f"too few different texts to set {percentage:g} % aside for {split}"
            raise DataError(said, hint=f"give --{split}_file", path=source.name)
    share = f"{100 * len(taken) / len(rows):.3g} %"
    if abs(len(taken) - part * len(rows)) > 1:
        share += f", asked for {percentage:g} %"
    note = f"{len(taken):,} of {len(rows):,} rows of train ({share}), {how}"
    notes = [f"{note}, seed {seed}", *more]
    return source.select(kept), replace(source.select(taken), notes=notes)


def _groups_back(
    source: Source, groups: list[str], moved: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return which rows to set aside so that train has each class, where it can.

    A group goes back for a label that train has not, unless it is the last one that is
    set aside; how many did.
    """
    several = source.problem_type == MULTI
    if not several and source.problem_type != SINGLE:
        return moved, 0
    labels, back = source.dataset["label"][:], 0
    names = [names_in(label) if several else [label] for label in labels]
    seen = {name for row in np.flatnonzero(~moved) for name in names[row]}
    of_row = _codes(groups)
    for row in np.flatnonzero(moved):
        if not moved[row] or seen.issuperset(names[row]):
            continue
        left = moved & (of_row != of_row[row])
        if left.any():
            seen.update(*(names[i] for i in np.flatnonzero(moved & ~left)))
            moved, back = left, back + 1
    return moved, back


def _by_text(
    source: Source, part: float, seed: int, stratify: bool
) -> tuple[np.ndarray, str, list[str]]:
    """Return which rows to set aside, how they were drawn, and what to note.

    Rows of the same text go together; see ``split_off``.
    """
    data, how, single, back = source.dataset, "at random", 0, 0
    rows, first = np.arange(len(data)), first_rows(prints(source))
    texts = rows[first == rows]
    beside = len(rows) - len(texts)
    if stratify and len(texts) > 1:
        labels = _codes(data["label"][:])
        texts, single = _stratified(texts, labels, part, seed, source.name)
        how = "stratified by label"
        moved = np.isin(first, texts)
        # A text may come with several labels: train keeps a row of each.
        lost = moved & ~np.isin(labels, labels[~moved])
        texts = np.setdiff1d(texts, first[lost])
    elif len(texts) > 1:
        _, texts = train_test_split(texts, test_size=part, random_state=seed)
    if source.problem_type == MULTI:
        rare = _rare(data["label"][:], np.isin(first, texts), source.name)
        texts, back = np.setdiff1d(texts, first[rare]), len(rare)
    counts = {
        "rows that went where an earlier one with their text is": beside,
        "classes of a single row stay in train": single,
        "rows with a label that train had not stay there": back,
    }
    notes = [f"{what}: {count:,}" for what, count in counts.items() if count]
    moved = np.zeros(len(rows), bool)
    moved[texts] = True  # of a million rows 1 s less than np.isin
    return moved[first], how, notes


def _stratified(
    rows: np.ndarray, labels: np.ndarray, part: float, seed: int, name: str
) -> tuple[np.ndarray, int]:
    """Return a ``part`` of ``rows`` by label, and how many classes have one row only.

    ``labels`` are those of all rows.
    """
    of_rows = labels[rows]
    names, counts = np.unique(of_rows, return_counts=True)
    alone = np.isin(of_rows, names[counts < 2])
    classes, several = int((counts > 1).sum()), int((~alone).sum())
    if not classes:
        said = f"all {len(rows):,} rows have different labels: none can be set aside"
        hint = (
            "is --label_column_name right? If so, --validation_split_percentage 0"
            " --eval_strategy no --allow many_classes trains on all"
        )
        raise DataError(said, hint=hint, path=name)
    size = min(max(classes, round(part * len(rows))), several - classes)
    _, taken = train_test_split(
        rows[~alone], test_size=size, random_state=seed, stratify=of_rows[~alone]
    )
    return taken, int(alone.sum())


def _rare(labels: list[str], moved: np.ndarray, path: str) -> list[int]:
    """Return rows that train has to keep, so that it has each label.

    ``labels`` are JSON lists, of all rows, and ``moved`` says which are set aside.
    """
    seen = {name for row in np.flatnonzero(~moved) for name in names_in(labels[row])}
    back = []
    for row in np.flatnonzero(moved):
        names = set(names_in(labels[row]))
        if not names <= seen:
            back.append(int(row))
            seen |= names
    if len(back) == moved.sum():
        said = "each row has a label of its own"
        raise DataError(said, hint="is --label_column_name right?", path=path)
    return back


def _one_of_each(labels: list[str], order: np.ndarray) -> list[int]:
    """Return rows that together have each label, few since the rarest comes first.

    ``labels`` are JSON lists, of all rows, which are looked at in ``order``.
    """
    first: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for row in order:
        names = names_in(labels[row])
        counts.update(names)
        first |= {name: int(row) for name in names if name not in first}
    found: dict[int, None] = {}
    seen: set[str] = set()
    for name, _ in reversed(counts.most_common()):
        if name not in seen:
            found[first[name]] = None
            seen.update(names_in(labels[first[name]]))
    return list(found)
