"""Comparing runs: what was asked differently, what came of it, which is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from string import ascii_uppercase
from typing import Any

from llmft.errors import counted
from llmft.metrics.intervals import SURE, percent_sure
from llmft.runs.record import RunRecord, in_force, origin

_FEW = 0.5  # of the rows of the shorter file of predictions: by chance, some are alike
_UNLIKE = 1.1  # steps of one run, of those of another
_SHOWN = 50  # rows that are kept of those where two runs differ
_ANSWERS = ("label", "prediction")
_ON = {"eval": "validation", "folds": "rows held out"}  # what a part is measured on
_OF_PLACE = ("output_dir",)  # arguments that differ always
_SPLITS = ("validation", "test")
# What is judged without predictions, the first that both have; whether greater is
# better. Perplexity says what the loss does.
_HEADLINES = {"accuracy": True, "f1_micro": True, "r2": True, "loss": False}
POINTS = ("accuracy", "f1", "subset_accuracy")  # shares, whose differences are points
_COSTS = (
    "wall_seconds",
    "peak_rss_bytes",
    "train_samples_per_second",
    "train_tokens_per_second",
    "steps",
)


def compare(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what differs between runs, and of each two whether one is better.

    Whatever has a value for each run is a list in their order; runs are named A, B, C.
    """
    letters = [*ascii_uppercase, *map("".join, product(ascii_uppercase, repeat=2))]
    names = letters[: len(runs)]
    named = dict(zip(names, runs, strict=True))
    several = [*combinations(named.items(), 2)]
    clear = 1 - (1 - SURE) / max(len(several), 1)  # Bonferroni
    arguments, given = _arguments(runs), {n for run in runs for n in run.given}
    return {
        "runs": [
            {
                "name": name,
                "run": run.name,
                "folder": str(run.folder),
                "recipe": run.recipe,
                "status": run.status,
                "command": run.record.get("command"),
            }
            for name, run in named.items()
        ],
        "arguments": {n: v for n, v in arguments.items() if n in given},
        "followed": {n: v for n, v in arguments.items() if n not in given},
        "choices": _differing(runs, _choices),
        "data": _differing(runs, _data),
        "model": _differing(runs, lambda run: run.record.get("model", {})),
        "surroundings": _differing(runs, _surroundings),
        "metrics": _metrics(runs),
        "costs": _costs(runs),
        "clear": clear,
        "pairs": [_pair(one, other, clear) for one, other in several],
    }


