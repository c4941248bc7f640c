"""The layers of the design, the sizes of files and functions, and silent imports."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The packages and modules of llmft/ in the order of DESIGN: each imports only from
# itself and from those before it.
ORDER = (
    "errors files console signals process sources config machine data model metrics"
    " train runs tasks cli __main__"
).split()


def place(name):
    """Where the package of a module stands in ORDER; llmft/__init__.py imports none."""
    return ORDER.index(name.split(".")[0]) if name else -1


def modules():
    """Each file of llmft/ by its module name, without the leading ``llmft.``."""
    found = {}
    for path in sorted((ROOT / "llmft").rglob("*.py")):
        parts = path.relative_to(ROOT / "llmft").with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(source, name, is_package=False):
    """Full names of all that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["llmft", *filter(None, name.split("."))]
                above = above[: len(above) + is_package - node.level]
                base = ".".join([*above, base]).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def inner(source, name, known, is_package=False):
    """The modules of llmft among the imports: ``llmft.x.f`` is module ``x``."""
    found = set()
    for full in imports(source, name, is_package):
        if full.split(".")[0] == "llmft":
            while full.removeprefix("llmft").lstrip(".") not in known:
                full = full.rpartition(".")[0]
            found.add(full.removeprefix("llmft").lstrip("."))
    return found


def graph():
    files = modules()
    return {
        name: inner(path.read_text(), name, files, path.name == "__init__.py")
        for name, path in files.items()
    }


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import llmft.cli", {"cli"}),
        ("from llmft import __version__, cli", {"", "cli"}),
        ("from llmft.sources.hub import locate", {"sources.hub"}),
        ("from llmft.sources import hub", {"sources.hub"}),
        ("from . import rows", {"data.read.rows"}),
        ("from ..tokens.stream import Stream", {"data.tokens.stream"}),
        ("def f():\n    from llmft import errors", {"errors"}),
        ("import torch, os.path", set()),
    ],
)
def test_the_parser_of_imports_sees_every_form(statement, expected):
    assert inner(statement, "data.read.store", modules()) == expected


def test_every_package_has_its_place():
    found = {name.split(".")[0] for name in modules() if name}
    assert found == set(ORDER)


def test_no_module_imports_from_a_later_package():
    edges = graph()
    upwards = [
        f"{name} imports {other}"
        for name, others in edges.items()
        for other in others
        if place(other) > place(name)
    ]
    assert not upwards
    assert sum(map(len, edges.values())) > 40  # the graph is not empty by mistake


def test_no_cycle():
    edges = {name: others - {""} for name, others in graph().items() if name}
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_nothing_imports_recipes():
    for name, path in modules().items():
        for full in imports(path.read_text(), name):
            assert full.split(".")[0] != "recipes", f"{name} imports {full}"


HEAD = """
import runpy, sys
from llmft import process
heavy = {"torch", "transformers", "numpy"}
process.run_script = lambda path, argv: print(path, heavy & {*sys.modules} or "light")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name
)
def test_a_recipe_sets_how_threads_wait_before_torch_loads(path):
    done = subprocess.run(
        [sys.executable, "-c", HEAD, path], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path} light\n"


SNAPSHOT = """
import json, logging, os, signal, sys, torch, warnings
def state():
    names = ["", "llmft", "transformers", "datasets", "accelerate", "huggingface_hub"]
    loggers = [logging.getLogger(n) for n in names]
    return {
        "environment": dict(os.environ),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "loggers": [(n.level, n.propagate, repr(n.handlers)) for n in loggers],
        "signals": {int(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "warnings": len(warnings.filters),
        "hooks": [repr(sys.excepthook), repr(sys.stdout), repr(sys.displayhook)],
    }
theirs, ours = json.load(sys.stdin)
for statement in theirs:
    exec(statement, {})
before = state()
for statement in ours:
    exec(statement, {})
after = state()
print(json.dumps({k: [before[k], after[k]] for k in before if before[k] != after[k]}))
"""


def test_importing_changes_nothing_in_the_process():
    """Other libraries go first: sklearn and torch themselves set variables."""
    theirs, ours = [], []
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                if text.split()[1].split(".")[0] not in ("llmft", "__future__"):
                    theirs.append(text)
        ours.append(f"import llmft.{name}".rstrip("."))
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT],
        input=json.dumps([sorted(set(theirs)), ours]),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize(
    ("folder", "pattern", "limit"),
    [("recipes", "*.py", 150), ("llmft", "**/*.py", 420)],
)
def test_files_stay_short(folder, pattern, limit):
    counts = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).glob(pattern)
    }
    assert len(counts) >= 3
    assert not {name: n for name, n in counts.items() if n > limit}


def test_functions_stay_short():
    long = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long[f"{name}.{node.name}"] = lines
    assert not long
