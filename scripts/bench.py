"""How much faster than the stock Trainer is llmft on this machine?

python scripts/bench.py              every job, three rounds each (half an hour)
python scripts/bench.py --quick      one short round of three jobs (2 minutes)
python scripts/bench.py --quality    no times, but loss and accuracy of both sides
python scripts/bench.py --shared     what is left of the speed beside other programs
python scripts/bench.py --jobs mlm classify --precision fp32

mlm, classify and causal train the default models of the three recipes for an epoch of
a part of their default data; lora trains the causal model's factors, compared with
stock's full training; evaluation is that of mlm; sampling writes text. Close other
programs.

Each side is a process of its own, and they take turns: llmft is the shipped recipe with
what it chooses on this machine, stock is scripts/stock.py (fp32, batch 8, all logits,
texts padded to 128). All get the same model and the same examples, once. A ratio is the
stock side's seconds over llmft's of the same round, above 1 where llmft is faster; the
median of the rounds is shown, with the smallest and the largest. Loading and
preprocessing are not in them.

The limit is what the machine could do if a job were multiplying matrices alone, at the
fastest speed measured between the runs: that speed divided by the operations that the
job needs for a token, 6 for each multiply-add of the forward pass (2 forward, 4
backward), 4 for LoRA, 2 without training. There is a multiply-add for each weight of
the matrices, and 2 * layers * length * hidden for attention, half of that in a causal
model. A masked-LM head, and the last layer past its attention, count for the masked
15 % of the positions, in a classifier for the first. Text is written one token at a
time: there the limit is reading the weights, 4 bytes for each, as fast as memory is
copied. Nearer is the speed "of its products": the ones with the model's matrices alone,
in the shapes and the precision of the run, one after the other. "trial s" is what
trying took before the first round, in which layers were compiled where they are; it is
not in the seconds.

With --shared, mlm, classify and causal run on few rows, each side alone, beside a
program that keeps one core busy (the share of the speed alone that is kept), and twice
at once (both speeds together over that of one alone).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmft.process import limit_spinning, versions

# Of both sides, before this process sets its own: stock is as the user has it.
ENVIRONMENT = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
if __name__ == "__main__":
    limit_spinning()  # is read when torch loads

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.utils import logging

from llmft.config.fields import ModelArguments
from llmft.console import say, table
from llmft.machine import detect, measure
from llmft.model import load

ROOT = Path(__file__).resolve().parents[1]
TRAIN_ONLY = (
    "--do_eval false --do_predict false --eval_strategy no --save_strategy no"
    " --load_best_model_at_end false --num_train_epochs 1"
).split()


@dataclass(frozen=True)
class Job:
    """One comparison: a recipe with flags, against a job of scripts/stock.py.

    Attributes:
        stock: the job of scripts/stock.py, run once a round for all that name it.
        size, quick_size: rows of training data, or tokens to write.
        quality_size: rows of --quality, where they differ. A part as small as that of
            the timing would be a few large batches to llmft.
        passes: operations for a multiply-add of the forward pass, see above; 4 where
            the weights are frozen and have no gradient.
    """

    recipe: str
    stock: str
    size: int
    quick_size: int
    flags: tuple[str, ...] = ()
    passes: int = 6
    quality_size: int | None = None


# Compiled as a training of five minutes would choose by itself; where that happens
# before the first step, as without LoRA, it is not in the seconds.
GENERATE = ("--max_new_tokens", "1", "--compile_layers", "true")
JOBS = {
    "mlm": Job("mlm", "mlm", 2700, 300, ("--num_examples", "0")),
    "classify": Job(
        *("classify", "classify", 2048, 128),
        ("--ladder", "false"),
        quality_size=10_283,
    ),
    "causal": Job("generate", "generate", 240, 28, GENERATE),
    "lora": Job("generate", "generate", 240, 28, (*GENERATE, "--lora_r", "8"), 4),
    "evaluation": Job("mlm", "evaluation", 1223, 300, ("--num_examples", "0"), 2),
    "sampling": Job("generate", "sampling", 160, 64, passes=2),
}
QUICK = ["mlm", "classify", "sampling"]
SHARED = ["mlm", "classify", "causal"]


def run_process(command: list[str]) -> str:
    """Run a side to its end and return what it printed; exit where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def run_stock(job: Job, size: int, seed: int, extra: list[str]) -> dict[str, Any]:
    """Run the stock side; return seconds, examples and peak memory."""
    command = [sys.executable, "scripts/stock.py", job.stock, str(size)]
    out = run_process([*command, "--seed", str(seed), *extra])
    return json.loads(out.splitlines()[-1])


