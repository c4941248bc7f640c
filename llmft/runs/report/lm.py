"""What a language model learnt: by kind, frequency and position; its texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmft.errors import escape
from llmft.files import read_object
from llmft.metrics.intervals import wilson
from llmft.runs.record import RunRecord
from llmft.runs.report import charts
from llmft.runs.report.parts import (
    TEXT,
    Section,
    Table,
    Texts,
    between,
    number,
)

_GRAM = 4  # words in a row that are a repetition where they come again
_TEXTS, _LONGEST = 12, 1500  # samples, and characters of each, that are shown
_BY = {
    "by_kind": "By kind of token",
    "by_frequency": "By how often the token is in train (its first 5,000 blocks)",
    "by_position": "By position in the block",
}


def sections(run: RunRecord) -> list[Section]:
    """Return what a run of a language model says beyond its curves."""
    if run.recipe not in ("mlm", "generate"):
        return []
    return [measured(run), tokens(run), texts(run)]


def measured(run: RunRecord) -> Section:
    """Return all metrics, before training and after."""
    section, rows = Section("Before and after"), list[tuple[str, ...]]()
    names = ("perplexity", "loss", "masked_accuracy", "token_accuracy")
    parts = {"before": "before training", "eval": "validation", "test": "test"}
    for part, shown in parts.items():
        for name, entry in run.metrics.get(part, {}).items():
            if name in names and entry["value"] is not None:
                split = f" ({entry['split']})" if part == "before" else ""
                value, error = number(entry["value"]), number(entry["stderr"])
                rows.append((shown + split, name, value, error, f"{entry['n']:,}"))
    if rows:
        header = ["on", "metric", "reached", "standard error", "tokens"]
        section.blocks.append(Table("Metrics", header, rows))
    return section


def tokens(run: RunRecord) -> Section:
    """Return loss and accuracy by what tokens are, and by where they stand."""
    section, found = Section("Tokens"), run.metrics.get("tokens", {})
    masked = run.recipe == "mlm"
    for name, title in _BY.items():
        groups = found.get(name)
        if not groups or (name == "by_position" and masked):
            continue
        ordered = sorted(groups.items(), key=lambda g: _first_number(g[0], g[1]))
        rows = [_row(name, group) for name, group in ordered]
        header = ["", "perplexity", "accuracy", "95 %", "tokens"]
        section.blocks.append(Table(title, header, rows))
        if name == "by_position" and len(rows) > 1:
            values = [math.exp(min(50.0, g["loss"])) for _, g in ordered]
            labels = [name.removeprefix("under ").split(" ")[0] for name, _ in ordered]
            labels[0] = f"< {labels[0]}" if ordered[0][0][:1] == "u" else labels[0]
            bars = charts.bars("perplexity by position", labels, values, "perplexity")
            section.blocks.append(bars)
    if section.blocks:
        section.said.append(
            "Of the last evaluation. Limits are Wilson's, as if each token stood alone."
        )
    return section


def _first_number(name: str, group: dict[str, Any]) -> float:
    """Order ranges by where they begin, and other groups by their size."""
    words = name.replace(",", "").split()
    if words[0] in ("under", "never"):
        return -1.0
    return float(words[0]) if words[0].isdigit() else -float(group["tokens"])


def _row(name: str, group: dict[str, Any]) -> tuple[Any, ...]:
    n, accuracy = group["tokens"], group["accuracy"]
    limits = between(wilson(accuracy * n, n))
    shown = number(math.exp(min(50.0, group["loss"])))
    return name, shown, f"{accuracy:.3f}", limits, f"{n:,}"


def texts(run: RunRecord) -> Section:
    """Return words that were filled in, or samples, before training and after."""
    section, found = Section("Examples"), read_object(run.folder / "examples.json")
    if filled := found.get("fill_mask"):
        names = ("text", "word", "before", "after")
        rows = [[escape(row[n][:TEXT]) for n in names] for row in filled]
        header = ["text", "the word", "guesses before", "after"]
        right = {w: sum(_hit(row, w) for row in filled) for w in ("before", "after")}
        section.said.append(
            f"The word itself is among the three guesses in {right['before']} of"
            f" {len(filled)} texts before training, in {right['after']} after."
        )
        section.blocks.append(Table("Words filled in", header, rows))
    if samples := found.get("samples"):
        rates = {w: _mean_rate(samples, w) for w in ("before", "after")}
        shown = [f"{w} {r:.0%}" for w, r in rates.items() if r is not None]
        if shown:
            section.said.append(
                f"Repetition, the share of {_GRAM} words in a row that the same text"
                f" had before: {', '.join(shown)}."
            )
        for sample in samples[:_TEXTS]:
            pairs = [
                (f"{when}, repetition {repetition(text):.0%}", escape(text[:_LONGEST]))
                for when in ("before", "after")
                for text in sample[when]
            ]
            section.blocks.append(
                Texts(f"Prompt: {escape(sample['prompt'][:TEXT])}", pairs)
            )
    return section


def _hit(row: dict[str, str], when: str) -> bool:
    guesses = [guess.strip().lower() for guess in row[when].split(",")]
    return row["word"].lower() in guesses


def _mean_rate(samples: Sequence[dict[str, Any]], when: str) -> float | None:
    rates = [repetition(text) for sample in samples for text in sample[when]]
    return sum(rates) / len(rates) if rates else None


def repetition(text: str) -> float:
    """Return the share of runs of ``_GRAM`` words that the text had before."""
    words = text.split()
    runs = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
