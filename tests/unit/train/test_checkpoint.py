"""Checkpoints: whole or not there, verified, and of the run that goes on from them."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from checkpointed import FACTS, arguments, change_record, manifest_of, train
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from llmft.config.choice import Choice
from llmft.config.fields import (
    LanguageModelingDataArguments,
)
from llmft.errors import CheckpointError
from llmft.process import Terminated
from llmft.runs import output_dir as runs
from llmft.train import callbacks, checkpoint, resume
from llmft.train import trainer as trainer_module
from llmft.train.agreement import require_match

FILES = {
    *("config.json", "manifest.json", "model.safetensors", "optimizer.pt"),
    *("rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json"),
    "trainer_state.json",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, wordpiece):
    """The folder of a complete run with checkpoints 1, 2 and 3; do not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(arguments(folder), wordpiece)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained, tmp_path / "run")


def names(run):
    return sorted(os.listdir(run / "checkpoints"))


def test_what_is_in_a_checkpoint(trained):
    assert names(trained) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    folder = trained / "checkpoints" / "checkpoint-2"
    assert set(os.listdir(folder)) == FILES
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 2
    assert manifest["files"].keys() == FILES - {"manifest.json"}
    assert manifest["belongs_to"]["recipe"] == "classify"
    assert manifest["belongs_to"]["train data: sha256"] == "ab" * 32
    assert manifest["belongs_to"]["seed"] == 42
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def of_no_run(folder):
    with manifest_of(folder) as manifest:
        manifest["belongs_to"] = {}


