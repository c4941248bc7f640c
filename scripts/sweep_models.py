"""Try every model family of transformers with each recipe, on a tiny random model.

python scripts/sweep_models.py --lora --output recipes/MODELS.md
python scripts/sweep_models.py --tasks mlm classify --families bert modernbert

A family is trained for two steps, resumed after the first, saved, loaded again and
compared with plain transformers: see model_checks.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from model_checks import (
    INTERNAL,
    WORKS,
    main_of,
    quiet,
    result,
)
from tiny_configs import TASKS, families

SECONDS = 60  # of the CPU, for a family


def in_child(task: str, family: str, lora: bool) -> dict[str, str]:
    """Return the ``result`` of a family, tried in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"sweep-{family}-"))
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with quiet():
            found = result(task, family, lora, folder)
        (folder / "result.json").write_text(json.dumps(found))
        os._exit(0)
    until = time.monotonic() + 5 * SECONDS  # where others have the core, too
    status = None
    while status is None:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = -1
        else:
            time.sleep(0.02)
    written = folder / "result.json"
    if written.exists():
        found = json.loads(written.read_text())
    else:
        ended = f"not within {SECONDS} s" if status == -1 else f"ended with {status}"
        found = {"result": INTERNAL, "what": f"its process {ended}"}
    shutil.rmtree(folder, ignore_errors=True)
    return found


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return a table of families and tasks, and below it why some do not work."""
    reasons: dict[str, int] = {}

    def cell(got: dict[str, str] | None) -> str:
        if got is None:
            return ""
        if got["result"] == WORKS:
            return WORKS
        reason = f"{got['result']}: {got['what']}".replace("|", "\\|")
        return f"{got['result']} [{reasons.setdefault(reason, len(reasons) + 1)}]"

    names = sorted({family for part in found.values() for family in part})
    rows = [
        [name, *(cell(part.get(name)) for part in found.values())] for name in names
    ]
    counts = [Counter(x["result"] for x in part.values()) for part in found.values()]
    totals = [", ".join(f"{n} {r}" for r, n in c.most_common()) for c in counts]
    head = ["family", *found]
    lines = [head, ["---"] * len(head), *rows, ["**all**", *totals]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    why = "\n".join(f"{n}. {reason}" for reason, n in reasons.items())
    return f"""# Model families that llmft was tried with

transformers {transformers.__version__}, tiny random models, `scripts/sweep_models.py`.
"works": trained for two steps, resumed after the first with the same bytes, saved,
loaded by transformers, and equal to a plain loop over the same examples in loss and
weights; with `--lora_r` the merged model gives the logits of base and factors. Empty:
transformers has no such head.

{table}

{why}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS])
    parser.add_argument("--families", nargs="+", default=[])
    parser.add_argument("--lora", action="store_true", help="generate with lora_r 4")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path, help="results are kept and added here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [(t, False) for t in args.tasks] + [("generate", True)] * args.lora
    found: dict[str, dict[str, Any]] = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text())
    began = time.monotonic()
    home = tempfile.mkdtemp(prefix="sweep-home-")
    os.environ["LLMFT_HOME"] = home
    for task, _ in kinds:
        main_of(TASKS[task].recipe)
    gc.freeze()  # Trainer collects garbage, among all of transformers
    for task, lora in kinds:
        column = f"{task} --lora_r" if lora else task
        for family in families(task):
            if args.families and family not in args.families:
                continue
            start = time.monotonic()
            got = in_child(task, family, lora)
            found.setdefault(column, {})[family] = got
            took = time.monotonic() - start
            print(
                f"{column} {family}: {got['result']} {got['what']} {took:.1f}s",
                flush=True,
            )
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))
        print(column, dict(Counter(x["result"] for x in found[column].values())))
    shutil.rmtree(home, ignore_errors=True)
    if args.output:
        args.output.write_text(markdown(found))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
