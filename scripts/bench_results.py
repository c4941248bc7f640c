"""How good is a classifier that the shipped recipe trains, on data it was not made on?

python scripts/results_data.py DATA                 fetches the sets
python scripts/bench_results.py DATA                each set, three seeds
python scripts/bench_results.py DATA --grid         beside the best of a grid
python scripts/bench_results.py DATA --sets sms_spam trec_fine --seeds 1
python scripts/bench_results.py DATA --per_class 8 16 64 --seeds 10      few texts
python scripts/bench_results.py DATA --rows 300 --k_folds 5 --seeds 20   intervals

Each NAME_train.jsonl of the folders, with NAME_test.jsonl and, where there is one,
NAME_validation.jsonl, goes through recipes/classify.py with no flags but files and
columns. The table shows what each rung of the ladder reached on the test set, in the
mean over the seeds, and the seconds of the whole command. With --grid, nine plain
trainings (rates by epochs, --ladder false) run on the same rows; the one that is best
on validation is shown, and by how many of its standard errors the delivered model is
above it. With --per_class, each seed draws so many texts of each class to train on, and
the deviation over these draws stands behind the mean; with --rows, so many texts
altogether. With --k_folds, the interval of a cross-validation on them is compared with
what the final model reaches on the test set. The file of --output is written after each
seed; the same command goes on behind the seeds that it holds.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from llmft.console import say, table

ROOT = Path(__file__).resolve().parents[1]
RATES, EPOCHS = ("5e-5", "1e-4", "2e-4"), ("1", "3", "8")


def files_and_columns(folder: Path, name: str) -> list[str]:
    """Return the flags that a user has to give for a set."""
    flags = []
    for part in ("train", "validation", "test"):
        path = folder / f"{name}_{part}.jsonl"
        if path.is_file():
            flags += [f"--{part}_file", str(path)]
    with (folder / f"{name}_train.jsonl").open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    label = "labels" if "labels" in first else "label"
    flags += ["--text_column_name", "text", "--label_column_name", label]
    if "text_pair" in first:
        flags += ["--text_pair_column_name", "text_pair"]
    return flags


def draw(
    folder: Path, name: str, per_class: int, count: int, seed: int, into: Path
) -> None:
    """Write some rows of a set's train, and up to 1,000 of its test.

    ``per_class`` of each class, or else ``count`` of all; the test is the same for
    every seed.
    """

    def rows(part: str) -> list[dict[str, Any]]:
        path = folder / f"{name}_{part}.jsonl"
        return [json.loads(line) for line in path.open(encoding="utf-8")]

    by_class: dict[str, list[dict[str, Any]]] = {}
    for one in rows("train"):
        by_class.setdefault(one["label"] if per_class else "", []).append(one)
    generator, test, most = random.Random(seed), rows("test"), per_class or count
    some = [generator.sample(of, min(most, len(of))) for of in by_class.values()]
    parts = {"train": [one for of in some for one in of]}
    parts["test"] = random.Random(0).sample(test, min(len(test), 1000))
    for part, kept in parts.items():
        lines = "".join(json.dumps(one) + "\n" for one in kept)
        (into / f"{name}_{part}.jsonl").write_text(lines)


def train(flags: list[str], seed: int) -> dict[str, Any]:
    """Run the recipe; return its final metrics, with the seconds of all of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "recipes/classify.py", *flags]
        command += ["--seed", str(seed), "--output_dir", folder]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        found = json.loads((Path(folder) / "metrics.json").read_text())
    return {**found, "seconds": time.perf_counter() - start}


def delivered(flags: list[str], seed: int) -> dict[str, Any]:
    """Return what the recipe reaches by itself: each rung, and what was saved."""
    found = train(flags, seed)
    ladder, of = found["ladder"], found.get("k_folds")
    rungs = {rung["name"].split(" + ")[0]: rung for rung in ladder["rungs"]}
    best = next(r for r in ladder["rungs"] if r["name"] == ladder["saved"])
    return {
        "metric": ladder["metric"],
        "rungs": {name: rung["value"] for name, rung in rungs.items()},
        "saved": ladder["saved"],
        "value": best["value"],
        "stderr": best["stderr"],
        "seconds": found["seconds"],
        **({"folds": of["metrics"][ladder["metric"]]} if of else {}),
    }


