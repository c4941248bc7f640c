"""What a cross-validation reached: each row said of by a model that had not seen it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmft.files import finite
from llmft.metrics.bootstrap import with_errors
from llmft.metrics.intervals import PROBE, TUNED, limits
from llmft.metrics.ladder import Rung, climbed
from llmft.metrics.standard_errors import Metric


def joined(found: list[dict[str, Any]], name: str) -> Rung:
    """Return a method with what it says of the rows of all folds, in their order."""
    each = [r for fold in found for r in fold["rungs"] if r["name"] == name]
    scores = np.concatenate([np.asarray(r["scores"], np.float64) for r in each])
    return Rung(name, scores, sum(r["seconds"] for r in each))


def together(found: list[dict[str, Any]], metric: Metric, name: str) -> dict[str, Any]:
    """Return the results of all folds, by the better of probe and fine-tuned.

    Each metric is that of all rows held out, with its interval of 95 %, and the mean
    and the standard deviation of the folds' own. The bootstrap over rows knows nothing
    of the rows learnt, of which a fold has fewer and others than the model of all has:
    its errors are taken (1 + held out / learnt * K) ** 0.5 times, 1.5 with five folds
    (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366).
    """
    references = np.concatenate([np.asarray(fold["references"]) for fold in found])
    rungs = [joined(found, name) for name in names_of(found)]
    wider = math.sqrt(1 + len(found) / (len(found) - 1))
    ladder = climbed(rungs, references, metric, name, TUNED, wider)
    reached = {rung["name"]: rung["value"] for rung in ladder["rungs"]}
    if reached.get(PROBE, -np.inf) > reached[TUNED]:
        ladder = climbed(rungs, references, metric, name, PROBE, wider)
    saved = next(rung for rung in rungs if rung.name == ladder["saved"])
    whole = with_errors(metric.measure(saved.scores, references), len(references))
    whole |= {n: x * wider for n, x in whole.items() if n.endswith("_stderr")}
    whole["wider"] = wider
    each = []
    for fold in found:
        part, known = joined([fold], saved.name), np.asarray(fold["references"])
        measured = metric.measure(part.scores, known)(np.ones((len(known), 1)))
        each.append({n: float(x[0]) for n, x in measured.items()})
    of_rows = {"n": len(references), "wider": wider}
    metrics = {
        n: {
            "value": whole[n],
            "interval": [*limits(n, {"value": whole[n], "stderr": error, **of_rows})],
            "mean": finite(np.mean([fold[n] for fold in each])),
            "deviation": finite(np.std([fold[n] for fold in each], ddof=1)),
        }
        for n in each[0]
        if np.isfinite(error := whole[f"{n}_stderr"])
    }
    return {
        "run": {f"folds_{n}": value for n, value in whole.items()},
        "all": {
            "folds": len(found),
            "seconds": sum(fold["seconds"] for fold in found),
            "metrics": metrics,
            "ladder": ladder,
        },
    }


def names_of(found: list[dict[str, Any]]) -> list[str]:
    """Return the methods that could be fitted in every fold."""
    first, *others = ([rung["name"] for rung in fold["rungs"]] for fold in found)
    return [name for name in first if all(name in names for names in others)]
