"""The shell scripts, with a Python that only writes down what it is asked."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmft.process import WAITING_VARIABLES, spinning

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
# Stands for python3: makes an environment whose python is the second one.
BASE = """\
#!/bin/sh
[ "$1" = -m ] || exec '{python}' "$@"
echo "$@" >>'{log}'
sleep 0.3
mkdir -p "$4/bin"
cp '{venv_python}' "$4/bin/python"
"""
IN_VENV = """\
#!/bin/sh
[ "$1 $2" = "-m pip" ] || [ "$1" = -c ] || echo "$PWD: $@" >>'{log}'
[ "$3" = install ] || exit 0
echo "$@" >>'{log}'
[ -z "$NO_NETWORK" ] || {{ echo "pip: no route" >&2; exit 1; }}
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository at a path with a space, with what the scripts need of it."""
    root = tmp_path / "my repo"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    shutil.copy(ROOT / "pyproject.toml", root)
    log = tmp_path / "log"
    log.touch()
    for name, text in (("base", BASE), ("in_venv", IN_VENV)):
        path = tmp_path / name
        path.write_text(
            text.format(
                python=sys.executable, log=log, venv_python=tmp_path / "in_venv"
            )
        )
        path.chmod(0o755)
    return root


def start(repo: Path, script: str, *flags: str, **env: str) -> subprocess.Popen[str]:
    """Start a script from another folder."""
    (repo.parent / "elsewhere").mkdir(exist_ok=True)
    settings = {"PYTHON": str(repo.parent / "base"), "CDPATH": str(ROOT)}
    return subprocess.Popen(
        [repo / "scripts" / script, *flags],
        cwd=repo.parent / "elsewhere",
        env={**os.environ, **settings, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(repo: Path, script: str, *flags: str, **env: str) -> tuple[int, str, str]:
    process = start(repo, script, *flags, **env)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def log(repo: Path) -> list[str]:
    return (repo.parent / "log").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax_and_help(script: Path, repo: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    for flag in ("-h", "--help"):
        code, out, err = run(repo, script.name, flag)
        assert (code, err) == (0, "")
        assert out.count("\n") >= 1
        assert "#" not in out
    assert log(repo) == []


def test_set_up_once_however_often_it_is_asked(repo: Path) -> None:
    first = start(repo, "setup.sh")
    while not log(repo):  # it makes .venv, and holds the lock
        assert first.poll() is None
        time.sleep(0.01)
    second = start(repo, "setup.sh")
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert said[0] == (
        "setup: making .venv\nsetup: installing PyTorch\n"
        "setup: installing llmft and its tools\nsetup: done\n",
        "",
    )
    assert said[1] == ("setup: waiting for another set-up to end\n", "")
    assert run(repo, "setup.sh") == (0, "", "")
    done = log(repo)
    assert len(done) == 3
    assert done[0] == "-m venv --clear .venv"
    assert done[1].endswith("-c scripts/constraints.txt torch")
    assert done[2].endswith("-e .[dev]")


def test_a_second_python_has_its_own_environment(repo: Path) -> None:
    assert run(repo, "setup.sh")[0] == 0
    code, out, _ = run(repo, "setup.sh", VENV=".venv-other")
    assert (code, out.splitlines()[0]) == (0, "setup: making .venv-other")
    assert run(repo, "setup.sh", VENV=".venv-other") == (0, "", "")
    for name in ("ruff", "mypy"):
        for venv in (".venv-other", f".venv-3.{sys.version_info.minor}"):
            tool = repo / venv / "bin" / name
            tool.parent.mkdir(parents=True, exist_ok=True)
            tool.write_text("#!/bin/sh\n")
            tool.chmod(0o755)
            (repo / venv / ".llmft-setup").touch()
    before = len(log(repo))
    assert run(repo, "test.sh", "tests/unit")[0] == 0  # PYTHON is set
    assert log(repo)[before] == f"-m venv --clear .venv-3.{sys.version_info.minor}"
    assert log(repo)[-1].endswith("--dist loadscope tests/unit")
    before = len(log(repo))
    assert run(repo, "test.sh", VENV=".venv-other")[0] == 0
    assert len(log(repo)) == before + 1  # the tests, and no set-up
    shutil.rmtree(repo / ".venv")
    before = len(log(repo))
    assert run(repo, "train_model.sh", VENV=".venv-other")[0] == 0
    assert len(log(repo)) == before + 1  # the recipe


def test_nothing_is_taken_from_a_folder_that_it_did_not_make(repo: Path) -> None:
    kept = repo / "mine" / "kept.txt"
    kept.parent.mkdir()
    kept.touch()
    code, out, err = run(repo, "setup.sh", VENV="mine")
    assert (code, out) == (5, "")
    said = "setup: mine is there, and no environment with Python 3.11 or newer and pip"
    assert err.startswith(said)
    assert kept.is_file()
    assert log(repo) == []


def test_a_failing_index_is_said_and_tried_again(repo: Path) -> None:
    code, out, err = run(repo, "setup.sh", NO_NETWORK="1")
    assert (code, out) == (5, "setup: making .venv\nsetup: installing PyTorch\n")
    assert err.startswith("pip: no route\nsetup: pip could not install this (its mess")
    assert "index and proxy" in err
    assert err.count("\n") == 2
    code, out, _ = run(repo, "setup.sh")
    assert (code, out.splitlines()[-1]) == (0, "setup: done")


def test_a_python_that_is_too_old_or_missing(repo: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\n[ "$1" != -c ] && echo "Python 3.9.1"\n')
    old.chmod(0o755)
    code, out, err = run(repo, "train_model.sh", PYTHON=str(old))
    assert (code, out) == (5, "")
    assert err == (
        f"setup: {old} is Python 3.9.1, llmft needs Python 3.11 or newer: install it,"
        f" then name it: PYTHON=/path/to/python3.12 {repo / 'scripts' / 'setup.sh'}\n"
    )
    code, out, err = run(repo, "setup.sh", PYTHON="no-such-python")
    assert code == 5
    assert "no-such-python" in err
    # An old python3, and a newer one beside it under its own name.
    path = tmp_path / "bin"
    path.mkdir()
    shutil.copy(old, path / "python3")
    shutil.copy(tmp_path / "base", path / "python3.12")
    code, out, _ = run(repo, "setup.sh", PYTHON="", PATH=f"{path}:{os.environ['PATH']}")
    assert code == 0
    assert log(repo)[0] == "-m venv --clear .venv"


def test_an_environment_of_another_python_is_not_taken_for_the_one_asked(
    repo: Path,
) -> None:
    assert run(repo, "setup.sh")[0] == 0
    python = repo / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -c ] || echo 3.9\n')
    asked = f"3.{sys.version_info.minor}"
    code, out, err = run(repo, "setup.sh")
    assert (code, out) == (5, "")
    said = f"setup: .venv has Python 3.9, PYTHON is {asked}: remove it, or name another"
    assert err == f"{said}: VENV=.venv-{asked} {repo / 'scripts' / 'setup.sh'}\n"


def test_train_model_starts_the_recipe_where_the_user_is(repo: Path) -> None:
    run(repo, "setup.sh")
    before = len(log(repo))
    here, recipes = repo.parent / "elsewhere", repo / "recipes"
    calls = [(), ("--seed", "1"), ("classify", "--train_file", "a b.csv")]
    calls += [("generate",), ("generate", "--prompt", "Once upon"), ("mlm", "-h")]
    for flags in calls:
        assert run(repo, "train_model.sh", *flags)[0] == 0
    assert log(repo)[before:] == [
        f"{here}: {recipes}/mlm.py",
        f"{here}: {recipes}/mlm.py --seed 1",
        f"{here}: {recipes}/classify.py --train_file a b.csv",
        f"{here}: {recipes}/generate.py --args {recipes}/generate_cpu.json",
        f"{here}: {recipes}/generate.py --prompt Once upon",
        f"{here}: {recipes}/mlm.py -h",
    ]
    code, out, err = run(repo, "train_model.sh", "clasify")
    assert (code, out, err[:6]) == (2, "", "usage:")


ENVIRONMENTS = """
import os, runpy, subprocess, sys
def run(command, env, **options):
    print(command[1], env.get("GOMP_SPINCOUNT"), os.environ.get("GOMP_SPINCOUNT"))
    sys.exit(0)
