"""The curves of a run: loss, metrics, learning rate, gradient, speed, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmft.metrics.intervals import PROBE
from llmft.runs.report.charts import Line, curve
from llmft.runs.report.parts import Section

Events = Sequence[dict[str, Any]]
METRICS = (
    *("accuracy", "f1_macro", "f1_micro", "r2", "spearman", "masked_accuracy"),
    "token_accuracy",
)


def curves(events: Events, contrast: bool = False, saved: str = "") -> Section:
    """Return what was logged while it trained, by step.

    Args:
        contrast: whether the loss of training has that of contrast in it.
        saved: the method whose model is saved, as the ladder names it.
    """
    train = "train, with contrast" if contrast else "train"
    found = Section("Curves")
    groups: list[tuple[str, dict[str, Line], float]] = [
        ("loss", _of(events, {"loss": train, "eval_loss": "validation"}), 1),
        ("metrics, on validation", _of_metrics(events), 1),
        ("learning rate", _of(events, {"learning_rate": "learning rate"}), 1),
        ("gradient norm", _of(events, {"grad_norm": "gradient norm"}), 1),
        ("samples/s", _of(events, {"samples_per_second": "samples/s"}), 1),
        ("memory, GiB", _of(events, {"rss_bytes": "resident"}), 2**30),
    ]
    for title, lines, unit in groups:
        if lines:
            scaled = {n: (x, [v / unit for v in y]) for n, (x, y) in lines.items()}
            found.blocks.append(curve(title, scaled, "step"))
    if not found:
        return found
    if saved == PROBE:
        found.said.append(
            f"They are of the training; the {PROBE}, from which it began, is saved."
        )
    several = {event.get("leg") for event in events}
    if len(several) > 1:
        found.said.append(
            f"The run was resumed: {len(several)} legs, of each step the last one."
        )
    return found


def series(events: Events, name: str) -> Line:
    """Return steps and values of what was logged under a name.

    Of a step the last, but for evaluations: behind that of the last step comes one of
    the best checkpoint, which is of another.
    """
    there: dict[float, float] = {}
    for event in events:
        if event.get(name) is not None and "step" in event:
            step = float(event["step"])
            if step not in there or not name.startswith("eval_"):
                there[step] = float(event[name])
    return list(there), list(there.values())


def _of(events: Events, names: dict[str, str]) -> dict[str, Line]:
    lines = {shown: series(events, name) for name, shown in names.items()}
    return {shown: line for shown, line in lines.items() if len(line[0]) > 1}


def _of_metrics(events: Events) -> dict[str, Line]:
    known = [n for n in METRICS if any(f"eval_{n}" in event for event in events)]
    return _of(events, {f"eval_{name}": name for name in known[:3]})