DAMAGES = [
    (lambda f: flip(f / "model.safetensors"), "model.safetensors has changed since"),
    (lambda f: flip(f / "optimizer.pt"), "optimizer.pt has changed since it was saved"),
    (lambda f: shorten(f / "optimizer.pt"), "bytes, was saved with 243,"),
    (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    (lambda f: (f / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    (lambda f: (f / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    (lambda f: (f / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    (lambda f: shorten(f / "trainer_state.json"), "trainer_state.json has "),
    (
        lambda f: (f / "manifest.json").unlink(),
        "it has no manifest.json: it was cut short, or plain Trainer made it",
    ),
    (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    (
        lambda f: (f / "manifest.json").write_text('{"step": 1}'),
        "manifest.json has changed since it was saved",
    ),
    (of_no_run, "manifest.json does not say to which run it belongs"),
    (shutil.rmtree, "there is no such folder"),
]
SAID = [said[:30] for _, said in DAMAGES]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=SAID)
def test_a_damaged_checkpoint_is_refused(run, damage, said):
    """And the hint names the newest one that is whole."""
    folder, whole = (run / "checkpoints" / f"checkpoint-{n}" for n in (3, 2))
    assert resume.fault(folder) is None
    damage(folder)
    args = arguments(run, resume_from_checkpoint=str(folder)).training
    before = (run / "run.json").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        runs.check_output_dir(args)
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(f"CheckpointError {folder}: ")
    assert said in str(caught.value)
    assert f"; resume from {whole}" in str(caught.value)
    assert (run / "run.json").read_bytes() == before


@pytest.mark.parametrize(("damage", "said"), DAMAGES[:-1], ids=SAID[:-1])
def test_true_takes_the_newest_whole_one(run, damage, said, capsys):
    damage(run / "checkpoints" / "checkpoint-3")
    args = arguments(run, resume_from_checkpoint=True).training
    runs.check_output_dir(args)
    whole = run / "checkpoints" / "checkpoint-2"
    assert args.resume_from_checkpoint == str(whole)
    out, err = capsys.readouterr()
    assert f"resume     {whole}, in {run}\n" in out
    assert err.startswith("llmft: warning: passed over checkpoint-3: ")
    assert said in err


def test_true_without_a_whole_one(run, tmp_path):
    change_record(run, status="interrupted")
    for step in (1, 2, 3):
        (run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError) as caught:
        resume.locate(arguments(run, resume_from_checkpoint=True).training)
    said = "no complete checkpoint to resume: checkpoint-3: optimizer.pt is missing; "
    assert said in str(caught.value)
    with pytest.raises(CheckpointError, match="there is none at all"):
        resume.locate(arguments(tmp_path, resume_from_checkpoint=True).training)


def test_weights_alone_cannot_be_resumed(wordpiece, tmp_path):
    train(arguments(tmp_path / "run", save_only_model=True), wordpiece)
    said = resume.fault(tmp_path / "run" / "checkpoints" / "checkpoint-3")
    assert said == (
        "it was saved without optimizer.pt, scheduler.pt, rng_state.pth"
        " (save_only_model)"
    )


def test_without_output_dir_it_goes_on_in_its_own_run(run, capsys):
    folder = run / "checkpoints" / "checkpoint-3"
    args = arguments("x", resume_from_checkpoint=str(folder)).training
    args.output_dir = None
    runs.check_output_dir(args)
    assert args.output_dir == str(run)
    assert f"resume     {folder}, in {run}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "facts", "recipe", "said"),
    [
        ({}, {}, "mlm", "recipe was classify, is mlm"),
        ({"seed": 7}, {}, "classify", "seed was 42, is 7"),
        ({"learning_rate": 1.0}, {}, "classify", "learning_rate was 5e-05, is 1.0"),
        (
            {},
            {"data": {"train": {"rows": 9, "sha256": "01" * 32}}},
            "classify",
            "train data: rows was 8, is 9; train data: sha256 was abababababab...,"
            " is 010101010101...",
        ),
        (
            {},
            {"model": {**FACTS["model"], "model.safetensors": "01" * 32}},
            "classify",
            "model: model.safetensors was efefefefefef..., is 010101010101...",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(run, changes, facts, recipe, said):
    folder = run / "checkpoints" / "checkpoint-3"
    changes = {"max_steps": 9, "resume_from_checkpoint": str(folder), **changes}
    with pytest.raises(CheckpointError) as caught:
        require_match(recipe, arguments(run, **changes), FACTS | facts, range(8))
    assert f"it does not belong to this run: {said}; resume with" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "status", "fits"),
    [
        ({"max_steps": 4}, "complete", True),
        ({"max_steps": 3}, "complete", False),
        ({"max_steps": 3}, "interrupted", True),  # killed in the final evaluation
        ({"max_steps": 2}, "interrupted", False),
        ({"max_steps": -1, "num_train_epochs": 1}, "interrupted", False),
        ({"max_steps": -1, "num_train_epochs": 1.5}, "interrupted", True),
    ],
)
def test_nothing_left_to_do(run, changes, status, fits):
    """Two steps are an epoch, and the checkpoint is of step 3."""
    change_record(run, status=status)
    folder = run / "checkpoints" / "checkpoint-3"
    args = arguments(run, resume_from_checkpoint=str(folder), **changes)
    if fits:
        return require_match("classify", args, FACTS, range(8))
    with pytest.raises(CheckpointError, match="it is of step 3, this run ends at step"):
        require_match("classify", args, FACTS, range(8))


def test_another_version_is_a_warning(run, capsys):
    folder = run / "checkpoints" / "checkpoint-3"
    with manifest_of(folder) as manifest:
        manifest["versions"]["transformers"] = "5.0.0"
    args = arguments(run, max_steps=9, resume_from_checkpoint=str(folder))
    require_match("classify", args, FACTS, range(8))
    said = "version of transformers, steps: not as before this resume, the run is no"
    out, err = capsys.readouterr()
    assert err.startswith(f"llmft: warning: {said}")
    row = differing(out)[0]
    assert row[:2] == ("version of transformers", "5.0.0")
    assert row[3] == "warned of: other sums"


def test_resume_of_the_last_step_takes_no_other(run, wordpiece):
    """Step 3 is inside the second epoch: Trainer would go on to step 4."""
    folder = run / "checkpoints" / "checkpoint-3"
    weights = (folder / "model.safetensors").read_bytes()
    trainer = train(arguments(run, resume_from_checkpoint=str(folder)), wordpiece)
    assert trainer.state.global_step == 3
    trainer.save_model(str(run / "again"))
    assert (run / "again" / "model.safetensors").read_bytes() == weights


def test_a_resume_within_an_epoch_by_length_is_exact(wordpiece, tmp_path):
    """Step 6 is the second of four of its epoch; dropout is on."""
    run = tmp_path / "run"
    options = {"train_sampling_strategy": "group_by_length", "max_steps": 8}
    options |= {"per_device_train_batch_size": 2, "save_steps": 2}
    whole = train(arguments(run, **options), wordpiece)
    folder = run / "checkpoints" / "checkpoint-6"
    args = arguments(run, resume_from_checkpoint=str(folder), **options)
    resumed = train(args, wordpiece)
    assert (
        resumed.state.log_history
        == whole.state.log_history[:-1]
        + (
            resumed.state.log_history[-1:]  # the summary, with its times
        )
    )
    for ours, theirs in zip(
        resumed.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert ours.equal(theirs)


def test_patience_is_counted_on_after_a_resume(wordpiece, tmp_path):
    """Nothing is learnt: of five evaluations all but the first bring no gain."""
    run = tmp_path / "run"
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 9}
    options |= {"learning_rate": 0.0, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "loss", "greater_is_better": False}
    train(arguments(run, early_stopping_patience=2, **options), wordpiece)
    assert names(run) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    folder = run / "checkpoints" / "checkpoint-3"
    args = arguments(
        run, early_stopping_patience=4, resume_from_checkpoint=str(folder), **options
    )
    assert train(args, wordpiece).state.global_step == 5


def test_a_run_that_stopped_early_stops_again(wordpiece, tmp_path):
    run = tmp_path / "run"
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 9}
    options |= {"learning_rate": 0.0, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "loss", "greater_is_better": False}
    args = arguments(run, early_stopping_patience=1, **options)
    assert train(args, wordpiece).state.global_step == 2
    folder = run / "checkpoints" / "checkpoint-2"
    args = arguments(
        run, early_stopping_patience=1, resume_from_checkpoint=str(folder), **options
    )
    assert train(args, wordpiece).state.global_step == 2
    assert names(run) == ["checkpoint-1", "checkpoint-2"]


def test_a_checkpoint_at_the_end_of_an_epoch_knows_its_evaluation(wordpiece, tmp_path):
    """Two steps are an epoch. Trainer saves in the second, before it evaluates."""
    run = tmp_path / "run"
    options = {"eval_strategy": "epoch", "save_steps": 2, "num_train_epochs": 9}
    options |= {"learning_rate": 0.0, "max_steps": -1, "early_stopping_patience": 2}
    options |= {"metric_for_best_model": "loss", "greater_is_better": False}
    assert train(arguments(run, **options), wordpiece).state.global_step == 6
    for step in (2, 4):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        saved = json.loads((folder / "trainer_state.json").read_text())
        assert [e for e in saved["log_history"] if "eval_loss" in e][-1]["step"] == step
        args = arguments(run, resume_from_checkpoint=str(folder), **options)
        assert train(args, wordpiece).state.global_step == 6


def test_a_run_that_goes_on_is_not_resumed(run):
    """Another process would write into the same files."""
    folder = run / "checkpoints" / "checkpoint-3"
    args = arguments(run, max_steps=9, resume_from_checkpoint=str(folder))
    command = [sys.executable, "-c", _RESUMES, str(run), str(folder)]
    with tiny.started_run(args, **FACTS):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("\nanother process is training there\n"), done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("\nit is free\n"), done.stderr


_RESUMES = """
import sys
from llmft.runs import output_dir as runs
from llmft.config.fields import TrainingArguments
from llmft.errors import EnvironmentFault
_, run, folder = sys.argv
try:
    runs.check_output_dir(TrainingArguments(run, resume_from_checkpoint=folder))
except EnvironmentFault as error:
    print(error.found)
else:
    print("it is free")
"""


def differing(said):
    """The rows of the table of differences: name, was, is, what becomes of it."""
    lines = said.splitlines()
    heads = [i for i, line in enumerate(lines) if line.split()[:1] == ["differs"]]
    found = lines[heads[0] + 1 :] if heads else []
    return [tuple(re.split(r" {2,}", line.strip())) for line in found]


AFTER = "warned of: the rate goes on as in a run of these"


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, []),
        (
            {"eval_strategy": "steps", "eval_steps": 2},
            [
                ("do_eval", "False", "True", "applied"),
                ("eval_strategy", "no", "steps"),
                ("eval_steps", "None", "2"),
            ],
        ),
        ({"save_steps": 2}, [("save_steps", "1", "2")]),
        ({"save_strategy": "epoch"}, [("save_strategy", "steps", "epoch")]),
        ({"eval_delay": 2}, [("eval_delay", "0", "2")]),
        ({"early_stopping_patience": 2}, [("early_stopping_patience", "None", "2")]),
        (
            {"early_stopping_threshold": 0.5},
            [("early_stopping_threshold", "0.0", "0.5")],
        ),
        ({"ignore_data_skip": True}, [("ignore_data_skip", "False", "True")]),
        (
            {"max_steps": 1_200},
            [("max_steps", "3", "1200", "applied"), ("steps", "3", "1200", AFTER)],
        ),
        (
            {"max_steps": 4, "lr_scheduler_type": "constant_with_warmup"},
            [
                ("lr_scheduler_type", "linear", "constant_with_warmup"),
                ("max_steps", "3", "4", "applied"),
                ("steps", "3", "4", "applied"),
            ],
        ),
        (
            {"logging_steps": 2, "save_total_limit": 5, "dataloader_num_workers": 1},
            [
                ("logging_steps", "3", "2", "applied"),  # 10, of 3 steps
                ("save_total_limit", "None", "5", "applied"),
                ("dataloader_num_workers", "0", "1", "applied"),
            ],
        ),
        ({"num_threads": 1, "run_name": "x"}, []),  # what was chosen is compared
    ],
)
def test_what_may_differ_is_in_one_table(run, capsys, changes, rows):
    """What changes the weights or decides the best checkpoint is warned of, once."""
    folder = run / "checkpoints" / "checkpoint-2"
    args = arguments(run, resume_from_checkpoint=str(folder), **changes)
    require_match("classify", args, FACTS, range(8))
    rows = [row if len(row) == 4 else (*row, "warned of") for row in rows]
    out, err = capsys.readouterr()
    table, last = out.rsplit("going on", 1)
    assert last.startswith("   behind step 2 of ")
    found = differing(table)
    assert sorted(found) == sorted(rows)
    effects = [row[3][:9] for row in found]
    assert effects == sorted(effects, reverse=True)  # warned of, then applied
    warned = [row[0] for row in found if row[3].startswith("warned of")]
    assert err == (bool(warned)) * (
        f"llmft: warning: {', '.join(warned)}: not as before this resume, the run is no"
        " longer what it would have been\n"
    )


def test_what_was_chosen_otherwise_is_in_the_table(run, capsys):
    folder = run / "checkpoints" / "checkpoint-2"
    change_record(run, choices={"threads": {"value": "2"}, "layers": {"value": "x"}})
    args = arguments(run, resume_from_checkpoint=str(folder))
    chosen = [Choice("threads", "1", "so"), Choice("waiting", "y", "so")]
    require_match("classify", args, FACTS, range(8), chosen)
    out, err = capsys.readouterr()
    found = differing(out.partition("going on")[0])
    assert found == [("threads", "2", "1", "warned of: other sums")]
    assert err.startswith("llmft: warning: threads: not as before this resume")


def test_all_that_is_refused_is_named(run, capsys):
    """And what is not refused stands in the same table, below."""
    folder = run / "checkpoints" / "checkpoint-2"
    changes = {"seed": 7, "learning_rate": 1.0, "weight_decay": 0.5, "adam_beta1": 0.1}
    changes |= {"adam_beta2": 0.1, "adam_epsilon": 0.1, "eval_delay": 1}
    changes |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    args = arguments(run, resume_from_checkpoint=str(folder), **changes)
    with pytest.raises(CheckpointError) as caught:
        require_match("classify", args, FACTS, range(8))
    rows = differing(capsys.readouterr().out)
    refused = [row for row in rows if row[3] == "refused"]
    assert {row[0] for row in refused} == changes.keys() - {"eval_delay"}
    assert rows[len(refused) :] == [("eval_delay", "0", "1", "warned of")]
    for name, was, now, _ in refused:
        assert f"{name} was {was}, is {now}" in str(caught.value)


def test_a_stream_is_shuffled_as_before(run):
    folder = run / "checkpoints" / "checkpoint-2"
    args = arguments(run, resume_from_checkpoint=str(folder))
    streamed = LanguageModelingDataArguments(buffer_size=5, streaming=True)
    whole = LanguageModelingDataArguments(buffer_size=5)

    def resumed(data):
        require_match("classify", replace(args, data=data), FACTS, range(8))

    resumed(whole)  # in which nothing is shuffled in a buffer
    resumed(streamed)  # of a version that did not know the argument
    with manifest_of(folder) as manifest:
        manifest["belongs_to"]["buffer_size"] = 7
    with pytest.raises(CheckpointError, match="buffer_size was 7, is 5"):
        resumed(streamed)


@pytest.mark.parametrize("said", [None, "{bad", "[1]", "{}", '{"arguments": null}'])
def test_a_run_whose_record_is_damaged_goes_on(run, wordpiece, capsys, said):
    """The manifest has all that must agree."""
    (run / "run.json").unlink()
    if said is not None:
        (run / "run.json").write_text(said)
    folder = run / "checkpoints" / "checkpoint-2"
    shutil.rmtree(run / "checkpoints" / "checkpoint-3")
    args = arguments(run, resume_from_checkpoint=str(folder))
    require_match("classify", args, FACTS, range(8))
    lost = "is gone or damaged: what may differ from before cannot be told"
    assert (lost in capsys.readouterr().err) is (said != '{"arguments": null}')
    assert train(args, wordpiece).state.global_step == 3
    assert names(run) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_checkout_without_metadata_resumes(run, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    folder = run / "checkpoints" / "checkpoint-2"
    args = arguments(run, resume_from_checkpoint=str(folder), max_steps=4)
    require_match("classify", args, FACTS, range(8))
    out, err = capsys.readouterr()
    assert "warning: version of transformers, version of torch, " in err
    assert re.search(r"version of torch +2\S+ +unknown +warned of: other sums\n", out)
    assert "llmft" not in out


def test_the_best_is_saved_also_between_two_checkpoints(wordpiece, tmp_path):
    """Evaluated at every step, saved at every fourth: the best is an odd one."""
    folder = tmp_path / "run"
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 4, "max_steps": 8}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    args = arguments(folder, learning_rate=1.0, warmup_steps=0, **often, **best)
    args.training.greater_is_better = False
    state = train(args, wordpiece).state
    losses = {e["step"]: e["eval_loss"] for e in state.log_history if "eval_loss" in e}
    assert len(losses) == 8
    step = min(losses, key=losses.get)
    assert step % 4
    assert state.best_model_checkpoint.endswith(f"checkpoints/checkpoint-{step}")
    assert f"checkpoint-{step}" in names(folder)


class _StopsInSaving(TrainerCallback, ExportableState):
    """Stands for SIGTERM while checkpoint 3 is written."""

    step = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step

    def state(self):
        if self.step == 3:
            raise Terminated
        return {}


def test_a_save_that_is_stopped_leaves_the_older_ones(wordpiece, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(Terminated):
        train(arguments(run, save_total_limit=1), wordpiece, _StopsInSaving())
    assert names(run) == ["checkpoint-2"]
    folder = run / "checkpoints" / "checkpoint-2"
    assert resume.fault(folder) is None
    last, hint = capsys.readouterr().out.splitlines()[-2:]
    assert last.endswith("(interrupted)")
    assert hint.startswith("go on      ")
    *_, command, named = shlex.split(hint)
    assert (command, Path(named).resolve()) == ("resume", run.resolve())


class _OldestIsYoungest(TrainerCallback):
    """Others' folders beside ours, and times as after copying."""

    mine = ("checkpoint-final", "checkpoint-1-backup")

    def on_train_begin(self, args, state, control, **kwargs):
        for name in (*self.mine, ".checkpoint-2.staging-ab12"):
            (Path(args.output_dir).parent / name).mkdir()

    def on_save(self, args, state, control, **kwargs):
        for folder in checkpoint.checkpoints(Path(args.output_dir).parent):
            age = int(folder.name.split("-")[1])
            os.utime(folder, (1e9 - 100 * age,) * 2)


def test_only_the_oldest_of_ours_are_removed(wordpiece, tmp_path):
    args = arguments(tmp_path / "run", max_steps=4, save_total_limit=2)
    train(args, wordpiece, _OldestIsYoungest())
    mine = _OldestIsYoungest.mine
    assert names(tmp_path / "run") == sorted([*mine, "checkpoint-3", "checkpoint-4"])


def test_later_steps_of_before_a_resume_go_first(run, wordpiece):
    first = run / "checkpoints" / "checkpoint-1"
    args = arguments(
        run,
        max_steps=2,
        save_total_limit=2,
        resume_from_checkpoint=str(first),
    )
    train(args, wordpiece)
    assert names(run) == ["checkpoint-1", "checkpoint-2"]
    assert resume.fault(run / "checkpoints" / "checkpoint-2") is None


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
}


def test_the_best_checkpoint_is_named(wordpiece, tmp_path, capsys):
    args = arguments(tmp_path / "run", learning_rate=0.05, **BEST)
    trainer = train(args, wordpiece)
    found = [e for e in trainer.state.log_history if "eval_loss" in e]
    best = min(found, key=lambda e: e["eval_loss"])
    assert best["step"] < 3  # the last is not the best
    expected = (
        f"best       checkpoint-{best['step']} (epoch {best['epoch']:.3g}):"
        f" loss {best['eval_loss']:.4g}\n"
    )
    assert expected in capsys.readouterr().out


def test_checkpoints_may_lie_behind_a_link(tmp_path):
    folder = tmp_path / "big" / "checkpoint-2"
    folder.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(folder.parent)
    named = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    assert resume.is_of(named, tmp_path / "run")
    assert not resume.is_of(named, tmp_path / "other")
    assert not resume.is_of(None, tmp_path / "run")


def test_the_best_checkpoint_of_a_run_that_moved(capsys, tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "checkpoint-2").mkdir(parents=True)
    state = SimpleNamespace(best_global_step=2, best_model_checkpoint=None)
    args = SimpleNamespace(load_best_model_at_end=True)
    args.resume_from_checkpoint = str(tmp_path / "moved" / "checkpoint-4")
    best = callbacks.Checkpoints(tmp_path)
    best.on_train_begin(args, state, None)
    monkeypatch.chdir(tmp_path / "elsewhere")
    best.on_train_begin(args, state, None)
    assert state.best_model_checkpoint is None  # the working folder has nothing of it
    assert "checkpoint-2, the best so far, is gone" in capsys.readouterr().err
    (tmp_path / "checkpoint-2").mkdir()
    best.on_train_begin(args, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    # It is also looked for beside the checkpoint that is resumed.
    (tmp_path / "moved").mkdir()
    (tmp_path / "checkpoint-2").rename(tmp_path / "moved" / "checkpoint-2")
    best.on_train_begin(args, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")


def test_other_steps_hold_from_a_resume_on(wordpiece, tmp_path):
    """Trainer would go on with those that the checkpoint has."""
    run = tmp_path / "run"
    train(arguments(run, max_steps=2, save_steps=2), wordpiece)
    named = str(run / "checkpoints" / "checkpoint-2")
    more = {"save_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    args = arguments(run, max_steps=7, resume_from_checkpoint=named, **more)
    trainer = train(args, wordpiece)
    saved = [path.name for path in checkpoint.checkpoints(run / "checkpoints")]
    assert saved == [f"checkpoint-{step}" for step in (2, 3, 6, 7)]
    events = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    assert events == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(("load", "kept"), [(False, [4]), (True, [1, 4])])
def test_the_best_is_kept_beside_the_last_where_it_is_loaded(tmp_path, load, kept):
    root = tmp_path / "checkpoints"
    args = SimpleNamespace(
        output_dir=str(root / ".saving"),
        save_total_limit=1,
        load_best_model_at_end=load,
    )
    for step in (1, 2, 3, 4):
        saved = root / ".saving" / f"checkpoint-{step}"
        saved.mkdir(parents=True)
        (saved / "training_args.bin").touch()
        state = TrainerState(global_step=step, best_global_step=1)
        checkpoint.publish(args, state, root)
    assert [p.name for p in checkpoint.checkpoints(root)] == [
        f"checkpoint-{step}" for step in kept
    ]


@pytest.mark.parametrize(
    ("step", "epoch", "stops", "waits"),
    [
        (10, 1.0, False, True),
        (9, 0.9, False, False),
        (25, 1.7, False, True),
        (9, 0.9, True, True),
    ],
)
def test_what_is_saved_last_knows_the_evaluation(step, epoch, stops, waits):
    """Else a stop in that evaluation would lose it: a resume finds all done."""
    args = SimpleNamespace(eval_strategy="epoch", logging_strategy="steps")
    state = SimpleNamespace(global_step=step, epoch=epoch, max_steps=25)
    control = SimpleNamespace(should_save=True, should_training_stop=stops)
    callback = callbacks.SaveAfterEvaluation()
    callback.on_step_end(args, state, control)
    assert control.should_save is not waits
    callback.on_epoch_end(args, state, control)
    assert control.should_save


def test_a_stop_at_the_end_of_a_pass_is_evaluated_once():
    args = SimpleNamespace(eval_strategy="epoch", save_strategy="epoch")
    state = SimpleNamespace(global_step=4, max_steps=9)
    control = SimpleNamespace(should_evaluate=False, should_save=False)
    callback = callbacks.EndOfPass()
    for due, once in ((False, True), (True, False)):
        callback.due = due
        callback.on_step_end(args, state, control)
        assert (control.should_evaluate, control.should_save) == (due, due)
        # Early stopping ends the epoch of Trainer, which then sets both.
        control.should_evaluate = control.should_save = True
        callback.on_epoch_end(args, state, control)
        assert (control.should_evaluate, control.should_save) == (once, once)
        control.should_evaluate = control.should_save = False


def test_the_last_batch_of_an_epoch_is_counted_as_it_is():
    args = arguments("unused", per_device_train_batch_size=32).training
    seen = [resume.examples_seen(args, [0] * 33, step) for step in range(5)]
    assert seen == [0, 32, 33, 65, 66]
    assert resume.examples_seen(args, iter(()), 3) == 96


def test_a_run_from_another_ones_checkpoint_goes_on_from_there(wordpiece, tmp_path):
    """Where it was killed before it had saved one; the best one is still known."""
    one, other = tmp_path / "one", tmp_path / "other"
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "loss", "greater_is_better": False}
    train(arguments(one, max_steps=4, **best), wordpiece)
    named = one / "checkpoints" / "checkpoint-2"
    more = {"max_steps": 4, "resume_from_checkpoint": str(named), **best}
    with pytest.raises(Terminated):
        train(arguments(other, **more), wordpiece, _StopsAtOnce(), checked=True)
    record = json.loads((other / "run.json").read_text())
    assert record["resumed"].endswith("one/checkpoints/checkpoint-2")
    shutil.rmtree(other / "checkpoints", ignore_errors=True)
    goes_on = {**more, "resume_from_checkpoint": "auto"}
    aside = named.rename(one / "aside")
    for asked in ("auto", True):
        args = arguments(other, **{**more, "resume_from_checkpoint": asked})
        with pytest.raises(CheckpointError, match="the run began from it"):
            resume.locate(args.training)
    aside.rename(named)
    again = arguments(other, **goes_on)
    trainer = train(again, wordpiece, checked=True)
    assert trainer.state.global_step == 4
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e][:3] == [
        *(1, 2, 3)
    ]
    assert (other / "stopped" / "1" / "run.json").is_file()


class _StopsAtOnce(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        raise Terminated


def test_the_best_checkpoint_of_a_run_two_folders_ago(tmp_path):
    best = tmp_path / "a" / "checkpoints" / "checkpoint-3"
    best.mkdir(parents=True)
    args = SimpleNamespace(
        resume_from_checkpoint=str(tmp_path / "b" / "checkpoints" / "checkpoint-9"),
        load_best_model_at_end=True,
    )
    state = TrainerState(best_global_step=3, best_model_checkpoint=str(best))
    callbacks.Checkpoints(tmp_path / "c").on_train_begin(args, state, None)
    assert state.best_model_checkpoint == str(best)


def test_a_schedule_by_the_metric_is_not_changed_on_a_resume(wordpiece, tmp_path):
    """What it keeps is of another kind than what other schedules keep."""
    run = tmp_path / "run"
    follows = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    follows |= {"metric_for_best_model": "loss", "greater_is_better": False}
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", **follows}
    args = arguments(run, **plateau)
    train(args, wordpiece, checked=True)
    assert args.training.lr_scheduler_kwargs == {"mode": "min"}
    named = {"resume_from_checkpoint": str(run / "checkpoints" / "checkpoint-1")}
    linear = arguments(run, **{**plateau, "lr_scheduler_type": "linear"}, **named)
    with pytest.raises(CheckpointError, match="lr_scheduler_type"):
        train(linear, wordpiece, checked=True)
    again = train(arguments(run, **plateau, **named), wordpiece, checked=True)
    assert again.state.global_step == 2


@pytest.mark.parametrize(
    ("schedule", "given", "wanted"),
    [
        ("reduce_lr_on_plateau", None, {"mode": "max"}),
        ("greedy", {"factor": 0.5}, {"mode": "max", "factor": 0.5}),
        ("reduce_lr_on_plateau", {"mode": "min"}, {"mode": "min"}),
        ("linear", None, None),
    ],
)
def test_a_schedule_knows_whether_greater_is_better(schedule, given, wanted):
    args = SimpleNamespace(
        lr_scheduler_type=schedule, lr_scheduler_kwargs=given, greater_is_better=True
    )
    trainer_module._set_mode(args)
    assert args.lr_scheduler_kwargs == wanted
