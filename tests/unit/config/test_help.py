import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from llmft.process import help_of

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_help_that_is_kept_is_what_the_parser_says(recipe):
    write_help = runpy.run_path(str(ROOT / "scripts" / "write_help.py"))
    hint = "arguments have changed: python scripts/write_help.py"
    assert help_of(recipe) == write_help["said"](recipe), hint


@pytest.mark.parametrize("program", ["/env/bin/llmft", "/lib/llmft/__main__.py"])
def test_the_help_of_the_command_begins_with_the_command(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "classify", "--help"])
    said = help_of(ROOT / "recipes" / "classify.py")
    assert said.startswith("usage: llmft classify [--args ")
    assert "\nllmft classify --train_file reviews.csv" in said
    assert "classify.py" not in said


def test_a_recipe_of_the_user_has_its_own_help(tmp_path):
    assert help_of(tmp_path / "classify.py") is None
    assert help_of(tmp_path / "recipes" / "other.py") is None


def test_help_needs_no_library():
    code = (
        "import sys\nfrom llmft.process import run_script\n"
        "assert run_script(sys.argv[1], ['--help']) == 0\n"
        "print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, RECIPES[0]], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout == f"{help_of(RECIPES[0])}set()\n"


def test_an_edited_copy_of_a_recipe_has_its_own_help(tmp_path):
    copy = tmp_path / "recipes" / "classify.py"
    copy.parent.mkdir()
    copy.write_text(RECIPES[0].read_text("utf-8"), "utf-8")
    assert help_of(copy) is None
