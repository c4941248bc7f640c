"""The check that no row stands on both sides of a split, and what else a run audits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from llmft.console import warn
from llmft.data.look.findings import (
    ERROR,
    WARNING,
    Part,
    contradictions,
    other_classes,
    repeats,
    shared,
)
from llmft.data.read.store import Source
from llmft.errors import LeakageError


def check_splits(
    sources: Mapping[str, Source],
    *,
    own: Collection[str] = (),
    noted: bool = False,
    told: bool = False,
    allow: Collection[str] = (),
) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Look for duplicates, conflicting labels and leakage in the parts of a run.

    Args:
        sources: by split; train first.
        own: splits that the user made: their overlap with train, if it is large, is an
            error, a LeakageError unless ``allow`` has leakage; that of others, which
            nobody can mend here, a warning.
        noted: overlap gives a note only. told: so do duplicates and contradictions.

    Returns:
        by split notes and counts, for ``run.json``, and the rows (int64) that train
        has, too.
    """
    parts = [Part(split, source) for split, source in sources.items()]
    notes: dict[str, list[str]] = {split: [] for split in sources}
    counts: dict[str, dict[str, Any]] = {split: {} for split in sources}
    for part in parts:
        for finding in (*repeats(part), *contradictions(part)):
            counts[part.name] |= finding.counts
            notes[part.name] += [finding.note] * bool(finding.note)
            # Where nothing is trained on, rows that are there twice do no harm.
            warns = finding.level == WARNING and not told
            if warns and (part.name == "train" or not finding.note):
                warn(finding.brief())
    leaks: list[str] = []
    in_train: dict[str, np.ndarray] = {}
    for other, part in combinations(parts, 2):
        for finding in shared(part, other):
            counts[part.name].setdefault("also_in", {}).update(finding.counts)
            if other.name == "train":
                in_train[part.name] = np.asarray(finding.rows)
            is_own = other.name == "train" and {part.name, "train"} <= {*own}
            if noted:
                notes[part.name].append(finding.note)
            elif is_own and finding.level == ERROR and "leakage" not in allow:
                leaks.append(f"{finding.what}: {finding.where}")
            else:
                warn(finding.brief())
    if leaks:
        raise LeakageError(
            "; ".join(leaks),
            "expected rows that training does not see",
            "take them out on one side; --allow leakage goes on all the same",
        )
    for part in parts[1:] if "train" in sources else ():
        for finding in other_classes(part, parts[0]):
            if finding.level == WARNING:  # what train has not is an error, later
                warn(finding.brief())
    return notes, counts, in_train
