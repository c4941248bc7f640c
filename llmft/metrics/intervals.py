"""Intervals of 95 % of metrics, and the standard errors that are shown beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CLEAR = 2.0  # standard errors; a difference of fewer is none
SURE = 0.95  # by a paired test; less sure, a difference is none
PROBE = "linear probe"  # the method from which a classifier's training begins
TUNED = "fine-tuned"
NORMAL = 1.96  # standard errors of an interval that holds in 19 of 20 cases
_NOT_BELOW_0 = ("loss", "log_loss", "mae", "rmse", "mse", "perplexity")
_AT_MOST_1 = ("r2", "matthews_correlation", "pearson", "spearman")


def limits(name: str, entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the limits of 95 % of a metric, which stay where it can be.

    Those of accuracy are Wilson's; else they are about the value, by its standard
    error; NaN where that is not known. ``wider`` is by how much the error of an entry
    is above that of its rows alone, as of a cross-validation.
    """
    value, error, n = entry["value"], entry["stderr"], entry.get("n")
    if name == "accuracy" and n:
        n /= entry.get("wider", 1.0) ** 2
        return wilson(value * n, n)
    half = math.nan if error is None else NORMAL * error
    share = "accuracy" in name or name.startswith(("f1_", "calibration_"))
    least, most = -math.inf, 1.0 if share or name in _AT_MOST_1 else math.inf
    if share or name in _NOT_BELOW_0:
        least = 0.0
    elif name in _AT_MOST_1 and name != "r2":
        least = -1.0
    return max(value - half, least), min(value + half, most)


def standard_error(name: str, entry: Mapping[str, Any]) -> float | None:
    """Return the standard error of a metric that is shown beside its value.

    Where all is right, or all wrong, draws of rows tell nothing: of accuracy, Wilson's
    limits do; of other metrics, None says so.
    """
    error: float | None = entry["stderr"]
    if error != 0 or entry["value"] not in (0, 1):
        return error
    if name != "accuracy":
        return None
    low, high = limits(name, entry)
    return (high - low) / (2 * NORMAL)


def wilson(right: float, n: float) -> tuple[float, float]:
    """Return the limits of 95 % of a share (Wilson 1927); 0 to 1 of no rows."""
    if not n:
        return 0.0, 1.0
    z, p = NORMAL, min(max(right / n, 0.0), 1.0)  # others may write percent
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)


def worse_than_saved(ladder: dict[str, Any]) -> list[str]:
    """Return the trainings after the saved method that are clearly worse than it."""
    names = [rung["name"] for rung in ladder["rungs"]]
    after = ladder["rungs"][names.index(ladder["saved"]) + 1 :]
    return [rung["name"] for rung in after if clearly(rung["below"]) > 0]


def percent_sure(sure: float) -> str:
    """Return how sure a paired test is, which is never all."""
    return f"{min(100 * sure, 99.9):.1f} %"


def clearly(below: Mapping[str, Any]) -> int:
    """Return 1 where what is saved is above a rung, -1 below, 0 where none can tell."""
    by = below["value"]
    return (by > 0) - (by < 0) if below["sure"] >= SURE else 0
