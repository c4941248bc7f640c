"""Which training of a cross-validation a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fold:
    """One of the trainings of ``k_folds``.

    Attributes:
        of: how many folds there are.
        place: the one that is held out, from 0; None: none, all rows are learnt.
        keep: the method whose model that last training saves.
        results: what the folds gave before it, for its ``metrics.json``: as metrics
            with a prefix (``run``), and in full (``all``).
    """

    of: int
    place: int | None = None
    keep: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
