"""What today's ``datasets`` makes of faulty files, and what llmft makes of them.

The files are those of the tests (``tests/data_cases.py``). Prints a table in Markdown;
``--short`` counts only. A fault is silent where the files are read without an error.

python scripts/data_faults.py
"""

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import data_cases  # noqa: E402
import datasets  # noqa: E402
import tiny  # noqa: E402

from llmft.console import run_command  # noqa: E402
from llmft.errors import escape  # noqa: E402

KINDS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "txt": "text"}
FLAGS = (
    "--do_train --dry_run --num_threads 1 --precision fp32 --attn_implementation eager"
    " --max_seq_length 32"
).split()


def write(case: data_cases.Case, folder: Path) -> list[Path]:
    """Write the files of a case; return their paths."""
    paths = []
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)
        paths.append(path)
    return paths


def today(case: data_cases.Case, paths: list[Path], cache: Path) -> tuple[str, bool]:
    """Return what ``load_dataset`` says, or how much it reads without a word.

    Also whether the name of a file is anywhere in it.
    """
    named = [Path(flag) for flag in case.flags if "*" in flag]
    first = (named or paths)[0]
    ending = first.suffixes[0].removeprefix(".") if first.suffixes else ""
    kind = KINDS.get(ending, ending if ending == "parquet" else "arrow")
    options = {"sep": "\t"} if ending == "tsv" else {}
    files = [str(p) for p in (named or paths)]
    try:
        found = datasets.load_dataset(
            kind, data_files=files, split="train", cache_dir=str(cache), **options
        )
    except Exception as error:
        cause = error.__cause__ or error
        said = f"{type(cause).__name__}: {cause}".splitlines()[0]
        whole = f"{error} {cause}"
        return f"error: {escape(said, 70)}", any(name in whole for name in case.files)
    types = {name: getattr(f, "dtype", "list") for name, f in found.features.items()}
    shown = ", ".join(f"{escape(n, 20)} {t}" for n, t in types.items())
    return f"silent: {len(found):,} rows of {escape(shown, 60)}", False


def here(case: data_cases.Case, model: Path) -> str:
    """Return what the recipe says."""
    flags = [*FLAGS, "--model_name_or_path", str(model), *case.flags]
    if "--train_file" not in case.flags:
        flags += ["--train_file", next(iter(case.files))]
    main = runpy.run_path(str(ROOT / "recipes" / f"{case.recipe}.py"))["main"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(main, flags)
    if code == 0:
        return "read, text unchanged"
    lines = [x for x in err.getvalue().splitlines() if not x.startswith("llmft: warn")]
    return f"{code}: {escape(lines[-1].removeprefix('llmft: '), 110)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="count only")
    args = parser.parse_args()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows, placed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMFT_HOME"] = f"{folder}/home"
        model = tiny.save(Path(folder) / "model", "bert", "masked-lm")
        for i, case in enumerate(data_cases.CASES):
            place = Path(folder) / str(i)
            place.mkdir()
            os.chdir(place)
            paths = [p.relative_to(place) for p in write(case, place)]
            theirs, named = today(case, paths, Path(folder) / "cache")
            rows.append((case, theirs, here(case, model)))
            placed += named and bool(case.code)
            os.chdir(ROOT)
    if not args.short:
        print("| | file | datasets | llmft |\n|---|---|---|---|")
        for case, theirs, ours in rows:
            cells = (case.id, case.what, theirs, ours)
            print("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    faults = [row for row in rows if row[0].code]
    silent = sum(theirs.startswith("silent") for _, theirs, _ in faults)
    named = sum(ours.startswith("3: ") for _, _, ours in faults)
    version = datasets.__version__
    print(
        f"\n{len(faults)} faults: datasets {version} reads {silent} without a word and"
        f" names the file of {placed}; llmft names all {named}"
    )


if __name__ == "__main__":
    main()
