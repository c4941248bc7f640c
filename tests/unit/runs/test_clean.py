"""``llmft runs clean``: only what is listed goes, and nothing of a run at work."""

import os
import sys
import time
from pathlib import Path

import pytest
from unit.runs.test_listing import run
from unit.runs.test_record import make

from llmft.errors import EnvironmentFault
from llmft.files import try_lock
from llmft.runs import clean, listing
from llmft.runs.record import read_run

OLD = time.time() - 7200


def put(path, size=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def tree(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs"
    make(root / "done", status="complete", started="2026-01-01T00:00:00+0000")
    put(root / "done/model/model.safetensors")
    put(root / "done/checkpoints/checkpoint-10/optimizer.pt", 200_000)
    put(root / "done/checkpoints/.saving/x")
    put(root / "done/.model.staging-host-1-0123abcd/x")
    os.utime(root / "done/.model.staging-host-1-0123abcd", (OLD, OLD))
    put(root / "done/.metrics.json.0123abcd")  # it may be in the making
    make(root / "failed", status="failed", started="2026-02-01T00:00:00+0000")
    put(root / "failed/checkpoints/checkpoint-5/x")
    put(root / "failed/mine.txt")
    make(root / "killed", status="running")
    make(root / "resumable", status="interrupted")
    put(root / "resumable/checkpoints/checkpoint-5/x")
    make(root / "noted", status="failed")
    listing.set_note(root / "noted", "why it failed")
    put(root / "other/checkpoints/checkpoint-1/x")  # no run
    return root


def test_it_says_what_could_go_and_takes_nothing(outputs, capsys):
    before = tree(outputs)
    code, lines, err = run(capsys, "clean")
    assert (code, err) == (0, "")
    found = sorted((*line.split()[:2],) for line in lines[1:-1])
    assert found == [
        ("done", "--checkpoints"),
        ("done", "--leftovers"),
        ("failed", "--failed"),
        ("killed", "--failed"),
    ]
    text = "\n".join(lines)
    assert "0.2 MB     checkpoint-10 of a complete run" in text
    assert "failed, without a model; could be resumed from checkpoint-5" in text
    assert lines[-1].endswith(
        " runs clean outputs --checkpoints --leftovers --failed --yes"
    )
    assert tree(outputs) == before


@pytest.mark.parametrize(
    ("argv", "gone"),
    [
        (
            ["--checkpoints"],
            {
                "done/checkpoints/checkpoint-10",
                "done/checkpoints/checkpoint-10/optimizer.pt",
            },
        ),
        (
            ["--leftovers"],
            {
                "done/checkpoints/.saving",
                "done/checkpoints/.saving/x",
                "done/.model.staging-host-1-0123abcd",
                "done/.model.staging-host-1-0123abcd/x",
            },
        ),
        (
            ["--failed"],
            {
                *("failed/run.json", "failed/metrics.jsonl", "failed/checkpoints"),
                "failed/checkpoints/checkpoint-5",
                "failed/checkpoints/checkpoint-5/x",
                *("killed", "killed/run.json", "killed/metrics.jsonl"),
            },
        ),
    ],
)
def test_only_what_was_asked_for_goes(outputs, capsys, argv, gone):
    before = tree(outputs)
    code, lines, err = run(capsys, "clean", *argv, "--yes")
    assert code == 0
    assert before - tree(outputs) == gone
    assert lines[-1].endswith(" freed")
    stays = "1 files that are not the run's stay"
    assert (stays in err) is ("--failed" in argv)


def test_older_than(outputs, capsys):
    days = int((time.time() - read_run(outputs / "failed").started.timestamp()) / 86400)
    argv = ("clean", "--failed", "--checkpoints", "--older_than", f"{days + 5}d")
    names = [line.split()[0] for line in run(capsys, *argv)[1][1:-1]]
    assert names == ["done"]  # of the others it is younger, or unknown


def test_a_cross_validation_that_can_go_on_stays(outputs, capsys):
    folder = make(outputs / "folds", status="interrupted")
    put(folder / "folds/arguments.json")
    for fold in (1, 2):
        put(folder / f"folds/{fold}.json")
    _, lines, _ = run(capsys, "clean", "--failed", "--yes")
    assert not [line for line in lines if line.startswith("folds")]
    assert (folder / "folds/2.json").is_file()
    (record := folder / "run.json").write_text(
        record.read_text().replace("interrupted", "failed")
    )
    _, lines, _ = run(capsys, "clean")
    assert "could be resumed after 2 of its folds" in "\n".join(lines)


@pytest.mark.skipif(sys.platform == "win32", reason="it opens no folders")
def test_a_run_at_work_stays(outputs, capsys):
    held = [os.open(outputs / name, os.O_RDONLY) for name in ("killed", "failed")]
    (item,) = clean.find(outputs / "failed", ["failed"])
    assert all(map(try_lock, held))
    before = tree(outputs)
    with pytest.raises(EnvironmentFault, match="another process is training there"):
        clean.take_away(item)
    assert "killed" not in "".join(run(capsys, "clean", "--failed")[1])
    run(capsys, "clean", "--failed", "--yes")
    assert tree(outputs) == before
    for descriptor in held:
        os.close(descriptor)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_not_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    precious = put(tmp_path / "elsewhere/checkpoint-1/x")
    make(tmp_path / "outputs/done")
    put(tmp_path / "outputs/done/model/x")
    (tmp_path / "outputs/done/checkpoints").symlink_to(tmp_path / "elsewhere")
    make(tmp_path / "outputs/failed", status="failed")
    (tmp_path / "outputs/failed/logs").symlink_to(tmp_path / "elsewhere")
    make(tmp_path / "real", status="failed")
    (tmp_path / "outputs/link").symlink_to(tmp_path / "real")
    kinds = [f"--{kind}" for kind in clean.KINDS]
    assert run(capsys, "clean", *kinds, "--yes")[0] == 0
    assert precious.is_file()
    assert (tmp_path / "real/run.json").is_file()
    assert not Path("outputs/failed/run.json").exists()
    assert Path("outputs/done/run.json").is_file()
    assert run(capsys, "clean")[1] == ["nothing to take away in outputs"]


def test_what_other_programs_wrote_stays(tmp_path):
    for name, record in (("own", '{"id": 3}'), ("fails", '{"status": "failed"}')):
        put(tmp_path / name / "checkpoints" / "precious.bin")
        (tmp_path / name / "run.json").write_text(record)
        put(tmp_path / name / ".mine.20250101")
        os.utime(tmp_path / name / ".mine.20250101", (OLD, OLD))
    assert clean.find(tmp_path, list(clean.KINDS)) == []