def _differing(
    runs: Sequence[RunRecord], facts: Callable[[RunRecord], Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """Return the facts that not all runs share."""
    found = [facts(run) for run in runs]
    names = dict.fromkeys(name for of_run in found for name in of_run)
    values = {name: [of_run.get(name) for of_run in found] for name in names}
    return {n: v for n, v in values.items() if any(x != v[0] for x in v)}


def _arguments(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Return the arguments that differ, but for what a cross-validation sets itself."""
    aside = {*_OF_PLACE}
    for run in runs:
        asked = run.record.get("arguments", {}).items()
        aside |= {n for n, entry in asked if origin(entry) == "k_folds"}
    differing = _differing(runs, lambda run: in_force(run.arguments))
    return {n: values for n, values in differing.items() if n not in aside}


def _choices(run: RunRecord) -> dict[str, Any]:
    chosen = run.record.get("choices", {})
    return {name: choice.get("value") for name, choice in chosen.items()}


def _data(run: RunRecord) -> dict[str, Any]:
    return {
        f"{split} {key}": part[key]
        for split, part in run.record.get("data", {}).items()
        for key in ("source", "rows", "sha256")
        if key in part
    }


def _surroundings(run: RunRecord) -> dict[str, Any]:
    return {**run.record.get("versions", {}), **run.record.get("cpu", {})}


def _metrics(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return each final metric: the part, its name, and the entry of each run."""
    parts = [run.measured() for run in runs]
    keys = dict.fromkeys(
        (part, name) for of_run in parts for part in of_run for name in of_run[part]
    )
    return [
        {
            "part": _ON.get(part, part),
            "metric": name,
            "values": [of_run.get(part, {}).get(name) for of_run in parts],
        }
        for part, name in keys
        if not (name == "loss" and (part, "log_loss") in keys)  # the same
    ]


def _costs(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    found = [
        {**run.metrics.get("run", {}), "wall_seconds": _seconds(run)} for run in runs
    ]
    values = {name: [of_run.get(name) for of_run in found] for name in _COSTS}
    return {name: v for name, v in values.items() if any(x is not None for x in v)}


def _seconds(run: RunRecord) -> float | None:
    return None if run.seconds is None else round(run.seconds, 1)


def _pair(
    one: tuple[str, RunRecord], other: tuple[str, RunRecord], clear: float
) -> dict[str, Any]:
    """Return what two runs say of the same rows, and which is better."""
    (a, run_a), (b, run_b) = one, other
    found: dict[str, Any] = {"a": a, "b": b, "notes": _unlike(run_a, run_b)}
    for name, run in (one, other):
        if run.status != "complete":
            found["notes"].append(f"{name} is {run.status}")
    found["notes"] += _other_steps(one, other)
    rows_a, rows_b = list(run_a.predictions()), list(run_b.predictions())
    for name, run, rows in ((a, run_a, rows_a), (b, run_b, rows_b)):
        found["notes"] += [f"{name}: {lacks}" for lacks in _lacking(run, rows)]
    metrics: dict[str, dict[str, Any]] = {}
    if rows_a and rows_b:
        metrics = _paired(found, rows_a, rows_b, run_a, run_b)
    else:
        lacks = [n for n, rows in ((a, rows_a), (b, rows_b)) if not rows]
        said = f"no predictions.jsonl in {' and '.join(lacks)}"
        found["notes"].append(f"unpaired: {said}; smaller differences cannot be told")
        metrics = _unpaired(found, run_a, run_b)
    if metrics and {*_arguments([run_a, run_b])} == {"seed"}:
        found["notes"].append("only the seed differs: so far apart are runs of one job")
    found["metrics"] = metrics
    found["verdict"] = _verdict(metrics, a, b, clear)
    return found


def _other_steps(*runs: tuple[str, RunRecord]) -> list[str]:
    """Return that a time limit was enough for another number of steps."""
    steps = {n: run.metrics.get("run", {}).get("steps") or 0 for n, run in runs}
    limited = any(run.arguments.get("time_limit") for _, run in runs)
    if not limited or not all(steps.values()):
        return []
    few, many = sorted(steps, key=lambda name: steps[name])
    if steps[many] <= _UNLIKE * steps[few]:
        return []
    said = (
        f"{many} learnt for {counted(steps[many], 'steps')}, {few} for {steps[few]:,}"
    )
    return [f"{said}: a time limit is enough for more on a machine that is less busy"]


def _lacking(run: RunRecord, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield of which part predictions.jsonl holds fewer rows than were predicted."""
    for split in _SPLITS:
        there = sum(row.get("split") == split for row in rows)
        had = run.record.get("data", {}).get(split, {}).get("rows") or 0
        if 0 < there < had:
            yield f"predictions.jsonl has {there:,} of {had:,} rows of {split}"


def _unlike(run_a: RunRecord, run_b: RunRecord) -> list[str]:
    """Return warnings of evaluation data that are not the same."""
    found = []
    for split in _SPLITS:
        a, b = (r.record.get("data", {}).get(split, {}) for r in (run_a, run_b))
        if a and b and a.get("sha256") != b.get("sha256"):
            found.append(f"the {split} data are not the same")
    return found


def _paired(
    found: dict[str, Any],
    rows_a: list[dict[str, Any]],
    rows_b: list[dict[str, Any]],
    run_a: RunRecord,
    run_b: RunRecord,
) -> dict[str, dict[str, Any]]:
    """Compare what was said of the rows that both have; add the counts of them."""
    from llmft.metrics.paired import compare_rows, kind_of  # numpy

    of_b = dict(_keyed(rows_b))
    both = [(row, of_b[key]) for key, row in _keyed(rows_a) if key in of_b]
    if {*map(kind_of, rows_a)} != {*map(kind_of, rows_b)}:
        found["notes"].append("no paired test: classes here, something else there")
        return {}
    alike = [(x, y) for x, y in both if x["label"] == y["label"] is not None]
    found["rows"] = {
        "both": len(both),
        "only_a": len(rows_a) - len(both),
        "only_b": len(rows_b) - len(both),
        "other_label_or_none": len(both) - len(alike),
    }
    if len(both) < _FEW * min(len(rows_a), len(rows_b)) or not alike:
        said = f"no paired test: {len(alike):,} rows are in both"
        seeds = [run.arguments.get("seed") for run in (run_a, run_b)]
        said += "; give both runs one --validation_file"
        said += ", or the same --seed, which draws it" if seeds[0] != seeds[1] else ""
        found["notes"].append(said)
        return {}
    right = [
        (x["prediction"] == x["label"], y["prediction"] == y["label"]) for x, y in alike
    ]
    if not isinstance(alike[0][0]["label"], float):  # no number is just that
        found["right"] = {
            "both": right.count((True, True)),
            "only_a": right.count((True, False)),
            "only_b": right.count((False, True)),
            "neither": right.count((False, False)),
        }
    differ = [(x, y) for x, y in alike if x["prediction"] != y["prediction"]]
    found["differ"] = {
        "count": len(differ),
        "rows": [_shown(x, y, run_a) for x, y in differ[:_SHOWN]],
    }
    one, other = zip(*alike, strict=True)
    metrics = compare_rows(one, other)
    if "log_loss" in metrics:
        found["notes"].append(
            "log_loss is here that of the rows of both, by the six digits of"
            " predictions.jsonl: mistakes that were surer count less than in the table"
            " above, where the other run may be the better one"
        )
    return metrics


def _keyed(
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """Yield rows with what each is known by: its text, and which of that text it is.

    Not its line, which is another where a row above it was taken out or added, nor its
    split: one run held it out as validation, another in a fold of train. Of a text
    that stands in several rows, those of test come last. Several labels come in one
    order: each model has its own.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    for row in sorted(rows, key=_place):
        text = row.get("text"), row.get("text_pair")
        seen[text] += 1
        several = {n: sorted(x) for n in _ANSWERS if isinstance(x := row.get(n), list)}
        yield (*text, seen[text]), {**row, **several}


def _place(row: Mapping[str, Any]) -> tuple[bool, int]:
    return row.get("split") == "test", row.get("line") or row.get("row") or 0


def _shown(
    row_a: Mapping[str, Any], row_b: Mapping[str, Any], run_a: RunRecord
) -> dict[str, Any]:
    part = run_a.record.get("data", {}).get(row_a.get("split"), {})
    source = row_a.get("path") or part.get("source", row_a.get("split"))
    texts = [row_a[name] for name in ("text", "text_pair") if name in row_a]
    return {
        "place": f"{source}:{row_a.get('line', row_a.get('row'))}",
        "text": " / ".join(texts),
        "label": row_a["label"],
        "a": row_a["prediction"],
        "b": row_b["prediction"],
    }


def _unpaired(
    found: dict[str, Any], run_a: RunRecord, run_b: RunRecord
) -> dict[str, dict[str, Any]]:
    """Compare a metric of the same data that both have, by its standard errors."""
    for split, part in (("test", "test"), ("validation", "eval")):
        parts = [run.measured().get(part, {}) for run in (run_a, run_b)]
        hashes = [_data(run).get(f"{split} sha256") for run in (run_a, run_b)]
        shared = [n for n in _HEADLINES if all(n in p for p in parts)]
        if not shared or hashes[0] != hashes[1]:
            continue
        if hashes[0] is None:
            found["notes"].append(f"no verdict on {part}: of which rows is not known")
            continue
        name = shared[0]
        a, b = (p[name] for p in parts)
        errors = [entry.get("stderr") for entry in (a, b)]
        if None in (a["value"], b["value"], *errors):
            continue
        if name == "loss" and (why := _other_tokens(run_a, run_b, a, b)):
            found["notes"].append(f"no verdict on {part}: {why}")
            continue
        difference, error = b["value"] - a["value"], math.hypot(*errors)
        return {
            name: {
                "on": split,
                "a": a["value"],
                "b": b["value"],
                "difference": difference,
                "stderr": error,
                "sure": math.erf(abs(difference) / error / 2**0.5) if error else 0.0,
                "greater_is_better": _HEADLINES[name],
            }
        }
    return {}


def _other_tokens(
    run_a: RunRecord, run_b: RunRecord, a: Mapping[str, Any], b: Mapping[str, Any]
) -> str:
    """Return why losses per token are of different tokens, or ""."""
    tokenizers = [r.record.get("model", {}).get("tokenizer") for r in (run_a, run_b)]
    if tokenizers[0] != tokenizers[1]:
        return "their tokenizers differ, and so does what a token is"
    if run_a.recipe != run_b.recipe:
        return f"a loss of {run_a.recipe} is not one of {run_b.recipe}"
    if a.get("n") != b.get("n"):
        counts = [f"{x['n']:,}" if x.get("n") else "unknown" for x in (a, b)]
        return f"tokens that are predicted: {counts[0]} there, {counts[1]} here"
    return ""


def _verdict(
    metrics: Mapping[str, Mapping[str, Any]], a: str, b: str, clear: float
) -> str:
    """Return in words which of two is better by the first metric, and how sure."""
    told = {n: m for n, m in metrics.items() if m["difference"] is not None}
    if not told:
        return "no verdict"
    name, found = next(iter(told.items()))
    if found["difference"] and found["sure"] >= clear:
        better = b if (found["difference"] > 0) is found["greater_is_better"] else a
        return f"{better} is better: {_told(name, found, better == a)}"
    return f"no difference that could be told: {b} has {_told(name, found)}"


def _told(name: str, found: Mapping[str, Any], of_first: bool = False) -> str:
    """Return a difference in words: of the second run, or ``of_first``."""
    difference = -found["difference"] if of_first else found["difference"]
    said = f"{name} {change(name, difference, found['stderr'])}"
    if not difference:
        return said  # as sure as nothing: there is none
    return f"{said} ({percent_sure(found['sure'])} sure)"


def change(name: str, difference: float | None, error: float | None) -> str:
    """Return a difference with its error; of shares, in points."""
    if difference is None:
        return "-"
    scale, unit = (100, " points") if name.startswith(POINTS) else (1, "")
    digits = 2 if unit else 4
    spread = "-" if error is None else decimals(scale * error, digits)
    sign = "+" * (difference >= 0)
    return f"{sign}{decimals(scale * difference, digits)} +- {spread}{unit}"


def decimals(value: float, digits: int = 4) -> str:
    """Return a number with so many decimals; of a tiny one, its first two digits."""
    if value and abs(value) < 10**-digits:
        return f"{value:.2g}"
    return f"{value:.{digits}f}"