subprocess.run = run
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_bench_leaves_the_threads_of_stock_alone() -> None:
    """Its own are set, so that the limit that it measures is that of llmft."""
    bench = [str(ROOT / "scripts" / "bench.py"), "--shared", "--jobs", "mlm"]
    env = {k: v for k, v in os.environ.items() if k not in WAITING_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENTS, *bench],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    own = spinning()["GOMP_SPINCOUNT"]
    assert done.stdout.splitlines()[-1] == f"scripts/stock.py None {own}"


@pytest.mark.parametrize(
    ("chosen", "judged"),
    [
        (("fp32", "sdpa", False), ["1.050", "1.00", False, False]),
        (("bf16", "eager", False), ["1.020", "1.03", True, False]),
        (("bf16", "sdpa", True), ["2.100", "0.50", False, True]),
    ],
)
def test_a_choice_is_judged_by_all_candidates(
    chosen: tuple[str, str, bool], judged: list[object]
) -> None:
    seconds = {
        ("fp32", "sdpa", False): 1.05,
        ("bf16", "eager", False): 1.02,
        ("fp32", "eager", False): 1.0,
        ("bf16", "sdpa", True): 2.1,
    }
    row = runpy.run_path(str(ROOT / "scripts" / "candidates.py"))["row"]
    line, near, slow = row("", "", {"seconds": [*seconds.items()], "chosen": chosen})
    assert [*line[-2:], near, slow] == judged
    shown = f"{1e3 * seconds[chosen]:,.0f}*"
    assert [word for word in " ".join(line).split() if "*" in word] == [shown]


