"""What a run prints at its end: results, and commands that can be copied."""

import sys

import pytest

from llmft.console import short
from llmft.process import recipe_file
from llmft.runs import terminal


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_results_say_what_they_were_measured_on():
    def part(value, stderr=0.25):
        return {
            "loss": {"value": value, "stderr": stderr, "n": 1009, "split": "unused"},
            "accuracy": {"value": 1, "stderr": 0, "n": 9, "split": "unused"},
        }

    measured = {"before": part(1234.5), "eval": part(None, None), "test": part(2.0)}
    measured["test_without_shared"] = part(3.0)
    names = ["loss", "perplexity"]
    assert terminal.results(measured, names, "test") == (
        "\nresults\n"
        "  on            metric  value  +-    n      not in train  +-    n\n"
        "  test, before  loss    1,234  0.25  1,009\n"
        "  validation    loss    -      -     1,009\n"
        "  test          loss    2      0.25  1,009  3             0.25  1,009"
    )
    assert terminal.results({}, names, None) == ""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A Python whose programs the shell finds."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "tensorboard"):
        (tmp_path / "bin" / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.usefixtures("tools")
def test_where_the_results_are(tmp_path, capsys):
    run = tmp_path / "a run"
    run.mkdir()
    terminal.where(run, {"do_train": True, "report_to": ["tensorboard"]})
    assert capsys.readouterr().out == (
        "\nrun        ../a run\ncurves     tensorboard --logdir '../a run/logs'\n"
    )
    (run / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-1" / "model.safetensors").write_bytes(b"0" * 999)
    terminal.where(run, {"do_train": False, "report_to": []})
    assert capsys.readouterr().out == (
        "\nrun        ../a run\ndisk       999 bytes of checkpoints; python -m llmft"
        " runs clean '../a run' --checkpoints --yes\n"
    )
    (run / "checkpoints" / "checkpoint-1" / "model.safetensors").unlink()
    (run / "predictions.jsonl").touch()
    terminal.where(run, {"do_train": False, "report_to": ["tensorboard"]})
    assert capsys.readouterr().out == (
        "\npredicted  ../a run/predictions.jsonl\n\nrun        ../a run\n"
    )


@pytest.mark.usefixtures("tools")
def test_commands_can_be_copied(monkeypatch):
    values = {"model": None, "text_column_name": "a|b", "prompt": ["a b", "c"], "n": 0}
    assert terminal.command("my recipes/x.py", values, ["--do_predict"]) == (
        "python 'my recipes/x.py' --text_column_name 'a|b' --prompt 'a b' c --n 0"
        " --do_predict"
    )
    monkeypatch.setenv("PATH", "")  # then the interpreter is named by its path
    assert terminal.command("mlm.py", {}) == "../bin/python mlm.py"


@pytest.mark.usefixtures("tools")
def test_the_recipes_of_a_wheel_are_commands_of_llmft(tmp_path):
    recipe = "/lib/llmft/_recipes/mlm.py"
    assert terminal.tool("resume", "my run") == "python -m llmft resume 'my run'"
    assert terminal.command(recipe, {"n": 0}) == "python -m llmft mlm --n 0"
    (tmp_path / "bin" / "llmft").touch(0o755)
    assert terminal.command(recipe, {"n": 0}) == "llmft mlm --n 0"
    assert terminal.tool("resume", "my run") == "llmft resume 'my run'"


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("began", "wanted"),
    [
        ("/env/bin/llmft", "python -m llmft mlm"),
        ("/env/lib/llmft/__main__.py", "python -m llmft mlm"),
        ("recipes/mlm.py", "python {short}"),
    ],
)
def test_a_recipe_is_called_as_it_was_started(began, wanted, monkeypatch):
    monkeypatch.setattr(sys, "argv", [began, "mlm"])
    recipe = recipe_file("mlm")
    said = wanted.format(short=short(recipe))
    assert terminal.command(str(recipe), {"n": 0}) == f"{said} --n 0"
    assert terminal.command("own/mlm.py", {}) == "python own/mlm.py"  # not llmft's