def best_of_grid(flags: list[str], seed: int, metric: str) -> dict[str, Any]:
    """Return the plain training that is best on validation, with its test metric."""
    runs = []
    for rate, epochs in product(RATES, EPOCHS):
        own = ["--ladder", "false", "--learning_rate", rate]
        own += ["--num_train_epochs", epochs, "--metric_for_best_model", metric]
        found = train([*flags, *own], seed)
        runs.append(
            {
                "settings": f"{rate} x {epochs}",
                "validation": found["eval"][metric]["value"],
                "value": found["test"][metric]["value"],
                "stderr": found["test"][metric]["stderr"],
            }
        )
        say(f"    {rate} x {epochs}: {runs[-1]['value']:.4f}")
    return max(runs, key=lambda run: run["validation"])


def row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """Return the line of a set: means over its seeds.

    The error beside what was delivered is that of the test, of few texts the deviation
    over the draws.
    """

    def mean(values: list[float]) -> str:
        return f"{statistics.mean(values):.3f}" if values else "-"

    names = ("TF-IDF", "linear probe", "fine-tuned")
    cells = [name, runs[0]["metric"]]
    cells += [mean([r["rungs"][n] for r in runs if n in r["rungs"]]) for n in names]
    values = [r["value"] for r in runs]
    value, error = mean(values), mean([r["stderr"] for r in runs])
    if "drawn" in runs[0] and len(runs) > 1:
        error = f"{statistics.stdev(values):.3f}"
    cells += [f"{value} +- {error}", mean([r["seconds"] for r in runs])]
    if "folds" in runs[0]:
        bounds = [r["folds"]["interval"] for r in runs]
        inside = sum(
            a <= r["value"] <= b for r, (a, b) in zip(runs, bounds, strict=True)
        )
        cells += [mean([r["folds"]["mean"] for r in runs]), f"{inside} of {len(runs)}"]
    if grids := [r for r in runs if "grid" in r]:
        above = [(r["value"] - r["grid"]["value"]) / r["stderr"] for r in grids]
        best = " ".join(sorted({r["grid"]["settings"] for r in grids}))
        cells += [mean([r["grid"]["value"] for r in grids]), mean(above), best]
    return cells


def kept(path: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a file has of these settings, to go on from."""
    if path is None or not path.is_file():
        return {"settings": settings, "results": {}}
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        sys.exit(f"{path} is of {found['settings']}, this is {settings}: name another")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DATA")
    parser.add_argument("--sets", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--per_class", nargs="+", type=int, metavar="N")
    parser.add_argument("--rows", type=int, default=0, metavar="N")
    parser.add_argument("--k_folds", type=int, default=0, metavar="K")
    parser.add_argument("--grid", action="store_true", help="also nine plain trainings")
    parser.add_argument("--flags", default="", help="more for the recipe, in a string")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON to go on from"
    )
    args = parser.parse_args()
    found = {
        path.name.removesuffix("_train.jsonl"): path.parent
        for folder in args.folders
        for path in sorted(folder.glob("*_train.jsonl"))
    }
    names = ("rows", "k_folds", "grid", "flags")
    before = kept(args.output, {name: getattr(args, name) for name in names})
    results: dict[str, list[dict[str, Any]]] = before["results"]
    for name, count in product(args.sets or found, args.per_class or [0]):
        shown = f"{name}, {count} a class" if count else name
        results.setdefault(shown, [])
        for seed in range(len(results[shown]) + 1, args.seeds + 1):
            with tempfile.TemporaryDirectory() as temporary:
                folder = found[name].resolve()
                if drawn := count or args.rows:
                    draw(folder, name, count, args.rows, seed, Path(temporary))
                    folder = Path(temporary)
                flags = [*files_and_columns(folder, name), *args.flags.split()]
                folds = ["--k_folds", str(args.k_folds)] if args.k_folds else []
                run = delivered([*flags, *folds], seed)
                run |= {"drawn": drawn} if drawn else {}
                if args.grid:
                    run["grid"] = best_of_grid(flags, seed, run["metric"])
            results[shown].append(run)
            say(f"{shown}, seed {seed}: {run['saved']} {run['value']:.4f}")
            if args.output:
                args.output.write_text(json.dumps(before, indent=2) + "\n")
    header = ["set", "metric", "TF-IDF", "probe", "tuned", "delivered", "seconds"]
    header += ["folds", "inside"] if args.k_folds else []
    header += ["grid", "above it by", "its best"] if args.grid else []
    say("\n" + table([row(name, runs) for name, runs in results.items()], header))


if __name__ == "__main__":
    main()
