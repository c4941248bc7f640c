"""``llmft runs``: the lines, their order and filters, tags and notes."""

import json
import subprocess
import sys
import time

import pytest
from unit.runs.test_record import make

from llmft import cli, console
from llmft.errors import ConfigError
from llmft.runs import listing, terminal
from llmft.runs.record import read_run


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A folder with three runs, at work in the folder above it."""
    monkeypatch.chdir(tmp_path)
    entry = {"value": 0.84, "stderr": 0.011, "n": 10, "split": "test"}
    for i, (name, recipe, status) in enumerate(
        [
            ("r1", "classify", "complete"),
            ("r2", "mlm", "failed"),
            ("r3", "mlm", "complete"),
        ]
    ):
        data = {"train": {"source": f"files/{name}.csv", "rows": 5}}
        started = f"2026-01-0{i + 1}T10:00:00+0000"
        facts = {"recipe": recipe, "status": status, "seconds": 90.0 - i}
        make(tmp_path / "outputs" / recipe / name, data=data, started=started, **facts)
    accuracy = {"test": {"loss": entry | {"value": 9}, "accuracy": entry}}
    folder = tmp_path / "outputs" / "classify" / "r1"
    (folder / "metrics.json").write_text(json.dumps(accuracy | {"run": {"steps": 3}}))
    return tmp_path / "outputs"


def run(capsys, *argv):
    """The exit code of ``llmft runs``, its lines, and what it complains of."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["runs", *map(str, argv)])
    out, err = capsys.readouterr()
    return stopped.value.code, out.splitlines(), err


def test_one_line_a_run(outputs, capsys):
    code, lines, err = run(capsys)
    assert (code, err) == (0, "")
    assert lines[0].split() == listing.HEADER
    shown = (
        "r1 classify 2026-01-01 10:00 complete accuracy 0.84 +- 0.011 test r1.csv 1.5"
    )
    assert " ".join(lines[1].split()).startswith(shown)
    assert [line.split()[0] for line in lines[1:]] == ["r1", "r2", "r3"]


def test_a_saved_probe_is_told(outputs, capsys):
    file = outputs / "classify" / "r1" / "metrics.json"
    found = json.loads(file.read_text()) | {"ladder": {"saved": "linear probe"}}
    file.write_text(json.dumps(found))
    assert "complete accuracy of probe 0.84" in " ".join(run(capsys)[1][1].split())


def test_all_right_of_few_rows_is_not_certain(outputs, capsys):
    """By Wilson: a bootstrap of ten right answers has no spread."""
    folder = outputs / "classify" / "r1"
    entry = {"value": 1.0, "stderr": 0.0, "n": 10, "split": "test"}
    (folder / "metrics.json").write_text(json.dumps({"test": {"accuracy": entry}}))
    _, lines, _ = run(capsys)
    lowest = 1 / (1 + 1.96**2 / 10)  # of Wilson's limits, where all are right
    assert f" 1 +- {(1 - lowest) / (2 * 1.96):.2g} " in lines[1]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--recipe", "mlm"], ["r2", "r3"]),
        (["--status", "complete", "failed"], ["r1", "r2", "r3"]),
        (["list", "--status", "failed"], ["r2"]),
        (["--tag", "good", "kept"], ["r3"]),
        (["--sort", "minutes"], ["r3", "r2", "r1"]),
        (["--sort", "value"], ["r1", "r2", "r3"]),
        (["--sort", "on"], ["r1", "r2", "r3"]),
        (["outputs/mlm"], ["r2", "r3"]),
    ],
)
def test_filters_and_order(outputs, capsys, argv, names):
    listing.tag(outputs / "mlm" / "r3", ["good", "kept"])
    listing.tag(outputs / "mlm" / "r2", ["good"])
    code, lines, _ = run(capsys, *argv)
    assert (code, [line.split()[0] for line in lines[1:]]) == (0, names)
    code, lines, _ = run(capsys, *argv, "--json")
    assert [json.loads(line)["run"] for line in lines] == names


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere"], "no folder and no action: nowhere; actions are list, show,"),
        (["--sort", "valu"], "no field 'valu', did you mean value?; there are run,"),
        (["--status", "done"], "status is 'done', expected complete, failed,"),
        (["show", "r9"], "no run 'r9'; runs are looked for in outputs"),
        (["compare", "r1"], "`runs compare` needs two runs or more, each named once"),
        (["compare", "r1", "outputs/classify/r1"], "needs two runs or more"),
        (
            ["compare", "r1", "r2", "--html", "x.txt"],
            "html is 'x.txt', expected a name",
        ),
        (["tag", "r1", "x", "--remove"], "no tag 'x'; it has none"),
        (
            ["clean", "--yes"],
            "needs to know what: --checkpoints, --failed, --leftovers",
        ),
        (["clean", "--older_than", "3"], "older_than is '3', expected a time such as"),
    ],
)
def test_bad_usage_is_one_line(outputs, capsys, argv, said):
    code, lines, err = run(capsys, *argv)
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert said in err


