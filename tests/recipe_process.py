"""Starting a recipe as its user does: a process of its own, in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tiny

RECIPES = Path(__file__).parents[1] / "recipes"
# What keeps a test quick and its arithmetic the same on every machine.
QUICK = (
    *("--num_threads", "1", "--precision", "fp32", "--max_seq_length", "32"),
    *("--attn_implementation", "eager"),
)
RUN_FOLDER = {
    "run.json",
    "metrics.jsonl",
    "metrics.json",
    "checkpoints",
    "logs",
    "model",
    "report.html",
}
_LIMIT = 300  # seconds for a process; far more than any of them takes


def user_env(home: Path, *, assets: bool = False, **settings: str) -> dict[str, str]:
    """Return the environment of a user without network whose home is ``home``.

    Args:
        assets: use the real cache of downloads, as a user has it.
        settings: more variables; they win.
    """
    ours = ("HF_", "TRANSFORMERS_", "LLMFT_", "PYTEST_", "PYTHON", "COV_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    home.mkdir(parents=True, exist_ok=True)
    env |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "NO_PROXY": "*"}
    if assets:
        if "LLMFT_HOME" in os.environ:
            env["LLMFT_HOME"] = os.environ["LLMFT_HOME"]
    else:
        env.pop("XDG_CACHE_HOME", None)
        env |= {"HOME": str(home), "LLMFT_HOME": str(home / "llmft")}
    return env | settings


def main_of(recipe: str) -> Callable[[list[str]], None]:
    """Return the ``main`` of ``recipe``, for tests that need no process of it."""
    main: Callable[[list[str]], None]
    main = runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]
    return main


def command(recipe: str, *flags: object) -> list[str]:
    """Return the command line that starts ``recipe``."""
    return [sys.executable, str(RECIPES / f"{recipe}.py"), *map(str, flags)]


def run(
    recipe: str,
    *flags: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = _LIMIT,
) -> subprocess.CompletedProcess[str]:
    """Run ``recipe`` in ``cwd`` until it ends; the user's home is beside ``cwd``."""
    cwd.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        command(recipe, *flags),
        cwd=cwd,
        env=dict(env) if env else user_env(cwd.with_name(f"{cwd.name}-home")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def run_well(
    recipe: str, *flags: object, cwd: Path, env: Mapping[str, str] | None = None
) -> str:
    """As ``run``; make sure that all was well, and return standard output."""
    done = run(recipe, *flags, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not problems(done.stderr), done.stderr
    return done.stdout


def start(
    recipe: str, *flags: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``recipe`` in a process group of its own and return at once.

    Its output goes to pipes.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        command(recipe, *flags),
        cwd=cwd,
        env=dict(env) if env else user_env(cwd.with_name(f"{cwd.name}-home")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell may start what it runs in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_all(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Make the ``calls``, two at a time, and return the results by name."""
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}


def wait_until(happened: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Wait for ``happened`` to return something true."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def problems(stderr: str) -> list[str]:
    """Return the lines of ``stderr`` by which llmft reports a problem."""
    lines = re.split(r"[\r\n]", stderr)
    found = [line for line in lines if line.startswith("llmft: ")]
    return [line for line in found if not line.startswith("llmft: warning: ")]


def tree(folder: Path) -> dict[str, str]:
    """Return every path under ``folder`` with the hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes() if path.is_file() else b""
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def strict_json(text: str) -> Any:
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read_json(path: Path) -> Any:
    return strict_json(path.read_text("utf-8"))


def read_jsonl(path: Path) -> list[Any]:
    return [strict_json(line) for line in path.read_text("utf-8").splitlines()]


def values(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metrics of a part without the split that they were measured on."""
    return {
        name: {key: x for key, x in entry.items() if key != "split"}
        for name, entry in metrics.items()
    }


def losses(run_folder: Path, name: str = "loss") -> list[float]:
    """Return the values of ``name`` in metrics.jsonl, in order."""
    events = read_jsonl(run_folder / "metrics.jsonl")
    return [event[name] for event in events if name in event]


def only_run(cwd: Path, recipe: str) -> Path:
    """Return the one run folder of ``recipe`` in ``cwd``."""
    (folder,) = (cwd / "outputs" / recipe).iterdir()
    return folder


def keyword_rows(
    labels: list[str], keywords: list[str], count: int, seed: int = 0
) -> list[tuple[str, str]]:
    """Return (text, label): one keyword in a text of random length decides it."""
    draw = random.Random(seed)
    filler = [word for word in tiny.WORDS if word not in keywords]
    rows = []
    for i in range(count):
        words = draw.choices(filler, k=draw.randrange(3, 16))
        words.insert(draw.randrange(len(words)), keywords[i % len(labels)])
        rows.append((" ".join(words), labels[i % len(labels)]))
    return rows