def run_llmft(job: Job, size: int, seed: int, extra: list[str]) -> dict[str, Any]:
    """Run the recipe; return seconds, examples and peak memory, as the run has them."""
    recipe = [sys.executable, f"recipes/{job.recipe}.py", "--seed", str(seed)]
    flags = [*job.flags, *extra]
    if job.stock == "sampling":
        limits = ["--max_new_tokens", str(size), "--min_new_tokens", str(size)]
        out = run_process(
            [*recipe, "--prompt", "Once upon a time", *limits, *flags]
        ).splitlines()
        said = next(line for line in reversed(out) if line.startswith("written"))
        tokens, rate, memory = (float(x.split()[0]) for x in said[11:].split(", "))
        bytes_ = memory * 2**20
        return {
            "examples": tokens,
            "seconds": tokens / rate,
            "peak_rss_bytes": bytes_,
        }
    with tempfile.TemporaryDirectory() as folder:
        args = ["--args", f"recipes/{job.recipe}_cpu.json", "--output_dir", folder]
        if job.stock == "evaluation":
            args += ["--do_train", "false", "--do_predict", "false"]
            args += ["--max_eval_samples", str(size)]
        else:
            args += [*TRAIN_ONLY, "--max_train_samples", str(size)]
        run_process([*recipe, *args, *flags])
        final, run = (
            json.loads((Path(folder) / f"{name}.json").read_text())
            for name in ("metrics", "run")
        )
        log = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    logged = {k: v for line in log for k, v in json.loads(line).items()}
    kind = "eval" if job.stock == "evaluation" else "train"
    seconds = logged[f"{kind}_runtime"]
    return {
        "seconds": seconds,
        "examples": round(seconds * logged[f"{kind}_samples_per_second"]),
        "tokens_per_second": final["run"].get("train_tokens_per_second"),
        "train_seconds": final["run"].get("train_seconds"),
        "peak_rss_bytes": final["run"]["peak_rss_bytes"],
        "test": final.get("test", {}),
        "batch": run["arguments"][f"per_device_{kind}_batch_size"]["value"],
        "trial_seconds": run["plan"]["trial_seconds"],
        "choices": {
            name: run["choices"][name]["value"]
            for name in ("precision", "attention", "layers")
            if name in run["choices"]
        },
    }


def run_side(side: str, name: str, quick: bool, extra: list[str]) -> dict[str, Any]:
    """Run stock, or else llmft, on the job ``name``."""
    job = JOBS[name]
    size = job.quick_size if quick else job.size
    if side == "stock":
        return run_stock(job, size, 42, [])
    return run_llmft(job, size, 42, extra)


def matmul_limit() -> float:
    """Return the fastest matrix multiplication of the two types, in GFLOP/s."""
    torch.set_num_threads(detect.usable_cores())
    return max(measure.matmul_gflops(torch.float32, torch.bfloat16, seconds=0.3))


def matrices(job: Job, length: float) -> tuple[list[tuple[torch.Tensor, float]], float]:
    """Return the matrices of a job's model, and its attention; see the module.

    Each matrix with the part of the positions that it multiplies; multiply-adds of
    attention for a token.
    """
    causal = job.recipe == "generate"
    name = "SmolLM2-135M-Instruct" if causal else "all-MiniLM-L6-v2"
    args = ModelArguments(model_name_or_path=f"pypi:{name}")
    loader = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model: Any = loader.from_pretrained(load.locate(args, f"pypi:{name}").path_or_id)
    hidden, layers = model.config.hidden_size, model.config.num_hidden_layers
    few = {"mlm": 0.15, "classify": 1 / length}.get(job.recipe, 1.0)
    found = []
    for name, p in model.base_model.named_parameters():
        if p.ndim == 2 and "embed" not in name:
            at_end = f"layer.{layers - 1}." in name and "attention.self" not in name
            found.append((p.detach(), few if at_end else 1.0))
    if job.recipe != "classify":
        found.append((model.get_input_embeddings().weight.detach(), few))
    if job.recipe == "mlm":
        found.append((torch.randn(hidden, hidden), few))
    return found, 2.0 * layers * length * hidden * (0.5 if causal else 1.0)


