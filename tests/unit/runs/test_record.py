import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmft.errors import ConfigError, DataError, EnvironmentFault
from llmft.files import try_lock
from llmft.runs.record import KILLED, find_run, find_runs, held, read_run


def make(folder, events=(), tail="", **record):
    folder.mkdir(parents=True)
    arguments = {
        "learning_rate": {"value": 2e-4, "from": "flag"},
        "seed": {"value": 42, "from": "default"},
        "num_train_epochs": {"value": 3, "from": "follows: the data"},
        "warmup_steps": {"value": 9, "from": "auto"},
    }
    whole = {"recipe": "mlm", "status": "complete", "versions": {}}
    whole |= {"arguments": arguments, **record}
    (folder / "run.json").write_text(json.dumps(whole))
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines + tail)
    return folder


def test_a_line_that_a_kill_cut_ends_the_events_and_a_broken_one_is_named(tmp_path):
    cut = read_run(make(tmp_path / "cut", [{"step": 1, "leg": 1}], tail='{"step": 2'))
    assert [e["step"] for e in cut.events()] == [1]
    broken = read_run(make(tmp_path / "broken", [], tail="{]\n"))
    with pytest.raises(DataError, match=r"broken/metrics\.jsonl:1: not a JSON object"):
        broken.events()


def test_what_was_given_is_neither_a_default_nor_follows(tmp_path):
    run = read_run(make(tmp_path / "r"))
    assert run.given == {"learning_rate": 2e-4}
    assert run.arguments == {
        "learning_rate": 2e-4,
        "seed": 42,
        "num_train_epochs": 3,
        "warmup_steps": 9,
    }


def test_files_may_be_named_as_what_nobody_gave(tmp_path):
    files = ("default.json", "auto/x.json", "k_folds.json", "follows.json")
    of_files = {f"a{i}": {"value": i, "from": file} for i, file in enumerate(files)}
    chosen = ("auto: as in the first fold", "auto_find_batch_size", "k_folds: as in 1")
    others = {f"b{i}": {"value": i, "from": x} for i, x in enumerate(chosen)}
    run = read_run(make(tmp_path / "r", arguments={**of_files, **others}))
    assert [*run.given] == [*of_files]


def test_seconds_are_of_all_legs_and_unknown_where_one_was_killed(tmp_path):
    run = read_run(make(tmp_path / "r", legs=[{"seconds": 2.5}], seconds=4.0))
    assert run.seconds == 6.5
    assert read_run(make(tmp_path / "k", legs=[{}], seconds=4.0)).seconds is None


@pytest.mark.skipif(sys.platform == "win32", reason="it opens no folders")
def test_a_worker_does_not_hold_the_folder_of_a_run(tmp_path):
    """It lives a while longer than the process that was killed."""
    reading, writing = os.pipe()
    with held(tmp_path):
        worker = os.fork()
        if not worker:
            os.write(writing, b"1")
            time.sleep(20)
            os._exit(0)
        os.read(reading, 1)
        said = "another process is training"
        with pytest.raises(EnvironmentFault, match=said), held(tmp_path):
            pass
    try:
        with held(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="it opens no folders")
def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    folder = make(tmp_path / "r", status="running")
    descriptor = os.open(folder, os.O_RDONLY)
    assert try_lock(descriptor)
    assert read_run(folder).status == "running"
    os.close(descriptor)
    assert read_run(folder).status == KILLED


def test_runs_are_found_by_folder_name_or_as_the_newest(tmp_path):
    old = make(tmp_path / "mlm" / "2026-a1", started="2026-01-01T00:00:00+0000")
    new = make(tmp_path / "classify" / "2026-b2", started="2026-01-02T00:00:00+0000")
    make(old / "folds" / "1")  # a part of a run
    (old / "model").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("[]")
    assert [run.folder for run in find_runs(tmp_path)] == [old, new]
    for name in (str(old), str(old / "model"), "a1"):
        assert find_run(name, tmp_path).folder == old
    longer = make(tmp_path / "mlm" / "test_2026-a1")  # has the whole name of another
    assert find_run("2026-a1", tmp_path).folder == old
    (longer / "run.json").unlink()
    assert find_run(None, tmp_path).folder == new


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("2026", "'2026' is in the name of 2 runs: 2026-a, 2026-b"),
        ("zzz", "no run 'zzz'; runs are looked for in"),
        (None, "no runs yet; runs are looked for in"),
    ],
)
def test_a_name_that_is_of_no_run_or_of_several(tmp_path, name, found):
    for run in "ab" if name else "":
        make(tmp_path / f"2026-{run}")
    with pytest.raises(ConfigError, match=found):
        find_run(name, tmp_path)


def test_reading_runs_loads_nothing_heavy():
    code = (
        "import sys, llmft.runs.record, llmft.cli\n"
        "print({'torch', 'transformers', 'numpy', 'datasets'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"data": [1]}, "data is [1]"),
        ({"data": {"train": "x"}}, "data.train is 'x'"),
        ({"arguments": {"seed": {"value": 1}}}, "arguments.seed is {'value': 1}"),
        ({"seconds": "abc"}, "seconds is 'abc'"),
        ({"legs": 5}, "legs is 5"),
        ({"legs": [5]}, "a leg is 5"),
        ({"started": 5}, "started is 5"),
    ],
)
def test_a_damaged_record_hides_no_other_run(tmp_path, capsys, damage, said):
    good = make(tmp_path / "good")
    bad = make(tmp_path / "bad", **damage)
    with pytest.raises(DataError, match="no record of a run: ") as raised:
        read_run(bad)
    assert said in str(raised.value)
    assert [run.folder for run in find_runs(tmp_path)] == [good]
    assert f"left out: DataError {bad}/run.json: " in capsys.readouterr().err


def test_a_run_knows_its_name_and_when_it_was_also_from_within(tmp_path, monkeypatch):
    late = make(tmp_path / "late", started="2026-11-03T12:00:00+0000")
    make(tmp_path / "early", started="2026-11-03T13:00:00+0200")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.json").write_text("[" * 100_000)
    assert [run.name for run in find_runs(tmp_path)] == ["early", "late"]
    monkeypatch.chdir(late)
    assert read_run(Path(".")).name == "late"


def test_lines_that_are_no_objects_are_named(tmp_path):
    for bad in (b"5\n", b"\xff\xfe\n"):
        run = read_run(make(tmp_path / bad.hex()))
        (run.folder / "metrics.jsonl").write_bytes(bad)
        with pytest.raises(DataError, match="not a JSON object"):
            run.events()
