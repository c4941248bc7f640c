"""Going on by the same command, from checkpoints that are whole, damaged or none.

Rows of reliability.md, section 5; of B08, B09 and B11 also tests/unit/train.
"""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch
from checkpointed import (
    FACTS,
    arguments,
    change_record,
    manifest_of,
    train,
    unseen,
)
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmft.errors import CheckpointError, EnvironmentFault, NonFiniteError
from llmft.process import Terminated
from llmft.runs import output_dir as runs
from llmft.runs.record import read_run
from llmft.train import checkpoint, resume
from llmft.train.agreement import AlreadyComplete, require_match
from llmft.train.callbacks import TensorBoard

STEPS = 8
EVERY = {"max_steps": STEPS, "save_steps": 2, "logging_steps": 1}
EVERY |= {"eval_strategy": "steps", "eval_steps": 2, "report_to": ["tensorboard"]}
# What is not the same in each run.
_TIMES = ("time", "leg", "runtime", "per_second", "rss_bytes", "flos")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, wordpiece):
    """The folder of a complete run with checkpoints 2, 4, 6, 8; do not change it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(arguments(folder, **EVERY), wordpiece, checked=True)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of that run."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def killed(wordpiece, tmp_path):
    """A run that a kill ended in step 7, in the midst of a line of its log."""
    folder = tmp_path / "run"
    with pytest.raises(Terminated):
        train(arguments(folder, **EVERY), wordpiece, Stop(7), checked=True)
    change_record(folder, status="running")
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 7, "leg": 1, "lo')
    return folder


class Stop(TrainerCallback):
    """Stands for a signal after a step."""

    def __init__(self, step):
        self.step = step

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Terminated


def again(folder, how="auto", **changes):
    return arguments(folder, **(EVERY | {"resume_from_checkpoint": how} | changes))


def names(folder):
    return sorted(os.listdir(folder / "checkpoints"))


def last(folder):
    return load_file(folder / "checkpoints" / f"checkpoint-{STEPS}/model.safetensors")


def same_weights(folder, other):
    one, two = last(folder), last(other)
    return one.keys() == two.keys() and all(one[n].equal(two[n]) for n in one)


def warnings(said):
    start = "llmft: warning: "
    lines = said.splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def tree(folder):
    """All that is under a folder: content, times and identity of each file."""
    return {
        path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def test_every_flipped_bit_and_every_cut_is_seen(run):
    """Those of the manifest, too: none of its bits is left out."""
    folder = run / "checkpoints" / "checkpoint-8"
    assert unseen(folder, flips=300, truncations=100) == []
    manifest = folder / "manifest.json"
    content = manifest.read_bytes()
    for bit in range(0, 8 * len(content), 29):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(changed)
        assert resume.fault(folder), bit
    manifest.write_bytes(content)
    assert resume.fault(folder) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def later_version(folder):
    with manifest_of(folder) as manifest:
        manifest |= {"version": 3, "versions": {"llmft": "9.0"}}


DAMAGES = {
    "B01": (lambda f: (f / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "B02": (lambda f: cut(f / "scheduler.pt"), "bytes, was saved with "),
    "B03": (lambda f: flip(f / "model.safetensors"), "(its sha256 is "),
    "B03 manifest": (lambda f: flip(f / "manifest.json"), "manifest.json "),
    "B04 empty": (
        lambda f: (f / "optimizer.pt").write_bytes(b""),
        "optimizer.pt has 0 bytes, was saved with ",
    ),
    "B04 zeros": (
        lambda f: (f / "optimizer.pt").write_bytes(
            bytes((f / "optimizer.pt").stat().st_size)
        ),
        "optimizer.pt has changed since it was saved (its sha256 is ",
    ),
    "B05 missing": (lambda f: (f / "manifest.json").unlink(), "it has no manifest"),
    "B05 cut": (lambda f: cut(f / "manifest.json"), "manifest.json has changed"),
    "B06": (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "B14": (
        later_version,
        "manifest.json is of version 3 (llmft 9.0), this llmft reads up to version 2",
    ),
}


@pytest.mark.parametrize("row", DAMAGES)
def test_auto_passes_over_what_is_damaged_and_says_why(run, capsys, row):
    damage, said = DAMAGES[row]
    change_record(run, status="running")
    damage(run / "checkpoints" / "checkpoint-8")
    args = again(run).training
    runs.check_output_dir(args)
    found = run / "checkpoints" / "checkpoint-6"
    assert args.resume_from_checkpoint == str(found)
    out, err = capsys.readouterr()
    assert out == f"resume     {found}, in {run}\n"
    assert err.startswith("llmft: warning: passed over checkpoint-8: ")
    assert said in err
    assert len(err.splitlines()) == 1


def events(folder):
    """What was logged, but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {n: x for n, x in json.loads(line).items() if not n.endswith(_TIMES)}
        for line in lines
    ]