def products_seconds(
    weights: list[tuple[torch.Tensor, float]], passes: int, tokens: int, bf16: bool
) -> float:
    """Return how long the products with the matrices take in a step of ``tokens``.

    One after the other, as in a step, so that none finds its operands in the cache.
    """
    works = []
    for matrix, part in weights:
        w = matrix.to(torch.bfloat16 if bf16 else torch.float32)
        x, slope = (
            torch.randn(max(int(part * tokens), 1), n).to(w.dtype)
            for n in reversed(w.shape)
        )
        works += [partial(torch.mm, x, w.T)]
        works += [partial(torch.mm, slope, w)] * (passes > 2)
        works += [partial(torch.mm, slope.T, x)] * (passes > 4)
    return measure.best_seconds([lambda: [work() for work in works]], 0.0, least=3)[0]


def compare(
    names: list[str], rounds: int, quick: bool, extra: list[str]
) -> dict[str, dict[str, Any]]:
    """Run jobs that share their stock side in turns; return all figures of each."""
    job = JOBS[names[0]]
    sides: dict[str, list[dict[str, Any]]] = {side: [] for side in ["stock", *names]}
    limits = [matmul_limit()]
    for turn in range(rounds):
        for side in [*sides] if turn % 2 == 0 else [*reversed(sides)]:
            start = time.perf_counter()
            name = names[0] if side == "stock" else side
            found = run_side(side, name, quick, extra)
            sides[side].append(found)
            limits.append(matmul_limit())
            rate = found["examples"] / found["seconds"]
            wall = time.perf_counter() - start
            label = f"{job.stock} stock" if side == "stock" else f"{side} llmft"
            say(f"{label:<17} {rate:8.2f} examples/s ({wall:.0f} s in all)")
    counts = {run["examples"] for runs in sides.values() for run in runs}
    if len(counts) > 1:
        sys.exit(f"{', '.join(names)}: different numbers of examples, {counts}")
    gflops = max(limits)
    return {
        n: {"stock": sides["stock"], "llmft": sides[n], "gflops": gflops} for n in names
    }


