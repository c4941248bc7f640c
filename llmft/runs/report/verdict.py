"""What came of a run, in one or two plain sentences."""

from __future__ import annotations

from typing import Any

from llmft.errors import escape
from llmft.metrics.intervals import (
    NORMAL,
    SURE,
    clearly,
    limits,
    standard_error,
)
from llmft.runs.record import RunRecord
from llmft.runs.report.parts import listed_words, number

_SHARES = ("accuracy", "f1_micro")  # differences are told in points


def verdict(run: RunRecord, events: list[dict[str, Any]]) -> list[str]:
    """Return the sentences."""
    said = [] if run.status == "complete" else [_stopped(run, events)]
    found = run.headline()
    if found is None:
        if run.status == "complete":
            said.append("The run is complete; nothing was measured.")
        return said
    part, name, entry = found
    where = {"test": "test", "folds": "train, each held out once", "eval": "validation"}
    unit = {"mlm": "masked tokens", "generate": "tokens"}.get(run.recipe, "rows")
    shown = f"{name.replace('_', ' ').capitalize()} {number(entry['value'])}"
    if standard_error(name, entry) is not None:
        low, high = map(number, limits(name, entry))
        shown += f" (95 % interval {low} to {high})"
    on = f"{entry['n']:,} {unit} of " if entry["n"] else ""
    said.append(f"{shown} on {on}{where.get(part, part)}.")
    before = run.metrics.get("before", {}).get(name)
    if before and before["value"] is not None:
        said.append(f"Before training it was {number(before['value'])}.")
    ladder = run.metrics.get("ladder") or run.metrics.get("k_folds", {}).get("ladder")
    if ladder:
        said += _against(ladder)
    return said


def _against(ladder: dict[str, Any]) -> list[str]:
    """Say how the saved model stands to the methods below it."""
    points = ladder["metric"] in _SHARES
    above, alike, below = list[str](), list[str](), list[str]()
    for rung in ladder["rungs"]:
        if "below" not in rung:
            continue
        name, by, error = escape(rung["name"], 60), *difference(rung)
        told = clearly(rung["below"])
        scale, unit = (100, " points") if points else (1, "")
        size = f"{abs(by) * scale:.1f} ± {NORMAL * error * scale:.1f}{unit}"
        if not points:
            size = f"{number(abs(by))} ± {NORMAL * error:.2g}"
        if not told:
            alike.append(name)
        else:
            (above if told > 0 else below).append(f"{name} by {size}")
    saved, said = escape(ladder["saved"], 60), []
    if above:
        said.append(f"The saved model ({saved}) is better than {listed_words(above)}.")
    if below:
        said.append(f"The saved model ({saved}) is worse than {listed_words(below)}.")
    if alike:
        rest = f"No difference could be told to {listed_words(alike)}"
        said.append(f"{rest}: a paired test is less than {100 * SURE:g} % sure.")
    return said


def difference(rung: dict[str, Any]) -> tuple[float, float]:
    """Return by how much the saved model is above a rung, and the standard error."""
    error = rung["below"]["stderr"]
    return rung["below"]["value"], float("inf") if error is None else error


def _stopped(run: RunRecord, events: list[dict[str, Any]]) -> str:
    """Say how far a run came that did not complete."""
    status = {"killed": "was killed", "running": "is still running"}
    said = f"The run {status.get(run.status, run.status)}"
    if run.status == "interrupted":
        said = "The run was interrupted"
    steps = run.record.get("plan", {}).get("steps")
    last = max((e.get("step", 0) for e in events), default=0)
    of = f" of {steps:,}" if steps else ""
    said += f"; the last step that was logged is {last:,}{of}."
    if error := run.record.get("error"):
        by_user = run.status == "interrupted"
        said += f" {'Stopped by' if by_user else 'It said:'} {escape(error, 500)}"
    return said
