"""The ladder: what simpler methods reach on the same texts as the trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmft.console import table
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.metrics.bootstrap import drawn, spread
from llmft.metrics.intervals import (
    PROBE,
    SURE,
    clearly,
    percent_sure,
    standard_error,
    worse_than_saved,
)
from llmft.metrics.paired import how_sure
from llmft.metrics.standard_errors import Metric

# What rungs are compared by; greater is better.
HEADLINE = {SINGLE: "accuracy", MULTI: "f1_micro", REGRESSION: "r2"}


@dataclass(frozen=True)
class Rung:
    """A method, and what it says of the held-out texts.

    Attributes:
        name: of the method.
        scores: what a model's logits would be, shape (texts, outputs).
        seconds: to fit it and to ask it; 0 where that is next to nothing.
    """

    name: str
    scores: np.ndarray
    seconds: float = 0.0

    @property
    def short(self) -> str:
        """The name without what is the same for all of its kind: TF-IDF."""
        return self.name.split(" + ")[0]


def majority(train: np.ndarray, texts: int, labels: LabelNames) -> Rung:
    """Return the rung that knows how frequent labels are, and reads no text.

    Args:
        train: class ids, (examples,); 0 and 1, (examples, labels); or numbers.
        texts: the number of those that are held out.
    """
    if labels.problem_type == REGRESSION:
        name, scores = "mean", np.array([train.mean()])
    elif labels.problem_type == MULTI:
        name, had = "label frequency", train.sum(0) + 0.5
        scores = np.log(had / (len(train) + 1 - had))
    else:
        counts = np.bincount(train, minlength=len(labels.names))
        name, scores = "majority", np.log(counts + 0.5)
    return Rung(name, np.tile(scores, (texts, 1)))


def climbed(
    rungs: Sequence[Rung],
    references: Any,
    metric: Metric,
    name: str,
    saved: str,
    wider: float = 1.0,
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of the ladder.

    Each rung with the metric ``name``, its standard error and, where it is not the one
    that is saved, by how much that one is above it, with its standard error, on the
    same draws of texts, and how sure a paired test is of it. Of classes also the log
    loss of the one that is saved, and that of one who says that all classes are equally
    probable. All errors are ``wider`` than draws of rows say.
    """
    rows, found, draws = len(references), list[dict[str, Any]](), {}
    more: dict[str, float] = {} if wider == 1 else {"wider": wider}
    for rung in rungs:
        measure = metric.measure(rung.scores, references)
        draws[rung.name] = drawn(measure, rows)[name]
        reached = measure(np.ones((rows, 1)))
        if rung.name == saved and name == HEADLINE[SINGLE]:
            more["log_loss"] = float(reached["log_loss"][0])
            more["log_loss_of_guessing"] = math.log(rung.scores.shape[1])
        found.append(
            {
                "name": rung.name,
                "value": float(reached[name][0]),
                "stderr": wider * spread(draws[rung.name]),
                "seconds": round(rung.seconds, 1),
            }
        )
    best = next(row for row in found if row["name"] == saved)
    scores = {rung.name: rung.scores for rung in rungs}
    for row in found:
        if row is not best:
            error = wider * spread(draws[saved] - draws[row["name"]])
            both = np.concatenate([scores[row["name"]], scores[saved]])
            measure = metric.measure(both, np.concatenate([references, references]))
            row["below"] = {
                "value": best["value"] - row["value"],
                "stderr": error,
                "sure": how_sure(measure, rows, name, wider),
            }
    return {"metric": name, "n": rows, "saved": saved, "rungs": found, **more}


def lines(ladder: dict[str, Any], split: str) -> list[str]:
    """Return the table of a ladder, and what follows from it."""
    rows = []
    for rung in ladder["rungs"]:
        below, shown, sure = rung.get("below"), "saved", ""
        if below is not None:
            shown = f"{below['value']:+.4f} +- {below['stderr']:.4f}"
            sure = percent_sure(below["sure"])
        of_all = {"n": ladder["n"], "wider": ladder.get("wider", 1.0)}
        error = standard_error(ladder["metric"], {**rung, **of_all})
        value, known = f"{rung['value']:.4f}", "-" if error is None else f"{error:.2g}"
        seconds = f"{rung['seconds']:.1f}"
        rows.append((rung["name"], value, known, shown, sure, seconds))
    header = ["method", ladder["metric"], "+-", "saved is above by", "sure", "seconds"]
    said = [f"\nladder, on {split}, n {ladder['n']:,}\n{table(rows, header)}"]
    said += _conclusions(ladder)
    return said


def _conclusions(ladder: dict[str, Any]) -> list[str]:
    above, alike, said = [], [], list[str]()
    names = [rung["name"] for rung in ladder["rungs"]]
    if ladder["rungs"][names.index(ladder["saved"])]["value"] == 1:
        said.append(
            f"  all {ladder['n']:,} are right, and its losses may be 0: they are too"
            " easy, or too few, to tell more"
        )
    for name in worse_than_saved(ladder):
        said.append(f"  {name} is worse: try a lower --learning_rate")
    for rung in ladder["rungs"][: names.index(ladder["saved"])]:
        if not (told := clearly(rung["below"])):
            alike.append(rung["name"])
        elif told < 0:
            above.append(rung["name"])
    if PROBE in above:
        above.remove(PROBE)
        said.append(
            f"  the {PROBE}, from which the training began, reached more here: train"
            " longer, or at a lower --learning_rate"
        )
    if above:
        longer = "" if ladder["saved"] == PROBE else "a longer training, "
        said.append(
            f"  {', '.join(above)} reached more here; what may help: mended"
            f" labels or more rows, {longer}a model that was made for this language and"
            " subject"
        )
    if ladder.get("log_loss", 0.0) > ladder.get("log_loss_of_guessing", math.inf):
        helps = "; a training with --calibrate true (not with --k_folds) may help"
        said.append(
            f"  it is surer than it may be: log_loss {ladder['log_loss']:.3g}, of"
            f" guessing {ladder['log_loss_of_guessing']:.3g}"
            f"{'' if ladder.get('calibrated') else helps}"
        )
    if alike:
        cost = "which costs" if len(alike) == 1 else "which cost"
        said.append(
            f"  no clear difference (less than {100 * SURE:g} % sure) to"
            f" {', '.join(alike)}, {cost} less"
        )
    return said
