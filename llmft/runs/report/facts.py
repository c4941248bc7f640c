"""Around a run: plan and reality, machine, choices, data, arguments."""

from __future__ import annotations

import re
from typing import Any

from llmft.errors import escape
from llmft.files import to_json
from llmft.machine.plan import duration_text
from llmft.runs.record import RunRecord
from llmft.runs.report.parts import TEXT, Section, Table, named, number, shown_of

_VALUES = 60  # characters


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration_text(seconds)


def cost(run: RunRecord) -> Section:
    """Return what was planned, and what the run came to."""
    plan, real = run.record.get("plan", {}), run.metrics.get("run", {})
    section, rows = Section("Plan and reality"), list[tuple[str, str, str]]()
    planned = plan.get("seconds") or {}
    if plan or real:
        resumed = len(run.record.get("legs", [])) > 0
        train = planned.get("training")
        steps, made = number(plan.get("steps")), number(real.get("steps"))
        rows.append(("steps", steps, made))
        rows.append(("training", _time(train), _time(real.get("train_seconds"))))
        whole = sum(planned.values()) if planned else None
        folds = run.metrics.get("k_folds", {}).get("seconds", 0.0)
        took = _time(None if run.seconds is None else run.seconds - folds)
        rows.append(("all of it, from the plan on", _time(whole), took))
        memory = plan.get("memory_bytes") or [0, 0]
        shown = " to ".join(f"{b / 2**30:.1f}" for b in memory) if any(memory) else "-"
        peak = real.get("peak_rss_bytes")
        took = f"{peak / 2**30:.1f}" if peak else "-"
        rows.append(("memory at the most, GiB", shown, took))
        if "-" not in (steps, made) and steps != made:  # early, or by a time limit
            section.said.append(f"The plan is of {steps} steps; {made} were made.")
        if resumed:
            section.said.append("The plan is of the last leg, after a resume.")
        if folds:
            took = _time(folds)
            section.said.append(f"Both are without the folds before, {took} in all.")
    if skipped := real.get("skipped_steps"):
        rows.append(("steps skipped, not finite", "-", number(skipped)))
    for name in ("train_samples_per_second", "train_tokens_per_second"):
        if name in real:
            unit = name.removeprefix("train_").replace("_per_second", "/s")
            rows.append((unit, "-", number(real[name])))
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    if rows:
        section.blocks.append(Table("Time and memory", ["", "plan", "reality"], rows))
    return section


def data(run: RunRecord) -> Section:
    """Return the rows of each split, and what was left out or noticed."""
    section, rows = Section("Data"), list[tuple[Any, ...]]()
    for split, found in run.record.get("data", {}).items():
        notes = [str(note) for note in found.get("notes") or []]
        audit = found.get("audit") or {}  # has the count of a note, and more
        counts = re.sub(r'[{}"]', "", to_json(audit)).replace("_", " ")
        notes = [n for n in notes if not n.startswith(tuple(audit))] + [counts]
        source = escape(found.get("source", ""), 120)
        said = escape("; ".join(filter(None, notes)), 2 * TEXT)
        rows.append((split, number(found.get("rows")), source, said))
    if rows:
        header = ["split", "rows", "from", "notes"]
        section.blocks.append(Table("Rows", header, rows))
    return section


def machine(run: RunRecord) -> Section:
    """Return the machine, what was chosen for it, and what was asked for."""
    record, section = run.record, Section("Machine and choices")
    cpu, versions = record.get("cpu", {}), record.get("versions", {})
    if cpu:
        known = ", ".join(f"{name} {version}" for name, version in versions.items())
        section.said.append(f"{cpu.get('name')}, cores: {cpu.get('cores')}; {known}.")
    chosen = [
        (name, escape(c.get("value"), _VALUES), escape(c.get("reason"), TEXT))
        for name, c in record.get("choices", {}).items()
    ]
    if chosen:
        header = ["what", "value", "reason"]
        section.blocks.append(Table("What was chosen", header, chosen))
    given = [(name, named(value)) for name, value in run.given.items()]
    if given:
        table = Table(
            "Arguments that were given: by flags, a JSON file, or the recipe's own",
            ["argument", "value"],
            given[:60],
        )
        section.blocks.append(table)
    model = [(n, escape(v, TEXT)) for n, v in record.get("model", {}).items()]
    if model:
        note = shown_of(12, len(model), "entries") if len(model) > 12 else ""
        table = Table("The model it began with", ["", "value"], model[:12], note)
        section.blocks.append(table)
    if command := record.get("command"):
        section.said.append(f"Command: {escape(command, 2 * TEXT)}")
    return section