def scalars(folder):
    """The curves that TensorBoard shows: step and value of each event."""
    read = EventAccumulator(str(folder / "logs"))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
        if not tag.endswith(_TIMES)
    }


def test_what_is_logged_after_a_training_purges_nothing(tmp_path):
    """As of the evaluation at the end, for which TensorBoard opens another file."""
    args = TrainingArguments(output_dir=str(tmp_path / "x"), use_cpu=True)
    for done, steps in ((0, [1, 2, 3]), (2, [3, 4, 5])):
        board = TensorBoard(tmp_path / "logs", done)
        state, control = TrainerState(), TrainerControl()
        board.on_train_begin(args, state, control)
        for state.global_step in steps:
            board.on_log(args, state, control, logs={"loss": state.global_step / 8})
        board.on_train_end(args, state, control)
    board.on_log(args, state, control, logs={"eval_loss": 1.0})
    board.on_train_end(args, state, control)
    steps = [1, 3, 4, 5]  # the checkpoint, here without a log, has that of step 2
    assert scalars(tmp_path)["train/loss"] == [(step, step / 8) for step in steps]
    assert scalars(tmp_path)["eval/loss"] == [(5, 1.0)]


def test_a_kill_before_the_first_record(tmp_path):
    """What it left is no run, and in nobody's way."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.staging-host-1-5f8590da").write_text("{")
    args = again(folder).training
    runs.check_output_dir(args)
    assert runs.make_folder("classify", args) == folder


@pytest.mark.parametrize(
    "changes",
    [{"legs": "x"}, {"legs": [1]}, {"arguments": {"seed": 5}}, {"started": 7}],
)
def test_a_record_that_no_run_wrote_says_nothing(run, changes):
    assert resume.record_of(run)["status"] == "complete"
    change_json(run / "run.json", changes)
    assert resume.record_of(run) == {}
    assert resume.newest(run / "checkpoints")[0] == run / "checkpoints/checkpoint-8"


def change_json(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_cut_and_the_same_command_are_one_run(killed, whole, wordpiece, capsys):
    """A01, C11: the same weights, and each point of each curve once (B13 after it)."""
    train(again(killed), wordpiece, checked=True)
    said = capsys.readouterr()
    assert f"resume     {killed}/checkpoints/checkpoint-6, in {killed}\n" in said.out
    assert "metrics.jsonl: 1 damaged lines are left out" in said.err
    assert same_weights(killed, whole)
    assert events(killed) == events(whole)
    assert [e["step"] for e in events(whole) if "loss" in e] == [*range(1, STEPS + 1)]
    assert scalars(killed) == scalars(whole)
    assert len(scalars(whole)["train/loss"]) == STEPS
    assert [e["step"] for e in read_run(killed).events()] == [
        e["step"] for e in events(whole)
    ]
    record = json.loads((killed / "run.json").read_text())
    assert (record["status"], record["steps"], len(record["legs"])) == (
        *("complete", STEPS),
        1,
    )
    before = tree(killed)
    with pytest.raises(AlreadyComplete):
        train(again(killed), wordpiece, checked=True)
    assert tree(killed) == before


def test_a_resume_at_the_last_step_logs_its_end_once(run, whole, wordpiece):
    """Killed in what comes after the last save."""
    change_record(run, status="running")
    train(again(run), wordpiece, checked=True)
    assert events(run) == events(whole)
    assert scalars(run)["train/loss"] == scalars(whole)["train/loss"]


@pytest.mark.parametrize("how", ["auto", True])
@pytest.mark.parametrize("has_checkpoints", [True, False])
def test_a_complete_run_is_left_as_it_is(run, wordpiece, capsys, how, has_checkpoints):
    """B13."""
    if not has_checkpoints:
        shutil.rmtree(run / "checkpoints")
    before = tree(run)
    with pytest.raises(AlreadyComplete) as caught:
        train(again(run, how), wordpiece, checked=True)
    assert caught.value.code == 0
    assert caught.value.folder == run
    out, err = capsys.readouterr()
    assert out.endswith(f"already complete ({STEPS} of {STEPS} steps): {run}\n")
    assert err == ""
    for changes, recipe, said in (
        ({"seed": 7}, "classify", "it does not belong to this run: seed was 42, is 7"),
        ({"do_predict": True}, "classify", "do_predict was False, is True"),
        ({}, "mlm", "recipe was classify, is mlm"),
    ):
        with pytest.raises(CheckpointError) as refused:
            train(again(run, how, **changes), wordpiece, recipe=recipe, checked=True)
        assert said in str(refused.value)
    assert tree(run) == before


def test_a_complete_run_of_which_more_is_asked(run, wordpiece, tmp_path):
    """It goes on where it has a checkpoint, and is never put away."""
    bare = shutil.copytree(run, tmp_path / "bare")
    train(again(run, max_steps=10), wordpiece, checked=True)
    assert "checkpoint-10" in names(run)
    shutil.rmtree(bare / "checkpoints")
    before = tree(bare)
    said = "the run is complete with 8 of 8 steps, and has no whole checkpoint from"
    with pytest.raises(CheckpointError, match=said):
        train(again(bare, max_steps=10), wordpiece, checked=True)
    less = again(bare, max_steps=4)
    with pytest.raises(CheckpointError, match="steps was 8, is 4"):
        train(less, wordpiece, checked=True)
    assert tree(bare) == before


def test_a_complete_run_that_stopped_early(wordpiece, tmp_path, capsys):
    """With more patience, more is asked."""
    folder = tmp_path / "run"
    flat = {"learning_rate": 0.0, "load_best_model_at_end": True, "eval_steps": 2}
    flat |= {"metric_for_best_model": "loss", "greater_is_better": False}
    train(
        arguments(folder, **(EVERY | flat), early_stopping_patience=1),
        wordpiece,
        checked=True,
    )
    with pytest.raises(AlreadyComplete):
        train(again(folder, **flat, early_stopping_patience=1), wordpiece, checked=True)
    said = capsys.readouterr().out
    assert f"already complete (4 of 8 steps, stopped early): {folder}\n" in said
    args = again(folder, **flat, early_stopping_patience=2)
    assert train(args, wordpiece, checked=True).state.global_step == 6


def test_early_stopping_may_come_with_a_resume(killed, wordpiece, capsys):
    """B12: with a note, and the next save has its count."""
    changes = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    change_record(killed, **changes)
    with manifest_of(killed / "checkpoints" / "checkpoint-6") as manifest:
        manifest["belongs_to"]["metric_for_best_model"] = "loss"
    changes |= {"early_stopping_patience": 3, "greater_is_better": False}
    train(again(killed, **changes), wordpiece, checked=True)
    said = capsys.readouterr().out
    assert "early_stopping_patience" in said
    assert "warned of" in said
    assert resume.fault(killed / "checkpoints" / "checkpoint-8") is None


def test_all_are_bad(run, whole, wordpiece, capsys):
    """B07: ``true`` lists why; ``auto`` starts anew, and what there was is put away."""
    change_record(run, status="running")
    for step in (2, 4, 6, 8):
        (run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt").unlink()
    (run / "checkpoints" / ".saving").mkdir()
    (run / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError) as refused:
        runs.check_output_dir(again(run, True).training)
    for step in (2, 4, 6, 8):
        assert f"checkpoint-{step}: optimizer.pt is missing" in str(refused.value)
    before = tree(run)
    runs.check_output_dir(again(run).training)
    assert tree(run) == before  # nothing moves before all is checked
    with pytest.raises(CheckpointError, match="the run there is of classify, this is"):
        train(again(run), wordpiece, recipe="mlm", checked=True)
    assert tree(run) == before
    capsys.readouterr()
    train(again(run), wordpiece, checked=True)
    out, err = capsys.readouterr()
    assert len(warnings(err)) == 5
    assert "the run before ended without a word" in warnings(err)[-1]
    said = f"{run}: no checkpoint of it is whole, it starts anew; what it did goes to"
    assert f"resume     {said} stopped/\n" in out
    kept = run / "stopped" / "1"
    assert f"metrics.jsonl, checkpoints, logs, model of before: now in {kept}\n" in out
    assert names(kept) == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    assert events(kept) == events(run) == events(whole)
    assert (run / "mine.txt").read_text() == "keep"
    assert json.loads((run / "run.json").read_text())["legs"] == []
    assert same_weights(run, whole)
    assert scalars(run) == scalars(whole)


def test_nothing_is_there_yet(whole, wordpiece, tmp_path, capsys):
    """A02: no folder; an empty one; one that a kill left before its record."""
    for number, entries in enumerate(
        ([], [], [".write-test", ".run.json.staging-host-1-0123abcd"])
    ):
        folder = tmp_path / f"run{number}"
        if number:
            folder.mkdir()
        for name in entries:
            (folder / name).touch()
        args = again(folder)
        runs.check_output_dir(args.training)
        assert args.training.resume_from_checkpoint is None
        said = f"resume     nothing is in {folder} yet: a new run\n"
        assert capsys.readouterr().out == said
    with pytest.raises(Terminated):
        train(again(folder), wordpiece, Stop(1), checked=True)
    train(again(folder), wordpiece, checked=True)
    assert "it has no checkpoint yet, it starts anew" in capsys.readouterr().out
    assert same_weights(folder, whole)
    assert events(folder) == events(whole)


@pytest.mark.parametrize("name", ["mine.txt", "checkpoints"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(EnvironmentFault, match=f"not empty: it holds {name}"):
        runs.check_output_dir(again(tmp_path).training)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("how", ["auto", True])
def test_the_newest_is_of_the_branch_that_the_run_is_on(run, wordpiece, capsys, how):
    """Resumed from 2 and stopped after 4: 6 and 8 are of before."""
    change_record(run, status="interrupted")
    first = again(run, str(run / "checkpoints" / "checkpoint-2"))
    with pytest.raises(Terminated):
        train(first, wordpiece, Stop(5), checked=True)
    assert names(run) == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    assert re.search(r"\ngo on      .*llmft resume ", capsys.readouterr().out)
    args = again(run, how).training
    runs.check_output_dir(args)
    assert args.resume_from_checkpoint == str(run / "checkpoints" / "checkpoint-4")
    assert warnings(capsys.readouterr().err) == [
        f"passed over checkpoint-{step}: it is of before the run went on from step 2"
        for step in (8, 6)
    ]
    # Saved again, they are of this branch.
    train(again(run, how), wordpiece, checked=True)
    assert resume.newest(run / "checkpoints")[0].name == "checkpoint-8"


class Spoil(TrainerCallback):
    """Puts a value that is not finite into a weight, before step 4 is saved."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            with torch.no_grad():
                model.bert.pooler.dense.weight[3, 5] = float("inf")


