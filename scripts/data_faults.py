"""What today's libraries make of faulty files and arguments, and what llmft does.

The files are those of the tests (``tests/data_cases.py``). Prints a table in Markdown;
``--short`` counts only. A fault is silent where ``datasets.load_dataset`` reads the
files, or ``HfArgumentParser`` takes the arguments, without an error.

python scripts/data_faults.py
"""

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from llmft.process import limit_spinning, run_command

if __name__ == "__main__":
    limit_spinning()  # is read when torch loads

import data_cases
import datasets
import transformers
from transformers import HfArgumentParser

from llmft.errors import escape

KINDS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "txt": "text"}


@dataclass
class DataArguments:
    """Of an example script that takes a file."""

    train_file: str | None = None


def data_today(case: data_cases.Case, paths: list[Path], cache: Path) -> str:
    """Read the files by ``load_dataset``; return what it reads without a word."""
    named = [Path(flag) for flag in case.flags if "*" in flag]
    first = (named or paths)[0]
    ending = first.suffixes[0].removeprefix(".") if first.suffixes else ""
    kind = KINDS.get(ending, ending if ending == "parquet" else "arrow")
    options = {"sep": "\t"} if ending == "tsv" else {}
    files = [str(p) for p in (named or paths)]
    found = datasets.load_dataset(
        kind, data_files=files, split="train", cache_dir=str(cache), **options
    )
    types = {name: getattr(f, "dtype", "list") for name, f in found.features.items()}
    shown = ", ".join(f"{escape(n, 20)} {t}" for n, t in types.items())
    return f"silent: {len(found):,} rows of {escape(shown, 60)}"


def arguments_today(case: data_cases.Case) -> str:
    """Parse the arguments as example scripts do; return what is taken silently."""
    both: Any = (DataArguments, transformers.TrainingArguments)
    parser = HfArgumentParser(both)
    if "--args" in case.flags:
        found = parser.parse_json_file("args.json")
    else:
        found = parser.parse_args_into_dataclasses([*case.flags])
    return f"silent: {', '.join(type(part).__name__ for part in found)}"


def today(case: data_cases.Case, paths: list[Path], cache: Path) -> tuple[str, bool]:
    """Return what datasets or transformers say, and whether that names a file."""
    try:
        if case.id.startswith("E"):
            return arguments_today(case), False
        if case.kind in ("ConfigError", "LengthError"):
            return "read; a model is not looked at", False
        return data_today(case, paths, cache), False
    except Exception as error:
        cause = error.__cause__ or error
        said = f"{type(cause).__name__}: {cause}".splitlines()[0]
        whole = f"{error} {cause}"
        return f"error: {escape(said, 70)}", any(name in whole for name in case.files)


def here(case: data_cases.Case, models: dict[str, Path]) -> tuple[str, bool]:
    """Return what the recipe says, and whether that names a file."""
    main = runpy.run_path(str(ROOT / "recipes" / f"{case.recipe}.py"))["main"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(main, case.command_line(models))
    if code == 0:
        return "read", False
    lines = [x for x in err.getvalue().splitlines() if not x.startswith("llmft: warn")]
    said = lines[-1].removeprefix("llmft: ")
    return f"{code}: {escape(said, 110)}", any(name in said for name in case.files)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="count only")
    args = parser.parse_args()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMFT_HOME"] = f"{folder}/home"
        models = data_cases.models(Path(folder) / "models")
        for i, case in enumerate(data_cases.CASES):
            place = Path(folder) / str(i)
            place.mkdir()
            os.chdir(place)
            paths = [p.relative_to(place) for p in case.write(place)]
            theirs = today(case, paths, Path(folder) / "cache")
            rows.append((case, theirs, here(case, models)))
            os.chdir(ROOT)
    if not args.short:
        print("| | file | datasets, transformers | llmft |\n|---|---|---|---|")
        for case, theirs, ours in rows:
            cells = (case.id, case.what, theirs[0], ours[0])
            print("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    faults = [row for row in rows if row[0].code]
    silent = sum(theirs[0].startswith("silent") for _, theirs, _ in faults)
    refused = sum(not ours[0].startswith("read") for _, _, ours in faults)
    placed = [sum(row[side][1] for row in faults) for side in (1, 2)]
    print(
        f"\n{len(faults)} faults: datasets {datasets.__version__} and transformers"
        f" {transformers.__version__} take {silent} without a word and name the file of"
        f" {placed[0]}; llmft refuses {refused} and names the file of {placed[1]}"
    )


if __name__ == "__main__":
    main()
