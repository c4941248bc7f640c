"""Kill real runs in every way, start them again by the same command, and compare.

python scripts/faults.py                         20 kills at random times
python scripts/faults.py --kills 200 --output faults.json

A run is a recipe on a tiny random model, forked from this process, so that it needs no
imports. Figures have the numbers M1 to M16 of the reliability study; where it applies,
plain ``transformers.Trainer`` gets the same faults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import recipe_process as process
import tiny
import torch
from checkpointed import unseen
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from llmft.config.fields import LanguageModelingDataArguments
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.rows import streamed_files
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.data.tokens.stream import Stream
from llmft.files import FAILPOINTS, file_sha256, set_failpoint
from llmft.process import run_command
from llmft.train import checkpoint, resume
from llmft.train.objectives import MaskedLM
from llmft.train.trainer import LlmftTrainer

STEPS, SAVE_STEPS = 24, 3
SECONDS = 120  # after which a run counts as one that hangs
Result = dict[str, Any]


class Job:
    """What is run, killed and started again: ``start(folder)`` in a forked process."""

    def __init__(self, name: str, root: Path, start: Callable[..., int]) -> None:
        self.name, self.root, self.start = name, root, start
        self.count, self.seconds = 0, 0.0
        self.whole: Result = {}

    def new_folder(self) -> Path:
        self.count += 1
        return self.root / f"{self.name}-{self.count}"

    def fork(self, folder: Path, failpoint: str = "", more: Sequence[str] = ()) -> int:
        """Start it, a recipe with ``more`` flags; return the process."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            said = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            set_failpoint(failpoint)
            code = self.start(folder, *more)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, folder: Path, failpoint: str = "") -> int:
        """Run it to its end; return its exit code, negative for a signal."""
        return wait(self.fork(folder, failpoint))

    def reference(self) -> None:
        """Run it without a fault."""
        folder, began = self.new_folder(), time.monotonic()
        assert self.run(folder) == 0, Path(f"{folder}.txt").read_text()
        self.seconds, self.whole = time.monotonic() - began, outcome(folder)
        assert len(self.whole["losses"]) == STEPS

    def finish(self, folder: Path) -> str:
        """Start it again until it is done; return what is wrong in the end, or ""."""
        code = self.run(folder)
        if code:
            lines = Path(f"{folder}.txt").read_text().strip().splitlines()
            return f"exit {code}: {lines[-1] if lines else ''}"[:200]
        return self.differs(folder)

    def differs(self, folder: Path) -> str:
        """Return in what a run that is done is not the one without a fault, or ""."""
        found = outcome(folder)
        differ = [name for name, x in self.whole.items() if found[name] != x]
        return f"other {', '.join(differ)}" if differ else ""