def test_weights_that_are_not_finite_are_not_published(wordpiece, tmp_path, capsys):
    """B15."""
    args = arguments(tmp_path / "run", max_steps=8, save_steps=2)
    with pytest.raises(NonFiniteError) as caught:
        train(args, wordpiece, Spoil(), checked=True)
    assert str(caught.value).startswith(
        "NonFiniteError: 1 of 1,024 values of the weight bert.pooler.dense.weight are"
        " not finite after step 4; nothing of it is saved"
    )
    assert caught.value.exit_code == 6
    assert names(tmp_path / "run") == ["checkpoint-2"]
    assert resume.fault(tmp_path / "run" / "checkpoints" / "checkpoint-2") is None


def test_a_sum_that_is_too_large_is_not_taken_for_a_fault():
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(3e38)
    checkpoint.require_finite(model, 1)
    model.weight.requires_grad_(False).fill_(float("nan"))  # not what is trained
    checkpoint.require_finite(model, 1)


def test_a_save_over_a_checkpoint_that_fails_leaves_it(run, wordpiece, monkeypatch):
    """A11: the old one goes when the new one is whole."""
    change_record(run, status="interrupted")
    folder = run / "checkpoints" / "checkpoint-4"
    before = tree(folder)

    def fails(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_manifest", fails)
    args = again(run, str(folder.with_name("checkpoint-2")))
    with pytest.raises(EnvironmentFault, match="No space left"):
        train(args, wordpiece, checked=True)
    assert tree(folder) == before
    assert names(run) == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    monkeypatch.undo()
    args = again(run, str(folder.with_name("checkpoint-2")))
    train(args, wordpiece, checked=True)
    assert checkpoint.read_manifest(folder)["leg"] == 3
    assert not any(name.startswith(".") for name in names(run))


class ClockBack(TrainerCallback):
    """Sets the times of what is saved back by an hour after each save."""

    saves = 0

    def on_save(self, args, state, control, **kwargs):
        self.saves += 1
        root = Path(args.output_dir).parent
        when = 1e9 - 3600 * self.saves
        os.utime(root / f"checkpoint-{state.global_step}", (when, when))


def test_others_and_clocks(wordpiece, tmp_path):
    """A21, A22: what is kept goes by the step; what is not ours stays as it is."""
    root = tmp_path / "run" / "checkpoints"

    class Others(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            for name in ("checkpoint-final", "checkpoint-5-backup"):
                (root / name).mkdir()
                (root / name / "model.safetensors").write_bytes(b"mine")
            (root / "checkpoint-7").write_bytes(b"a file")
            self.before = {path: tree(path) for path in root.glob("checkpoint-*[!0-9]")}

    others = Others()
    args = arguments(tmp_path / "run", max_steps=5, save_total_limit=2)
    train(args, wordpiece, others, ClockBack())
    assert names(tmp_path / "run") == [
        *("checkpoint-4", "checkpoint-5", "checkpoint-5-backup", "checkpoint-7"),
        "checkpoint-final",
    ]
    assert (root / "checkpoint-7").read_bytes() == b"a file"
    assert len(others.before) == 2
    assert all(tree(path) == before for path, before in others.before.items())
    assert resume.newest(root)[0] == root / "checkpoint-5"


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_and_the_newest_are_both_kept(wordpiece, tmp_path, limit):
    """A23: nothing is learnt, so the first stays the best."""
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    args = arguments(
        tmp_path / "run",
        **(often | best),
        greater_is_better=False,
        learning_rate=0.0,
        max_steps=4,
        save_total_limit=limit,
    )
    state = train(args, wordpiece).state
    assert state.best_global_step == 1
    assert names(tmp_path / "run") == ["checkpoint-1", "checkpoint-4"]
    found, _ = resume.newest(tmp_path / "run" / "checkpoints")
    assert found.name == "checkpoint-4"


@pytest.mark.parametrize(
    ("mask", "group"), [(0o022, False), (0o077, False), (0o022, True)]
)
def test_all_files_have_the_mode_of_the_umask(wordpiece, tmp_path, mask, group):
    """A24."""
    folder = tmp_path / "run"
    folder.mkdir()
    if group:
        folder.chmod(0o2775)
    before = os.umask(mask)
    try:
        train(arguments(folder, max_steps=1), wordpiece)
    finally:
        os.umask(before)
    saved = folder / "checkpoints" / "checkpoint-1"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()}
    assert modes == {0o666 & ~mask}
    kept = {"run.json", "metrics.jsonl"} & {*os.listdir(folder)}
    assert {stat.S_IMODE((folder / n).stat().st_mode) for n in kept} == modes
    assert stat.S_IMODE(saved.stat().st_mode) & 0o777 == 0o777 & ~mask
    if group:  # what is in it is of its group
        assert saved.stat().st_gid == folder.stat().st_gid
        assert (folder / "checkpoints").stat().st_mode & stat.S_ISGID


def test_rows_that_were_added_are_named(run):
    """B08, B10."""
    change_record(run, status="running")
    args = again(run)
    runs.check_output_dir(args.training)
    other = {"train": {"source": "a.csv", "rows": 9, "sha256": "01" * 32}}
    with pytest.raises(CheckpointError) as caught:
        require_match("classify", args, FACTS | {"data": other}, range(9))
    said = "train data: rows was 8, is 9; train data: sha256 was abababababab..., is"
    assert said in str(caught.value)
