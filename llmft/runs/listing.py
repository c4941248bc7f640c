"""``llmft runs``: one line a run, its tags and its note."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.console import table, terminal_columns, width
from llmft.errors import ConfigError, escape, nearest
from llmft.files import disk, read_object, write_json
from llmft.metrics.intervals import standard_error
from llmft.runs.record import RunRecord
from llmft.sources.wheels import size_text

_UNKNOWN = {"value": None, "stderr": None}
NOTES = "notes.json"  # tags and note: run.json is the run's own
STATUSES = ("complete", "failed", "interrupted", "running", "killed")
HEADER = "run recipe started status metric value on data minutes disk tags".split()
# Columns that a narrow terminal goes without, the first first.
_DISPENSABLE = "disk data minutes on started tags recipe metric status".split()


def notes_of(folder: Path) -> dict[str, Any]:
    """Return ``tags`` and ``note`` of a run."""
    found = read_object(folder / NOTES)
    return {"tags": found.get("tags") or [], "note": found.get("note") or ""}


def tag(folder: Path, tags: Sequence[str], remove: bool = False) -> list[str]:
    """Add tags to a run, or take them away; return those that it has.

    Raises ConfigError for one that is to go and is not there.
    """
    notes = notes_of(folder)
    there = notes["tags"]
    if remove and (unknown := [name for name in tags if name not in there]):
        had = ", ".join(there) or "none"
        raise ConfigError(f"no tag {unknown[0]!r}; it has {had}", path=folder)
    kept = [name for name in there if not remove or name not in tags]
    kept += [] if remove else [n for n in dict.fromkeys(tags) if n not in there]
    write_json(folder / NOTES, notes | {"tags": kept})
    return kept


def set_note(folder: Path, text: str) -> None:
    """Give a run a note; an empty one takes it away."""
    write_json(folder / NOTES, notes_of(folder) | {"note": text})


def row_of(run: RunRecord) -> dict[str, Any]:
    """Return what there is to say of a run on one line."""
    part, metric, found = run.headline() or ("", "", {})
    data = run.record.get("data", {})
    source: dict[str, Any] = data.get("train") or next(iter(data.values()), {})
    return {
        "run": run.name,
        "recipe": run.recipe,
        "started": run.began,
        "status": run.status,
        "metric": metric or None,
        "saved": run.metrics.get("ladder", {}).get("saved"),
        "value": found.get("value"),
        "stderr": standard_error(metric, {**_UNKNOWN, **found}),
        "split": "rows held out" if part == "folds" else found.get("split"),
        "n": found.get("n"),
        "data": source.get("source"),
        "rows": source.get("rows"),
        "seconds": run.seconds,
        "disk_bytes": disk(run.folder),
        **notes_of(run.folder),
        "folder": str(run.folder),
    }


def order(rows: Sequence[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    """Return rows by a field, rising; those without a value last.

    Raises ConfigError where there is no such field.
    """
    field = {"minutes": "seconds", "disk": "disk_bytes", "on": "split"}.get(
        field, field
    )
    if rows and field not in rows[0]:
        known = ", ".join(rows[0])
        said = f"no field {field!r}{nearest(field, rows[0])}; there are {known}"
        raise ConfigError(said)
    there = [row for row in rows if row[field] is not None]
    return sorted(there, key=lambda row: row[field]) + [
        row for row in rows if row[field] is None
    ]


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return runs as a table; a narrow terminal goes without some columns."""
    cells = [dict(zip(HEADER, _line(row), strict=True)) for row in rows]
    widths = {n: max(width(n), *(width(c[n]) for c in cells)) for n in HEADER}
    names, dropped = list(HEADER), list[str]()
    for name in _DISPENSABLE:
        if sum(widths[n] + 2 for n in names) <= terminal_columns():
            break
        names.remove(name)
        dropped.append(name)
    shown = table([[c[n] for n in names] for c in cells], names)
    if dropped:
        shown += f"\nno room for: {', '.join(dropped)}; --json has all"
    return shown


def _line(row: dict[str, Any]) -> list[str]:
    value, seconds = row["value"], row["seconds"]
    error = row["stderr"]
    shown = "-" if value is None else f"{value:,.4g}"
    metric = row["metric"] or "-"
    if "probe" in (row["saved"] or ""):  # the training was no better, or failed
        metric += " of probe"
    return [
        escape(row["run"]),
        escape(row["recipe"]),
        (row["started"] or "-")[:16].replace("T", " "),
        escape(row["status"]),
        escape(metric),
        shown if error is None else f"{shown} +- {error:.2g}",
        escape(row["split"] or "-"),
        escape(os.path.basename(str(row["data"] or "-").rstrip("/"))),
        "-" if seconds is None else f"{seconds / 60:.1f}",
        size_text(row["disk_bytes"]),
        escape(", ".join(row["tags"])),
    ]