def wait(pid: int) -> int:
    """Return the exit code of a process; end it where it hangs."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(folder: Path) -> Result:
    """Return weights and losses of a run that is done."""
    (weights,) = folder.glob("model/*.safetensors")
    losses = {}
    for event in process.read_jsonl(folder / "metrics.jsonl"):
        if "loss" in event:
            losses[event["step"]] = float(event["loss"]).hex()
    return {"weights": file_sha256(weights), "losses": losses}


def last_step(folder: Path) -> int:
    """Return the last step that a run has logged."""
    with suppress(OSError):
        text = (folder / "metrics.jsonl").read_text()
        events = [json.loads(x) for x in text.splitlines() if x.endswith("}")]
        return max((event["step"] for event in events), default=0)
    return 0


def saved_step(folder: Path) -> int:
    """Return the step that a run of llmft goes on from."""
    found = resume.newest(folder / "checkpoints")[0]
    return int(str(found).rpartition("-")[2]) if found else 0


def leftovers(folder: Path) -> list[str]:
    """Return what no run leaves in a folder that is done."""
    found = (*folder.rglob(".*"), *folder.rglob("*.tmp*"))
    return [str(path.relative_to(folder)) for path in found]


def recipe_job(recipe: str, root: Path) -> Job:
    """Return a recipe on a tiny model, saved every few steps."""
    main = process.main_of(recipe)
    tiny.save(root / "bert", "bert", "masked-lm")
    rows = process.keyword_rows(["gut", "schlecht"], ["good", "bad"], 60)
    lines = [f"{text},{label}" for text, label in rows]
    (root / "classify.csv").write_text("\n".join(["text,label", *lines]))
    (root / "mlm.txt").write_text("\n".join(tiny.sentences(60)))
    data = root / ("classify.csv" if recipe == "classify" else "mlm.txt")
    flags = [*process.QUICK, "--model_name_or_path", root / "bert", "--do_train"]
    flags += ["--train_file", data, "--per_device_train_batch_size", 4]
    flags += ["--max_steps", STEPS, "--save_strategy", "steps", "--logging_steps", 1]
    flags += ["--save_steps", SAVE_STEPS, "--eval_strategy", "steps", "--do_eval"]
    flags += ["--eval_steps", SAVE_STEPS, "--fast_path", "off", "--report_to", "none"]
    flags += ["--early_stopping_patience", "none"]
    flags += ["--ladder", "false"] if recipe == "classify" else []

    flags += ["--resume_from_checkpoint", "auto"]

    def start(folder: Path, *more: str) -> int:
        argv = [*map(str, flags), "--output_dir", str(folder), *more]
        return run_command(main, argv)

    return Job(recipe, root, start)


def trainer_job(root: Path) -> Job:
    """Return plain Trainer on the same classes, as its documentation resumes it."""
    tokenizer = tiny.wordpiece_tokenizer()
    rows = process.keyword_rows(["gut", "schlecht"], ["good", "bad"], 60)
    encoded = tokenizer([text for text, _ in rows])
    data = Dataset.from_dict({**encoded, "label": [i % 2 for i in range(60)]})

    def start(folder: Path) -> int:
        args = TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            save_steps=SAVE_STEPS,
            save_total_limit=2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model=tiny.model("bert", "classification", len(tokenizer)),
            args=args,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=data,
        )
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        trainer.train(resume_from_checkpoint=last)
        trainer.save_model(str(folder / "model"))
        lines = [json.dumps(event) for event in trainer.state.log_history]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
        return 0

    return Job("Trainer", root, start)


def random_kills(job: Job, kills: int, draw: random.Random) -> Result:
    """Kill runs at random times; each kill is followed by the same command."""
    plain = job.name == "Trainer"
    problems: list[str] = []
    lost: list[int] = []
    left: list[str] = []
    runs = done = 0
    while done < kills:
        folder, runs = job.new_folder(), runs + 1
        for _ in range(min(5, kills - done)):
            pid = job.fork(folder)
            time.sleep(draw.uniform(0, job.seconds))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            if code == 0:  # it was done before
                if wrong := job.differs(folder):
                    problems.append(wrong)
                break
            done += 1
            if code != -signal.SIGKILL:
                said = Path(f"{folder}.txt").read_text().strip().splitlines()
                problems.append(f"exit {code}: {said[-1] if said else ''}"[:200])
                break
            if not plain:  # which logs at its end
                lost.append(last_step(folder) - saved_step(folder))
        else:
            if wrong := job.finish(folder):
                problems.append(wrong)
        if not problems or not plain:
            left += leftovers(folder)
        shutil.rmtree(folder, ignore_errors=True)
    found: Result = {"kills": done, "runs": runs, "wrong": problems}
    return {**found, "most steps lost": max(lost, default=None), "left over": left}


def failpoints(job: Job) -> Result:
    """Fail at each point of the first, the second and the fourth save, in four ways."""
    wrong: list[str] = []
    left: list[str] = []
    tried = 0
    ways = [("kill9", 1), ("kill9", 2), ("kill9", 4), ("sigterm", 2), ("enospc", 2)]
    for name in FAILPOINTS:
        for action, count in ways:
            if name.endswith("half") and action == "sigterm":
                continue  # what is saved after it would be half of it
            folder, tried = job.new_folder(), tried + 1
            code = job.run(folder, f"{name}:{action}@{count}")
            codes = {"kill9": -9, "sigterm": 143, "enospc": 5}
            if code != codes[action]:
                wrong.append(f"{name}:{action}@{count}: exit {code}")
            elif said := job.finish(folder):
                wrong.append(f"{name}:{action}@{count}: {said}")
            left += leftovers(folder)
            shutil.rmtree(folder, ignore_errors=True)
    return {"tried": tried, "wrong": wrong, "left over": left}


def killed_in_saving(job: Job) -> Result:
    """Kill plain Trainer between the files of a save, as ``failpoints`` does."""

    def kill(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == 2 * SAVE_STEPS:
            os.kill(os.getpid(), signal.SIGKILL)

    wrong = []
    names = ["_save", "_save_optimizer_and_scheduler", "_save_rng_state", "store_flos"]
    for name in names:
        plain = getattr(Trainer, name)

        def cut(self: Any, *args: Any, _plain: Any = plain, **kwargs: Any) -> Any:
            found = _plain(self, *args, **kwargs)
            kill(self)
            return found

        folder = job.new_folder()
        setattr(Trainer, name, cut)
        code = job.run(folder)
        setattr(Trainer, name, plain)
        assert code == -signal.SIGKILL, code
        if said := job.finish(folder):
            wrong.append(f"after {name}: {said}")
    return {"tried": len(names), "wrong": wrong}


def stops(job: Job, times: int, draw: random.Random) -> Result:
    """Send SIGTERM or Ctrl-C at random times of the training; time the end."""
    took, lost, wrong = [], [], []
    for i in range(times):
        folder, number = job.new_folder(), (signal.SIGTERM, signal.SIGINT)[i % 2]
        pid = job.fork(folder)
        while not last_step(folder):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.4 * job.seconds))
        began = time.monotonic()
        os.kill(pid, number)
        code = wait(pid)
        if code == 0:
            continue
        took.append(time.monotonic() - began)
        if code != (143, 130)[i % 2]:
            wrong.append(f"exit {code}")
        lost.append(last_step(folder) - saved_step(folder))
        if said := job.finish(folder):
            wrong.append(said)
        shutil.rmtree(folder, ignore_errors=True)
    ordered = sorted(took)
    return {
        "stopped": len(took),
        "seconds p50": statistics.median(ordered),
        "seconds p95": ordered[int(0.95 * (len(ordered) - 1))],
        "most steps lost": max(lost),
        "wrong": wrong,
    }


def damages(job: Job, flips: int, cuts: int, seed: int) -> Result:
    """Flip single bits and cut files of a checkpoint; return what is not seen."""
    folder = job.new_folder()
    assert job.run(folder) == 0
    at = checkpoint.checkpoints(folder / "checkpoints")[-1]
    return {"flips": flips, "cuts": cuts, "missed": unseen(at, flips, cuts, seed)}


def races(root: Path, starts: int) -> Result:
    """Start many runs on one folder at once; return how many of them began."""
    from llmft.runs.record import held

    folder, gate = root / "race", root / "gate"
    folder.mkdir()
    children = []
    for _ in range(starts):
        if pid := os.fork():
            children.append(pid)
            continue
        code = 1
        try:
            while not gate.exists():
                time.sleep(0.001)
            with held(folder):
                time.sleep(3)
                code = 0
        finally:
            os._exit(code)
    gate.touch()
    return {"starts": starts, "began": sum(wait(pid) == 0 for pid in children)}


SIZE, LAST = 8, 100_000  # of a batch, and the last step that is gone on from


def recoveries(root: Path) -> Result:
    """Return the seconds from the start of a training to its first step, by the step.

    That is simulated: the checkpoint of step 1 is made one of a later step.
    """
    tokenizer = tiny.wordpiece_tokenizer()
    text = root / "long.txt"
    text.write_text("a great film\n" * (SIZE * (LAST + 2)))
    ids = [tokenizer("a great film")["input_ids"]] * (SIZE * (LAST + 2))
    rows = Dataset.from_dict({"input_ids": ids, "row": list(range(len(ids)))})
    args = LanguageModelingDataArguments(
        train_file=str(text), block_policy="row", buffer_size=1000
    )
    read = streamed_files(str(text), Columns(), Reading.of(args))
    found: Result = {}
    for kind in ("map", "stream"):
        data = rows if kind == "map" else Stream(read, args, tokenizer, 1, 0)
        first_step(root / kind, data, tokenizer, None, 1)
        for step in (100, LAST):
            at = root / kind / "checkpoint-1"
            state = json.loads((at / "trainer_state.json").read_text())
            state["global_step"] = step
            row, place = divmod(step * SIZE, 1000)
            position = [0, row * 1000, 0, row * 1000 + 1, 0, 0, place - 1]
            kept = state["stateful_callbacks"]["WholeSteps"]["attributes"]
            kept["position"] = position if kind == "stream" else None
            (at / "trainer_state.json").write_text(json.dumps(state))
            took = first_step(root / kind, data, tokenizer, str(at), LAST + 1)
            found[f"{kind}, step {step:,}"] = round(took, 3)
    return found


def first_step(
    folder: Path, data: Any, tokenizer: Any, at: str | None, steps: int
) -> float:
    """Train to the first step after a checkpoint; return the seconds."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=SIZE,
        save_steps=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        resume_from_checkpoint=at,
    )
    ours = {"time_limit": None, "early_stopping_patience": None}
    vars(args).update(ours, check_inputs=False, on_nonfinite="stop")
    timer = FirstStep()
    trainer = LlmftTrainer(
        objective=MaskedLM(),
        model=tiny.model("bert", "masked-lm", len(tokenizer)),
        args=args,
        data_collator=SeededDataCollatorForLanguageModeling(tokenizer),
        train_dataset=data,
        callbacks=[timer],
    )
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=at)
    return timer.at - began


