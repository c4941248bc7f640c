"""How near does a language model of automatic length come to the best of a grid?

python scripts/bench_lengths.py DATA --sets bbc_news --words 1000 4000 16000
python scripts/bench_lengths.py DATA --recipe generate --most 2000

Of each NAME_train.jsonl of DATA so many words are learnt by the recipe as a user would
start it, with files alone; then by each rate and each number of epochs of the grid, but
for those that take more than --most examples. Half of NAME_test.jsonl is validation,
half is test, both cut to --held_out words. The table has the perplexity on test of what
each run saved, and which part of the training came after its best evaluation. The file
of --output is written after each run; the same command goes on behind it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from bench_results import kept

from llmft.console import say, table
from llmft.runs.record import rows_of

ROOT = Path(__file__).resolve().parents[1]
# By recipe: the rates, and the epochs that each is tried with.
GRID = {
    "mlm": (("2e-4", "5e-4", "1e-3"), ("3", "10", "30", "90", "270")),
    "generate": (("2e-5", "5e-5", "1e-4"), ("1", "2", "5", "10")),
}


def texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def first(some: Iterable[str], words: int) -> Iterator[str]:
    """Return the first texts, until they have so many words together."""
    for text in some:
        if words <= 0:
            return
        yield text
        words -= len(text.split())


def write(folder: Path, data: Path, name: str, words: int, held_out: int) -> list[str]:
    """Write the parts; return the flags that name them."""
    held = texts(data / f"{name}_test.jsonl")
    parts = {
        "train": first(texts(data / f"{name}_train.jsonl"), words),
        "validation": first(held[::2], held_out),
        "test": first(held[1::2], held_out),
    }
    flags = []
    for part, rows in parts.items():
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        flags += [f"--{part}_file", str(path)]
    return flags


def train(recipe: str, flags: list[str]) -> dict[str, Any]:
    """Run the recipe; return what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"recipes/{recipe}.py", *flags]
        command += ["--output_dir", folder]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        seconds = time.perf_counter() - start
        found = json.loads((Path(folder) / "metrics.json").read_text())
        record = json.loads((Path(folder) / "run.json").read_text())
        seen = [e for e in rows_of(Path(folder) / "metrics.jsonl") if "eval_loss" in e]
    best = min(seen, key=lambda event: event["eval_loss"])
    arguments = {n: entry["value"] for n, entry in record["arguments"].items()}
    batch = arguments["per_device_train_batch_size"]
    batch *= arguments["gradient_accumulation_steps"]
    return {
        "epochs": arguments["num_train_epochs"],
        "rate": arguments["learning_rate"],
        "perplexity": found["test"]["perplexity"]["value"],
        "after_best": 1 - best["step"] / max(event["step"] for event in seen),
        "last_above_best": seen[-1]["eval_loss"] - best["eval_loss"],
        "examples": found["run"]["steps"] * batch / found["run"]["epochs"],  # a pass
        "seconds": seconds,
    }


def row(name: str, runs: dict[str, dict[str, Any]]) -> list[str]:
    """Return the line of a set: the automatic run beside the best of the grid."""
    auto, grid = runs["auto"], {n: r for n, r in runs.items() if n != "auto"}
    cells = [name, f"{auto['epochs']:g} x {auto['rate']:g}"]
    cells += [f"{auto['perplexity']:.4g}", f"{100 * auto['after_best']:.0f} %"]
    cells += [f"{auto['seconds']:.0f}"]
    if grid:
        best = min(grid, key=lambda n: grid[n]["perplexity"])
        value = grid[best]["perplexity"]
        above = 100 * (auto["perplexity"] / value - 1)
        cells += [f"{value:.4g}", best, f"{above:+.1f} %", f"{len(grid)}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--recipe", choices=[*GRID], default="mlm")
    parser.add_argument("--sets", nargs="+", required=True)
    sizes = [1000, 4000, 16_000, 64_000, 256_000]
    parser.add_argument("--words", nargs="+", type=int, default=sizes)
    parser.add_argument("--held_out", type=int, default=4000, metavar="WORDS")
    parser.add_argument("--most", type=int, default=30_000, metavar="EXAMPLES")
    parser.add_argument("--flags", default="", help="more for the recipe, in a string")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True)
    args = parser.parse_args()
    names = ("recipe", "held_out", "flags")
    before = kept(args.output, {name: getattr(args, name) for name in names})
    results: dict[str, dict[str, dict[str, Any]]] = before["results"]
    rates, epochs = GRID[args.recipe]
    for name, words in product(args.sets, args.words):
        runs = results.setdefault(f"{name}, {words:,} words", {})
        with tempfile.TemporaryDirectory() as folder:
            flags = write(Path(folder), args.data, name, words, args.held_out)
            flags += args.flags.split()
            # It writes text unless it is told to learn.
            flags += ["--do_train", "--do_predict"] * (args.recipe == "generate")
            settings = {f"{n} x {r}": (n, r) for n, r in product(epochs, rates)}
            for setting in ["auto", *settings]:
                own = []
                if setting != "auto":
                    n, rate = settings[setting]
                    own = ["--num_train_epochs", n, "--learning_rate", rate]
                    if runs["auto"]["examples"] * float(n) > args.most:
                        continue
                if setting not in runs:
                    runs[setting] = train(args.recipe, [*flags, *own])
                    found = runs[setting]["perplexity"]
                    say(f"{name}, {words:,} words, {setting}: {found:.4g}")
                    args.output.write_text(json.dumps(before, indent=2) + "\n")
    header = ["text", "epochs x rate", "perplexity", "after best", "seconds"]
    header += ["grid", "its best", "above it by", "of"]
    say("\n" + table([row(name, runs) for name, runs in results.items()], header))


if __name__ == "__main__":
    main()
