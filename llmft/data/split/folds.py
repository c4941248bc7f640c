"""Folds of a cross-validation: each row is held out once."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, names_in
from llmft.data.read.store import Source
from llmft.data.split.duplicates import first_rows, labels_of, prints
from llmft.errors import DataError


def folds_of(source: Source, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int64; -1 for those that are always learnt.

    Rows with the same group stay together, else those with the same text; classes keep
    their shares. A row is always learnt that has a label which no row of another fold
    has.

    Raises:
        DataError: there are fewer groups, or different texts, than folds, or a fold
            would have no row.
    """
    data = source.dataset
    grouped = "group" in data.column_names
    groups = np.unique(data["group"][:], return_inverse=True)[1] if grouped else None
    if groups is None:
        groups = first_rows(prints(source))
    names, labels = labels_of(source)
    if (found := len(np.unique(groups))) < folds:
        what = "groups" if grouped else "different texts"
        said = f"{found:,} {what} are too few for k_folds {folds}"
        raise DataError(said, path=source.name)
    # A class of fewer rows than folds is none to keep shares of, if all are.
    by_label = source.problem_type == SINGLE and np.bincount(labels).max() >= folds
    kind: Any = StratifiedGroupKFold if by_label else GroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    of_rows = np.empty(len(data), np.int64)
    with warnings.catch_warnings():  # of rare classes: they are seen to below
        warnings.simplefilter("ignore")
        for fold, (_, rows) in enumerate(splitter.split(groups, labels, groups)):
            of_rows[rows] = fold
    if source.problem_type != REGRESSION:
        several = source.problem_type == MULTI
        each = [names_in(n) if several else [n] for n in names]
        of_rows[_alone(of_rows, [each[i] for i in labels])] = -1
    if len(np.unique(of_rows[of_rows >= 0])) < folds:
        raise DataError(
            f"k_folds {folds} leaves a fold without a row",
            "labels that all stand in one group, or text, are in every training",
            "lower k_folds, or group otherwise",
            path=source.name,
        )
    return of_rows


def _alone(folds: np.ndarray, labels: list[list[str]]) -> list[int]:
    """Return rows with a label that occurs in no other fold."""
    seen: dict[str, set[int]] = {}
    for fold, names in zip(folds.tolist(), labels, strict=True):
        for name in names:
            seen.setdefault(name, set()).add(fold)
    only = {name for name, found in seen.items() if len(found) < 2}
    return [row for row, names in enumerate(labels) if only & {*names}]


def hold_out(source: Source, fold: int, folds: int, seed: int) -> dict[str, Source]:
    """Return train and test of a cross-validation, where one fold is held out."""
    of_rows = folds_of(source, folds, seed)
    held_out = np.flatnonzero(of_rows == fold)
    note = f"fold {fold + 1} of {folds}, seed {seed}"
    return {
        "train": source.select(np.flatnonzero(of_rows != fold)),
        "test": replace(source.select(held_out), notes=[note]),
    }
