"""Run folders as recipes leave them, of made-up numbers: for the page of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# Would run, turn the text around, ring, or push everything aside if it were shown raw.
HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\u202egnp.exe\u2066 \x1b[31m\x07",
    "x" * 100_000,
    "{{ 7 * 7 }} {% raw %}",
    "https://example.org/a?b=1&amp;c='\"",
)


def folder_of(
    path: Path,
    kind: str,
    rows: int = 300,
    classes: int = 3,
    hostile: bool = False,
    **record: Any,
) -> Path:
    """Make the folder of a run and return it.

    Args:
        kind: ``single``, ``multi``, ``regression``, ``mlm`` or ``generate``.
        hostile: texts, labels and names are ``HOSTILE``.
        record: replaces parts of ``run.json``.
    """
    path.mkdir(parents=True)
    draw = np.random.default_rng(0)
    recipe = kind if kind in ("mlm", "generate") else "classify"
    names = [f"class {i}" for i in range(classes)]
    if hostile:
        names[: len(HOSTILE)] = HOSTILE[:classes]
    _write(path / "run.json", _record(recipe, hostile) | record)
    _write_lines(path / "metrics.jsonl", _events(draw))
    _write(path / "metrics.json", _metrics(kind, names, hostile))
    if recipe == "classify":
        found = [_row(kind, names, i, draw, hostile) for i in range(rows)]
        _write_lines(path / "predictions.jsonl", found)
    else:
        _write(path / "examples.json", _examples(kind, hostile))
    return path


def _record(recipe: str, hostile: bool) -> dict[str, Any]:
    word = HOSTILE[0] if hostile else "as measured"
    source = f"{HOSTILE[2]}.csv" if hostile else "reviews.csv"
    part = {"source": source, "rows": 300, "notes": [word], "audit": {"duplicates": 2}}
    flags = {"learning_rate": 2e-4, "run_name": word, "max_seq_length": 128}
    return {
        "recipe": recipe,
        "status": "complete",
        "started": "2026-11-27T10:00:00+0000",
        "seconds": 125.0,
        "legs": [],
        "command": f"recipes/{recipe}.py --train_file '{source}'",
        "data": {"train": part, "test": part},
        "model": {"name": "pypi:all-MiniLM-L6-v2"},
        "arguments": {n: {"value": v, "from": "flag"} for n, v in flags.items()},
        "versions": {"llmft": "0.1.0", "torch": "2.13.0"},
        "cpu": {"name": word, "cores": 2},
        "choices": {"precision": {"value": "bf16", "reason": word}},
        "plan": {
            "steps": 400,
            "seconds": {"training": 90.0, "evaluating": 12.0},
            "memory_bytes": [1.2e9, 1.6e9],
        },
    }


def _events(draw: np.random.Generator) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(1, 401):
        noise = float(draw.normal(0, 0.02))
        found.append(
            {
                "step": step,
                "leg": 1,
                "time": 1000.0 + step,
                "loss": 2.0 * 0.99**step + 0.3 + noise,
                "grad_norm": 1.5 + noise,
                "learning_rate": 2e-4 * (1 - step / 400),
                "samples_per_second": 100 + 10 * noise,
                "rss_bytes": 1.2e9 + 1e6 * step,
            }
        )
        if step % 100 == 0:
            value = {
                "eval_loss": 1.5 / (step / 100),
                "eval_accuracy": 0.5 + step / 1000,
            }
            found.append({"step": step, "leg": 1, "time": 1000.0 + step, **value})
    return found


def _metrics(kind: str, names: list[str], hostile: bool) -> dict[str, Any]:
    def entry(value: float, stderr: float = 0.01) -> dict[str, Any]:
        return {"value": value, "n": 300, "stderr": stderr, "split": "test"}

    run = {"steps": 400, "train_seconds": 95.5, "peak_rss_bytes": 1.5e9}
    if kind in ("mlm", "generate"):
        groups = {"word start": 4.0, "continuation": 2.0, "number": 5.0}
        of = {
            n: {"loss": v, "accuracy": 1 / v, "tokens": 90} for n, v in groups.items()
        }
        places = {
            n: {"loss": v, "accuracy": 0.2, "tokens": 70}
            for n, v in {"16 to 31": 3.0, "under 8": 4.0, "8 to 15": 3.5}.items()
        }
        return {
            "before": {"perplexity": entry(50.0, 1.0)},
            "test": {"perplexity": entry(20.0, 0.5), "loss": entry(3.0)},
            "tokens": {"by_kind": of, "by_frequency": places, "by_position": places},
            "run": run,
        }
    name = {"single": "accuracy", "multi": "f1_micro", "regression": "r2"}[kind]
    rungs = [
        {"name": "majority", "value": 0.4, "stderr": 0.03, "seconds": 0.0},
        {"name": "TF-IDF + logistic", "value": 0.75, "stderr": 0.02, "seconds": 0.5},
        {"name": "linear probe", "value": 0.79, "stderr": 0.02, "seconds": 9.0},
        {"name": "fine-tuned", "value": 0.8, "stderr": 0.02, "seconds": 95.0},
    ]
    for rung, below in zip(rungs[:3], (0.4, 0.05, 0.01), strict=True):
        rung["below"] = {"value": below, "stderr": 0.01, "sure": 1 - 0.001 / below}
    weak = {"never_predicted": {names[0]: 3}, "what_helps": ["more rows of them"]}
    ladder = {"metric": name, "n": 300, "saved": "fine-tuned", "rungs": rungs}
    return {
        "test": {name: entry(0.8, 0.02), "calibration_error": entry(0.12)},
        "ladder": ladder,
        "weak_classes": weak if hostile else {},
        "run": run,
    }


def _row(
    kind: str, names: list[str], i: int, draw: np.random.Generator, hostile: bool
) -> dict[str, Any]:
    words = " ".join(["film"] * int(draw.integers(3, 40)))
    text = HOSTILE[i % len(HOSTILE)] if hostile else f"{words} number {i}"
    row: dict[str, Any] = {"split": "test", "row": i, "line": i + 2, "text": text}
    if kind == "regression":
        true = float(draw.normal())
        return row | {"label": true, "prediction": true + float(draw.normal(0, 0.4))}
    if kind == "multi":
        given = draw.random(len(names)) < 0.3
        p = np.clip(given * 0.6 + draw.random(len(names)) * 0.45, 0, 1)
        said = [n for n, v in zip(names, p, strict=True) if v >= 0.5]
        return row | {
            "label": [n for n, g in zip(names, given, strict=True) if g],
            "prediction": said,
            "probabilities": dict(zip(names, p.round(6).tolist(), strict=True)),
            "rungs": {"TF-IDF": {"prediction": said}},
        }
    given = int(draw.integers(len(names)))
    logits = draw.normal(0, 1, len(names))
    logits[given] += 3.5
    p = np.exp(logits) / np.exp(logits).sum()
    said = int(p.argmax())
    other = {"prediction": names[given], "probability": 0.6}
    return row | {
        "label": names[given],
        "prediction": names[said],
        "probability": round(float(p[said]), 6),
        "probabilities": dict(zip(names, p.round(6).tolist(), strict=True)),
        "rungs": {"TF-IDF": other},
    }


def _examples(kind: str, hostile: bool) -> dict[str, Any]:
    texts = HOSTILE if hostile else ("a film of the best", "it was a dull plot")
    if kind == "mlm":
        return {
            "fill_mask": [
                {"text": t, "word": "film", "before": "the, a", "after": "film, plot"}
                for t in texts
            ]
        }
    return {"samples": [{"prompt": t, "before": [t], "after": [t, t]} for t in texts]}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")


def _write_lines(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