def test_nothing_to_show_is_said(outputs, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(capsys, "empty")[1] == ["no runs yet in empty"]
    said = ["none of the 3 runs in outputs is like that"]
    assert run(capsys, "--recipe", "generate")[1] == said


def test_tags_and_note_are_kept_beside_run_json(outputs, capsys):
    before = (outputs / "classify" / "r1" / "run.json").read_bytes()
    assert run(capsys, "tag", "r1", "good", "café", "good")[1] == ["r1: good, café"]
    assert run(capsys, "note", "r1", "a better\nrate")[0] == 0
    assert run(capsys, "tag", "r1", "good", "--remove")[1] == ["r1: café"]
    notes = {"tags": ["café"], "note": "a better\nrate"}
    assert listing.notes_of(outputs / "classify" / "r1") == notes
    assert (outputs / "classify" / "r1" / "run.json").read_bytes() == before
    _, lines, _ = run(capsys, "show", "r1")
    assert "note: a better" in lines
    (line,) = run(capsys, "show", "r1", "--json")[1]
    assert json.loads(line)["tags"] == ["café"]
    assert json.loads(line)["given"] == {"learning_rate": 2e-4}


@pytest.mark.parametrize(("columns", "dropped"), [(80, "disk"), (40, "recipe")])
def test_a_narrow_terminal_goes_without_columns(outputs, monkeypatch, columns, dropped):
    monkeypatch.setattr(listing, "terminal_columns", lambda: columns)
    monkeypatch.setattr(console, "terminal_columns", lambda: columns)
    rows = [listing.row_of(read_run(outputs / "classify" / "r1"))]
    rows[0]["run"] = "20261127-153407-abcdef"
    *shown, last = listing.as_text(rows).splitlines()
    assert max(map(len, shown)) <= columns
    assert "20261127-153407-abcdef" in shown[1]
    assert "0.84 +- 0.011" in shown[1]
    assert last.startswith("no room for: disk, ")
    assert dropped in last


def test_names_from_elsewhere_move_no_cursor(outputs, capsys):
    make(outputs / "mlm" / "a\x1b[2J\x85", started="2026")
    _, lines, _ = run(capsys)
    assert lines[1].split()[0] == "a\\x1b[2J\\x85"
    assert json.loads(run(capsys, "--json")[1][0])["run"] == "a\x1b[2J\x85"


def test_a_hundred_runs_take_a_moment_and_load_nothing_heavy(tmp_path):
    for i in range(100):
        make(tmp_path / f"r{i:03d}", started=f"2026-{i:03d}")
        (tmp_path / f"r{i:03d}" / "model").mkdir()
    code = (
        "import sys, time, llmft.cli as c\n"
        "start = time.process_time()\n"
        f"try: c.main(['runs', {str(tmp_path)!r}])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(time.process_time() - start)\n"
        "print({'torch', 'transformers', 'numpy', 'datasets'} & {*sys.modules})"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert time.perf_counter() - began < 10  # it began at all
    *lines, seconds, heavy = done.stdout.splitlines()
    assert (len(lines), heavy, done.stderr) == (101, "set()", "")
    assert float(seconds) < 0.3


@pytest.mark.parametrize(
    ("status", "then"),
    [
        ("complete", "report outputs/mlm/r3; X predict outputs/mlm/r3"),
        ("interrupted", "resume outputs/mlm/r3"),
        ("failed", "runs show outputs/mlm/r3"),
    ],
)
@pytest.mark.parametrize(
    ("recipe", "used"),
    [
        ("classify", " FILE"),
        ("mlm", " --text 'a text with [MASK]'"),
        ("generate", "generate --model_name_or_path outputs/mlm/r3/model"),
    ],
)
def test_llmft_alone_says_what_to_do_with_the_newest_run(
    outputs, capsys, status, then, recipe, used
):
    (outputs / "mlm" / "r3" / "model").mkdir()
    path = outputs / "mlm" / "r3" / "run.json"
    changed = {"status": status, "recipe": recipe}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    if status == "complete":
        how = "predict outputs/mlm/r3"
        anew = f"{used} --prompt A_BEGINNING"
        then = then.replace(how, anew) if recipe == "generate" else then + used
    with pytest.raises(SystemExit):
        cli.main([])
    last = capsys.readouterr().out.splitlines()[-1]
    called = terminal.tool()
    then = f"{called} {then}".replace("X", called)
    assert last == f"The newest run here is {status}: {then}"


def test_a_run_began_with_its_first_leg(outputs):
    path = outputs / "mlm" / "r2" / "run.json"
    leg = {"started": "2025-12-31T10:00:00+0000", "seconds": 7.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"legs": [leg]}))
    row = listing.row_of(read_run(path.parent))
    assert (row["started"], row["seconds"]) == (leg["started"], 96.0)


def test_a_cross_validation_is_measured_on_rows_held_out(outputs):
    folder = outputs / "classify" / "r1"
    entry = {"value": 0.84, "stderr": 0.011, "n": 10, "split": "train", "wider": 1.5}
    found = {"folds": {"accuracy": entry}, "k_folds": {"seconds": 100.0}}
    (folder / "metrics.json").write_text(json.dumps(found))
    row = listing.row_of(read_run(folder))
    assert (row["split"], row["seconds"]) == ("rows held out", 190.0)


def test_a_run_whose_record_is_damaged_is_not_said_to_be_none(outputs):
    (outputs / "mlm" / "r2" / "run.json").write_text('{"recipe": ')
    with pytest.raises(ConfigError, match=r"run\.json is empty, damaged or cannot be"):
        read_run(outputs / "mlm" / "r2")