def test_what_a_trial_measured_is_told() -> None:
    """As a process prints it: settings are lists in JSON."""
    candidates = runpy.run_path(str(ROOT / "scripts" / "candidates.py"))
    settings = [*candidates["STOCK"]], [*candidates["STOCK"]._replace(compiled=True)]
    said = candidates["tried"]([*zip(settings, (0.4, 0.2), strict=True)])
    assert said == "fp32 sdpa 400, fp32 sdpa compiled 200"


def test_intervals_of_folds_are_compared_with_the_test(tmp_path: Path) -> None:
    bench = runpy.run_path(str(ROOT / "scripts" / "bench_results.py"))
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    for part in ("train", "test"):
        (tmp_path / f"x_{part}.jsonl").write_text(lines)
    for per_class, rows_in_all, wanted in ((3, 0, 6), (0, 7, 7)):
        drawn = tmp_path / str(wanted)
        drawn.mkdir()
        bench["draw"](tmp_path, "x", per_class, rows_in_all, 1, drawn)
        assert len((drawn / "x_train.jsonl").read_text().splitlines()) == wanted
    runs = []
    folds = {"value": 0.5, "interval": [0.4, 0.6], "mean": 0.5}
    for reached in (0.5, 0.7):  # on the test; of the rows held out 0.5
        saved = {"name": "fine-tuned", "value": reached, "stderr": 0.1}
        bench["delivered"].__globals__["train"] = lambda flags, seed, saved=saved: {
            "ladder": {"metric": "f1", "rungs": [saved], "saved": "fine-tuned"},
            "k_folds": {"metrics": {"f1": folds}},
            "seconds": 1,
        }
        runs.append(bench["delivered"]([], 1))
    assert bench["row"]("x", runs)[5:] == ["0.600 +- 0.100", "1.000", "0.500", "1 of 2"]