def summary(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Reduce the rounds of a job to medians, their spread, and part of the limit."""
    stock, ours = found["stock"], found["llmft"]
    ratios = sorted(
        a["seconds"] / b["seconds"] for a, b in zip(stock, ours, strict=True)
    )
    rates = {
        side: statistics.median(r["examples"] / r["seconds"] for r in runs)
        for side, runs in (("stock", stock), ("llmft", ours))
    }
    memory = {
        side: statistics.median(r["peak_rss_bytes"] for r in runs) / 2**30
        for side, runs in (("stock", stock), ("llmft", ours))
    }
    length, job, chosen = 128.0, JOBS[name], ours[0].get("choices", {})
    if name == "classify":
        trained = ours[0]
        length = trained["tokens_per_second"] * trained["train_seconds"]
        length /= trained["examples"]
    weights, attention = matrices(job, length)
    needed = job.passes * (sum(w.numel() * part for w, part in weights) + attention)
    products = math.nan
    if name == "sampling":  # 2 operations and 4 bytes for each weight
        limit = measure.bandwidth_gb_s() * 1e9 / (2 * needed)
    else:
        limit = found["gflops"] * 1e9 / (needed * length)
        batch, bf16 = ours[0]["batch"], chosen.get("precision") == "bf16"
        took = products_seconds(weights, job.passes, int(batch * length), bf16)
        products = rates["llmft"] / (batch / took)
    return {
        "stock": rates["stock"],
        "llmft": rates["llmft"],
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "stock_peak_gib": memory["stock"],
        "llmft_peak_gib": memory["llmft"],
        "limit": limit,
        "stock_of_limit": rates["stock"] / limit,
        "llmft_of_limit": rates["llmft"] / limit,
        "llmft_of_products": products,
        "choices": chosen,
        "trial_seconds": max(run.get("trial_seconds", math.nan) for run in ours),
        "matmul_gflops": found["gflops"],
    }


def shared(names: list[str], extra: list[str]) -> list[dict[str, Any]]:
    """Measure each job alone, beside a busy program, and twice at once; print it."""
    results = []

    def speed(side: str, name: str) -> float:
        found = run_side(side, name, True, extra)
        return found["examples"] / found["seconds"]

    for name, side in ((n, s) for n in names for s in ("stock", "llmft")):
        alone = speed(side, name)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            try:
                beside = speed(side, name) / alone
            finally:
                busy.kill()
        with ThreadPoolExecutor(2) as pool:
            two = sum(pool.map(speed, [side] * 2, [name] * 2)) / alone
        values = {"alone": alone, "beside_a_program": beside, "two_at_once": two}
        results.append({"job": name, "side": side, **values})
        say(f"{name} {side}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()))
    rows = [
        [f"{x:.2f}" if isinstance(x, float) else x for x in r.values()] for r in results
    ]
    say(
        "\n"
        + table(rows, ["job", "side", "alone/s", "beside a program", "two at once"])
    )
    return results


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table of all jobs."""
    rows = [
        (
            name,
            f"{r['stock']:.2f}",
            f"{r['llmft']:.2f}",
            f"{r['ratio']:.2f} ({r['ratio_min']:.2f}-{r['ratio_max']:.2f})",
            f"{r['stock_peak_gib']:.1f}, {r['llmft_peak_gib']:.1f}",
            f"{r['stock_of_limit']:.2f}, {r['llmft_of_limit']:.2f}",
            "-" if name == "sampling" else f"{r['llmft_of_products']:.2f}",
            " ".join(r["choices"].values()),
            f"{r['trial_seconds']:.1f}".replace("nan", "-"),
        )
        for name, r in results.items()
    ]
    header = ["job", "stock/s", "llmft/s", "ratio", "peak GiB", "of the limit"]
    header += ["of its products", "chosen", "trial s"]
    say()
    say(table(rows, header))


def quality(names: list[str], extra: list[str]) -> dict[str, Any]:
    """Train both sides on the same examples for three seeds; judge on the test set."""
    results: dict[str, Any] = {}
    for name in (n for n in names if JOBS[n].stock in ("mlm", "classify", "generate")):
        job, metric = JOBS[name], "accuracy" if name == "classify" else "loss"
        size = job.quality_size or job.size
        for seed in (1, 2, 3):
            stock = run_stock(job, size, seed, ["--quality"])[metric]
            flags = ["--do_predict", "true"]
            ours = run_llmft(job, size, seed, [*flags, *extra])["test"][metric]
            results.setdefault(name, []).append((stock, ours["value"]))
            say(f"{name} seed {seed}: stock {stock:.4f}, llmft {ours['value']:.4f}")
        means = [statistics.mean(side) for side in zip(*results[name], strict=True)]
        say(f"{name} {metric}: stock {means[0]:.4f}, llmft {means[1]:.4f}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", nargs="+", choices=JOBS, help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--quick", action="store_true", help=f"one short round of {', '.join(QUICK)}"
    )
    parser.add_argument(
        "--quality", action="store_true", help="loss and accuracy of both, three seeds"
    )
    parser.add_argument(
        "--shared", action="store_true", help="both beside a program, and twice at once"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="of llmft; stock is fp32",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write all figures as JSON"
    )
    args = parser.parse_args()
    extra = ["--precision", args.precision]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    machine = detect.detect()
    about = {
        "cpu": machine.cpu,
        "features": machine.features,
        "cores": machine.cores,
        "threads": machine.physical_cores,
        "precision": args.precision,
        "versions": versions(),
    }
    say(f"{machine.cpu}, {machine.cores} cores, precision {args.precision}")
    for line in detect.warnings(machine):
        say(f"  - {line}")
    names = args.jobs or (
        SHARED if args.shared else QUICK if args.quick else list(JOBS)
    )
    if args.shared:
        record = {**about, "shared": shared(names, extra)}
    elif args.quality:
        record = {**about, "quality": quality(names, extra)}
    else:
        rounds = 1 if args.quick else args.rounds
        found: dict[str, dict[str, Any]] = {}
        for stock in dict.fromkeys(JOBS[name].stock for name in names):
            group = [name for name in names if JOBS[name].stock == stock]
            found |= compare(group, rounds, args.quick, extra)
        # Last: what this process holds counts in the peak of those that it starts.
        results = {name: summary(name, runs) for name, runs in found.items()}
        show(results)
        record = {**about, "results": results}
    if args.output:
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
