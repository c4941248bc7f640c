"""Every command of the README and of the pages beside the recipes, and the notebooks.

Commands run in order, in a folder with the files that they name. Trainings take two
steps here; what would take minutes by itself is checked as far as its plan.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import recipe_process as process
from nbclient import NotebookClient

from llmft import cli
from llmft.process import load_script, run_command
from llmft.sources import catalog

ROOT = process.RECIPES.parent
PAGES = [ROOT / "README.md", *sorted((process.RECIPES / "docs").glob("*.md"))]
NOTEBOOKS = sorted((process.RECIPES / "notebooks").glob("*.ipynb"))
RECIPE_NAMES = ("mlm", "classify", "generate")
SHORT = [
    *("--max_steps", "2", "--fast_path", "off", "--max_train_samples", "64"),
    *("--max_eval_samples", "32", "--report_to", "none"),
]
# Of a model of 135 M weights.
SMALL = [
    *("--max_new_tokens", "4", "--num_return_sequences", "1"),
    *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"),
]
# What needs Gemma's 240 MB; its JSON is loaded by the test of the shipped files.
LARGE = "gemma-3-270m", "chinese.json"


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def commands(page: Path) -> Iterator[list[str]]:
    for line in "".join(blocks(page, "bash")).splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def table(path: Path, header: str, rows: list[tuple[str, ...]]) -> None:
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name, beside recipes and scripts."""
    rows = process.keyword_rows(["bad", "good"], ["dull", "lovely"], 60)
    lines = [text for text, _ in rows]
    table(tmp_path / "reviews.csv", "review,rating", rows)
    table(tmp_path / "pinglun.csv", "内容,标签", rows)
    table(tmp_path / "new.csv", "review", [(text,) for text in lines])
    several = [(text, f"{label}|all") for text, label in rows]
    table(tmp_path / "tagged.csv", "text,topics", several)
    pairs = [(text, text, label) for text, label in rows]
    table(tmp_path / "pairs.csv", "question,answer,fits", pairs)
    stars = [(text, str(1 + len(text) % 5)) for text in lines]
    table(tmp_path / "stars.csv", "text,stars", stars)
    toxic = [(text, str(len(text) % 2), str(len(text) % 3 // 2)) for text in lines]
    table(tmp_path / "toxic.csv", "comment,toxic,obscene", toxic)
    tweets = [(label, str(i), "me", text) for i, (text, label) in enumerate(rows)]
    table(tmp_path / "tweets.csv", "bad,60,me,a dull film", tweets)
    (tmp_path / "notes.txt").write_text("\n".join(lines), "utf-8")
    (tmp_path / "prompts.txt").write_text("Once\nA film\n", "utf-8")
    stories = "".join(json.dumps({"text": text}) + "\n" for text in lines)
    (tmp_path / "stories.jsonl").write_text(stories, "utf-8")
    with open(tmp_path / "talks.jsonl", "w", encoding="utf-8") as stream:
        for line in lines:
            turns = [("user", f"What is {line}?"), ("assistant", line)]
            said = [{"role": role, "content": content} for role, content in turns]
            stream.write(json.dumps({"messages": said}) + "\n")
    for name in ("recipes", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> int:
    """Run a command of a page, shortened; return its exit code."""
    program, *rest = words
    if program == "source" or any(name in word for word in rest for name in LARGE):
        return 0
    if program.startswith("scripts/"):
        return subprocess.run([program, "--help"], capture_output=True).returncode
    if rest[:2] == ["assets", "fetch"]:
        return 0 if all(catalog.get(name) for name in rest[2:]) else 1
    if program == "python" and rest[0] == "-c":
        return subprocess.run([sys.executable, *rest], env=os.environ).returncode
    name = Path(rest[0]).stem if rest else ""
    is_recipe = name in RECIPE_NAMES and (program == "python" or rest[0] == name)
    if is_recipe:
        trains = name != "generate" or "--do_train" in rest or "--args" in rest
        small = name == "generate" and SMALL[2] not in rest
        more = [*SHORT, *(SMALL if small else [])]
        if "--time_limit" in rest:
            more = ["--dry_run"]
        if "--streaming" in rest:  # it does not know all rows
            more = ["--max_steps", "2", "--fast_path", "off", "--max_eval_samples", "9"]
        rest += more if trains else ["--fast_path", "off", "--max_new_tokens", "4"]
    if program == "python":
        path = rest.pop(0)
        return run_command(lambda argv: load_script(path).main(argv), rest)
    assert program == "llmft"
    return run_command(cli._run, rest)


@pytest.mark.assets
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_page_does_what_it_says(
    page: Path, work: Path, capfd: pytest.CaptureFixture
) -> None:
    needs_run = "outputs/first" in page.read_text("utf-8")
    if needs_run and "--output_dir outputs/first" not in page.read_text("utf-8"):
        made = ["--train_file", "reviews.csv", "--text_column_name", "review"]
        made += ["--label_column_name", "rating", "--output_dir", "outputs/first"]
        assert run(["llmft", "classify", *made]) == 0
    found = list(commands(page))
    for words in found:
        code = run([*words])
        out, err = capfd.readouterr()
        assert code == 0, f"{shlex.join(words)}\n{out}\n{err}"
    assert found or blocks(page, "python")
    for block in blocks(page, "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, process.RECIPES / "FIGURES.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"


def test_the_readme_stays_short() -> None:
    assert len(PAGES[0].read_text("utf-8").splitlines()) < 200


@pytest.mark.assets
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    assert path.stat().st_size < 150_000  # with its outputs
    notebook = nbformat.read(path, 4)
    here = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=here).execute()
    assert not list(tmp_path.glob("*.pkl"))
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
