"""Every fault of data, through the recipe's ``main``: message, exit code, nothing left.

The cases are those of ``scripts/data_faults.py``.
"""

import importlib.util
from pathlib import Path

import data_cases
import pytest
import tiny

from llmft.console import run_command

RECIPES = Path(__file__).parents[2] / "recipes"
FLAGS = (
    *("--do_train", "--dry_run", "--num_threads", "1", "--precision", "fp32"),
    *("--attn_implementation", "eager", "--max_seq_length", "32"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model for each recipe."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "classify": tiny.save(folder / "classify", "bert", "masked-lm"),
        "mlm": tiny.save(folder / "mlm", "bert", "masked-lm"),
    }


def main_of(recipe):
    """The ``main`` of a recipe, as its file has it."""
    spec = importlib.util.spec_from_file_location(recipe, RECIPES / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write(files):
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)


@pytest.mark.parametrize("case", data_cases.CASES, ids=lambda case: case.name)
def test_fault(case, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(case.files)
    before = sorted(tmp_path.rglob("*"))
    flags = [*FLAGS, "--model_name_or_path", str(models[case.recipe]), *case.flags]
    if "--train_file" not in case.flags:
        flags += ["--train_file", next(iter(case.files))]
    code = run_command(main_of(case.recipe), flags)
    said = capsys.readouterr()
    assert code == case.code, said.err
    if case.code:
        (line,) = [x for x in said.err.splitlines() if not x.startswith("llmft: warn")]
        assert line.startswith((f"llmft: {case.kind} ", f"llmft: {case.kind}: "))
        assert case.said in line
        assert len(line) <= 400
    else:
        assert case.said in said.out
    # Neither a run folder nor anything half written, also not in the cache.
    left = [p for p in tmp_path.rglob("*") if p not in before]
    cache = tmp_path / "llmft-home"
    assert all(cache in [p, *p.parents] for p in left)
    assert not [p for p in left if ".staging-" in p.name]