class FirstStep(TrainerCallback):
    """Ends a training after its first step, and notes when that was."""

    at = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.at = time.monotonic()
        control.should_training_stop = True


def figures(args: argparse.Namespace, root: Path) -> Iterator[tuple[str, Result]]:
    """Yield a name and what was found, as it is found."""
    draw = random.Random(args.seed)
    for recipe in args.recipes:
        job = recipe_job(recipe, root)
        job.reference()
        again = job.new_folder()
        assert job.run(again) == 0
        assert outcome(again) == job.whole, "two runs without a fault differ"
        if not args.no_failpoints:
            yield f"{recipe}: failpoints (M1, M2, M14)", failpoints(job)
        kills = random_kills(job, args.kills, draw)
        yield f"{recipe}: SIGKILL at random (M1, M2, M3, M14)", kills
        yield f"{recipe}: signals (M3, M4)", stops(job, max(args.kills // 4, 4), draw)
        pickles = [p.name for p in again.glob("model/*") if p.suffix in (".bin", ".pt")]
        yield f"{recipe}: pickles in the model (M15)", {"files": pickles}
    yield (
        "damaged checkpoints (M7)",
        damages(job, args.damages[0], args.damages[1], args.seed),
    )
    yield "seconds to the first step of a resume (M5)", recoveries(root)
    yield "simultaneous starts (M13)", races(root, 100)
    plain = trainer_job(root)
    plain.reference()
    yield "Trainer: killed between files of a save (M1)", killed_in_saving(plain)
    yield "Trainer: SIGKILL at random (M1, M2)", random_kills(plain, args.kills, draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="at random times")
    parser.add_argument("--recipes", nargs="+", default=["classify", "mlm"])
    parser.add_argument("--damages", nargs=2, type=int, default=[1000, 200])
    parser.add_argument("--no_failpoints", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="llmft-faults-"))
    os.environ["LLMFT_HOME"] = str(root / "home")
    found: dict[str, Result] = {}
    try:
        for name, result in figures(args, root):
            found[name] = result
            print(f"{name}: {json.dumps(result)}", flush=True)
            if args.output:
                args.output.write_text(json.dumps(found, indent=1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
