"""Is what a run chooses the fastest on every kind of machine that this one can play?

python scripts/candidates.py                         every job on every machine
python scripts/candidates.py --jobs mlm lora --machines avx2 --rounds 3

Older processors are played by environment variables, which the libraries read: oneDNN
(bf16) and PyTorch's own kernels leave out newer instructions, MKL (fp32) only on
Intel's processors.

Each job on each machine is a process that runs a shipped recipe with --dry_run and a
cache without trials. Once the trial has chosen, all candidates take turns: precision,
attention, and compiled layers, those only where the run is so long that the trial tried
them, with the seconds of compiling shared out to its steps. A figure is for whole
batches as they are trained on or evaluated, without the optimizer: the mean over those
in the middle of the short, the middle and the long third of an epoch, where they differ
in length, each the median of --rounds. What takes 1.5 times as long as the best after a
warm-up is run no more, and bf16 not at all where it takes 3 times as long as fp32 on
one example, as where it is emulated.

Right is a choice that takes at the most 1.03 times as long as the best, and 1.01 times
as long as the stock Trainer's settings: fp32, sdpa, layers as written. The exit code
is 1 where one is not. Close other programs.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import mean, median
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
from llmft.train.trials import COMPILING, Trial

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
    "compiled": ("generate", "--num_train_epochs", "9"),  # long enough to compile
    "lora": ("generate", "--lora_r", "8"),
    "evaluation": ("mlm", "--do_train", "false", "--do_predict", "false"),
}
TYPES, ATTENTIONS = ("fp32", "bf16"), ("eager", "sdpa")
STOCK = Candidate("fp32", "sdpa")
FAR, NEAR, NOISE = 1.5, 1.03, 1.01


def private_cache(folder: Path) -> dict[str, str]:
    """Return the environment of a cache in ``folder``, which knows no figures yet."""
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

    def take(
        steps: Steps, candidates: Any, batches: Batches, *rest: Any, **named: Any
    ) -> Any:
        trial = take_trial(steps, candidates, batches, *rest, **named)
        compiling = COMPILING / named["lasts"](1.0)  # of the batches of the run
        with steps.leaving_no_trace():
            seconds = thorough(steps, batches, trial, rounds)
        seconds = {c: took + compiling * c.compiled for c, took in seconds.items()}
        found["seconds"] = [*seconds.items()]
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
    trains, found = steps.args.do_train, dict[Candidate, float]()
    thirds = [len(batches) * part // 6 for part in (1, 3, 5)]
    places = {int(batches.lengths[i]): i for i in thirds}
    whole = [batches.examples(i) for i in places.values()]

    def warm_up(candidates: list[Candidate]) -> list[Candidate]:
        for c in candidates:
            found[c] = mean(steps.timed(c, examples, trains) for examples in whole)
        return [c for c in found if found[c] < FAR * min(found.values())]

    one = batches.examples(thirds[1], 1)
    probe = {p: steps.timed(STOCK._replace(precision=p), one, trains) for p in TYPES}
    types = [p for p in TYPES if p == "fp32" or probe[p] < 3 * probe["fp32"]]
    near = warm_up([Candidate(p, a) for p in types for a in ATTENTIONS])
    if any(candidate.compiled for candidate in trial.seconds):
        near = warm_up([c._replace(compiled=True) for c in near])
    if trial.chosen not in found:
        warm_up([trial.chosen])
    took = {c: [list[float]() for _ in whole] for c in near}
    for turn in range(rounds):
        for candidate in near if turn % 2 == 0 else near[::-1]:
            for seconds, examples in zip(took[candidate], whole, strict=True):
                start = time.perf_counter()
                steps.run(candidate, examples, trains)
                seconds.append(time.perf_counter() - start)
    return found | {c: mean(map(median, seconds)) for c, seconds in took.items()}


def row(machine: str, job: str, found: dict[str, Any]) -> tuple[list[str], bool, bool]:
    """Return the line of the table; whether the choice is near the best, and slow."""
    seconds = {Candidate(*c): took for c, took in found["seconds"]}
    chosen = Candidate(*found["chosen"])
    shown = {
        c: f"{1e3 * took:,.0f}" + "*" * (c == chosen) for c, took in seconds.items()
    }
    cells = [
        " ".join(shown.get(Candidate(p, a, compiled), "-") for a in ATTENTIONS)
        for compiled in (False, True)
        for p in TYPES
    ]
    over = seconds[chosen] / min(seconds.values())
    gain = seconds[STOCK] / seconds[chosen]
    line = [machine, job, *cells, f"{over:.3f}", f"{gain:.2f}"]
    return line, over <= NEAR, gain < 1 / NOISE


def tried(trial: list[tuple[list[Any], float]]) -> str:
    """Return what a trial measured of each candidate, in ms, as text."""
    each = [(Candidate(*settings), 1e3 * took) for settings, took in trial]
    return ", ".join(
        f"{c.precision} {c.attention}{' compiled' * c.compiled} {took:,.0f}"
        for c, took in each
    )


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
    for machine, job in product(args.machines, args.jobs):
        found = play(machine, job, args.rounds)
        rows.append(row(machine, job, found))
        over = f"chosen/best {rows[-1][0][-2]}, stock/chosen {rows[-1][0][-1]}"
        say(f"{machine}, {job}: {over}; the trial had {tried(found['trial'])} ms")
    header = ["machine", "job", "fp32: eager sdpa", "bf16", "fp32 compiled"]
    header += ["bf16 compiled", "chosen/best", "stock/chosen"]
    say("\nms of a batch, eager and sdpa; * was chosen\n")
    say(table([line for line, _, _ in rows], header))
    near, slow = sum(near for _, near, _ in rows), sum(slow for _, _, slow in rows)
    say(f"\n{near} of {len(rows)} within 3 % of the best, {slow} slower than stock")
    sys.exit(near < len(rows) or slow > 0)


if __name__ == "__main__":
    main()
