"""Is what a run chooses the fastest on every kind of machine that this one can play?

python scripts/candidates.py                         every job on every machine
python scripts/candidates.py --jobs mlm lora --machines avx2 --rounds 3

Older processors are played by environment variables, which the libraries read: oneDNN
(bf16) and PyTorch's own kernels leave out newer instructions, MKL (fp32) only on
Intel's processors.

Each job on each machine is a process that runs a shipped recipe with --dry_run and a
cache without trials. Once the trial has chosen, all candidates take turns: precision,
attention, and compiled layers, but those only where the trial tried them: whether
compiling pays also depends on how long the run is. A figure is the mean of three whole
batches, in the middle of the shorter, middle and longer third of an epoch, each the
median of --rounds, as it is trained on or evaluated (without the optimizer, which is
the same for all). What takes 1.5 times as long as the best after a warm-up is run no
more, nor is a precision that does so on one example, as bf16 where it is emulated.

Right is a choice that takes at the most 1.03 times as long as the best, and 1.01 times
as long as the stock Trainer's settings: fp32, sdpa, layers as written. The exit code
is 1 where one is not. Close other programs.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmft.process import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # is read when torch loads

import torch

from llmft.console import say, table
from llmft.machine.trial import Candidate
from llmft.sources import catalog
from llmft.train import fast_path
from llmft.train.batches import Batches
from llmft.train.steps import Steps
from llmft.train.trials import Trial

ROOT = Path(__file__).resolve().parents[1]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# What a machine must have to be played, in torch's names, and how it is played.
MACHINES: dict[str, tuple[str, dict[str, str]]] = {
    "as it is": ("", {}),
    "avx512_bf16": ("amx_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}),
    "avx512": ("avx512_f", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}),
    "avx2": ("avx2", {"ONEDNN_MAX_CPU_ISA": "AVX2", **AVX2}),
}
JOBS = {
    "mlm": ("mlm",),
    "classify": ("classify",),
    "causal": ("generate",),
    "lora": ("generate", "--lora_r", "8"),
    "evaluation": ("mlm", "--do_train", "false", "--do_predict", "false"),
}
STOCK = Candidate("fp32", "sdpa")
FAR, NEAR, NOISE = 1.5, 1.03, 1.01


def private_cache(folder: Path) -> dict[str, str]:
    """Return the environment of a cache in ``folder`` with all but what was measured."""
    for entry in catalog.cache_home().iterdir():
        if entry.name != "hardware":
            (folder / entry.name).symlink_to(entry)
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return {**compiled, "LLMFT_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def play(machine: str, job: str, rounds: int) -> dict[str, Any]:
    """Run ``measure`` in a process that has the machine ``machine``."""
    command = [sys.executable, __file__, "--one", job, "--rounds", str(rounds)]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, **MACHINES[machine][1], **private_cache(Path(folder))}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"{machine}, {job} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(job: str, rounds: int) -> None:
    """Let the recipe choose, then time all candidates; print both as one line."""
    name, *flags = JOBS[job]
    sys.path.insert(0, str(ROOT / "recipes"))
    recipe, take_trial = importlib.import_module(name), fast_path.take_trial

    def take(steps: Steps, candidates: Any, batches: Batches, *rest: Any, **named: Any):
        trial = take_trial(steps, candidates, batches, *rest, **named)
        with steps.leaving_no_trace():
            found["seconds"] = [*thorough(steps, batches, trial, rounds).items()]
        found["trial"] = [*trial.seconds.items()]
        found["chosen"] = trial.chosen
        return trial

    found: dict[str, Any] = {}
    fast_path.take_trial = take
    recipe.main(["--args", f"recipes/{name}_cpu.json", "--dry_run", *flags])
    print(json.dumps(found))


def thorough(
    steps: Steps, batches: Batches, trial: Trial, rounds: int
) -> dict[Candidate, float]:
    """Return the seconds of a batch with each candidate; see above."""
    trains = steps.args.do_train
    thirds = [len(batches) * part // 6 for part in (1, 3, 5)]
    places = {int(batches.lengths[i]): i for i in thirds}  # many have one length
    weights = [int(batches.lengths[i]) for i in thirds]

    def mean(seconds: dict[int, float]) -> float:
        return statistics.mean(seconds[length] for length in weights)

    def warmed_up(candidates: list[Candidate]) -> dict[Candidate, float]:
        return {
            c: mean(
                {
                    length: steps.timed(c, batches.examples(i), trains)
                    for length, i in places.items()
                }
            )
            for c in candidates
        }

    one = batches.examples(thirds[1], 1)
    probe = {
        p: steps.timed(Candidate(p, "sdpa"), one, trains) for p in ("fp32", "bf16")
    }
    precisions = [p for p in probe if p == "fp32" or probe[p] < 3 * probe["fp32"]]
    found = warmed_up([Candidate(p, a) for p in precisions for a in ("eager", "sdpa")])
    if any(candidate.compiled for candidate in trial.seconds):
        near = [c for c in found if found[c] < FAR * min(found.values())]
        found |= warmed_up([c._replace(compiled=True) for c in near])
    near = [c for c in found if found[c] < FAR * min(found.values())]
    took: dict[Candidate, dict[int, list[float]]] = {
        c: {length: [] for length in places} for c in near
    }
    for turn in range(rounds):
        for candidate in near if turn % 2 == 0 else near[::-1]:
            for length, place in places.items():
                examples = batches.examples(place)
                start = time.perf_counter()
                steps.run(candidate, examples, trains)
                took[candidate][length].append(time.perf_counter() - start)
    return found | {
        c: mean({length: statistics.median(x) for length, x in all_.items()})
        for c, all_ in took.items()
    }


def row(machine: str, job: str, found: dict[str, Any]) -> tuple[list[str], bool, bool]:
    """Return the line of the table; whether the choice is near the best, and slow."""
    seconds = {Candidate(*c): took for c, took in found["seconds"]}
    chosen = Candidate(*found["chosen"])
    cells = []
    for compiled in (False, True):
        for precision in ("fp32", "bf16"):
            of = [Candidate(precision, a, compiled) for a in ("eager", "sdpa")]
            shown = [f"{1e3 * seconds[c]:,.0f}" if c in seconds else "-" for c in of]
            marked = [s + "*" * (c == chosen) for s, c in zip(shown, of, strict=True)]
            cells.append(" ".join(marked))
    over, gain = (
        seconds[chosen] / min(seconds.values()),
        seconds[STOCK] / seconds[chosen],
    )
    line = [machine, job, *cells, f"{over:.3f}", f"{gain:.2f}"]
    return line, over <= NEAR, gain < 1 / NOISE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has = torch.cpu.get_capabilities()
    machines = [
        n for n, (needed, _) in MACHINES.items() if not needed or has.get(needed)
    ]
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=[*JOBS])
    parser.add_argument("--machines", nargs="+", choices=machines, default=machines)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--one", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(args.one, args.rounds)
    rows = []
    for machine in args.machines:
        for job in args.jobs:
            found = play(machine, job, args.rounds)
            rows.append(row(machine, job, found))
            trial = ", ".join(
                f"{' '.join(map(str, c))} {1e3 * s:,.0f}" for c, s in found["trial"]
            )
            say(f"{' | '.join(rows[-1][0])} | trial, ms: {trial}")
    header = ["machine", "job", "fp32: eager sdpa", "bf16", "fp32 compiled"]
    header += ["bf16 compiled", "chosen/best", "stock/chosen"]
    say("\nms of a batch, eager and sdpa; * was chosen\n")
    say(table([line for line, _, _ in rows], header))
    near, slow = sum(near for _, near, _ in rows), sum(slow for _, _, slow in rows)
    say(f"\n{near} of {len(rows)} within 3 % of the best, {slow} slower than stock")
    sys.exit(near < len(rows) or slow > 0)


if __name__ == "__main__":
    main()
