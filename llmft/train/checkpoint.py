"""Checkpoints that are whole or not there.

Trainer saves into a hidden folder, from which a rename publishes
``RUN/checkpoints/checkpoint-N``. Its ``manifest.json`` lists the files with size and
sha256, and what a run must have in common with it to go on from there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llmft.config.facts import MUST_AGREE, fields_with
from llmft.config.fields import RECIPES
from llmft.files import file_sha256, publish_folder, write_json

MANIFEST = "manifest.json"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


@contextmanager
def saving(root: Path) -> Iterator[str]:
    """Yield the folder in ``root`` for Trainer to save into; it is gone afterwards.

    What a kill left of an earlier run in it goes, too.
    """
    folder = root / ".saving"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(args: Any, state: Any, root: Path) -> None:
    """Bring the checkpoint that Trainer has saved into ``root``, whole or not at all.

    Names the best one in ``state``, and keeps as many as are asked for; none goes
    before the new one is whole. Raises OSError.
    """
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    saved, target = Path(str(args.output_dir)) / name, root / name
    best = root / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
    if best == target or best.is_dir():
        state.best_model_checkpoint = str(best)
    with publish_folder(target, replace=True) as folder:
        for path in saved.iterdir():
            path.rename(folder / path.name)
        # A pickle that nothing reads again.
        (folder / TRAINING_ARGS_NAME).unlink()
        state.save_to_json(str(folder / TRAINER_STATE_NAME))
        _write_manifest(folder, state.global_step, root.parent / "run.json")
    saved.rmdir()
    _keep(root, args.save_total_limit, target, best)


def _write_manifest(folder: Path, step: int, run_json: Path) -> None:
    record = json.loads(run_json.read_text("utf-8")) if run_json.is_file() else {}
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    values = {name: a["value"] for name, a in record.get("arguments", {}).items()}
    manifest = {
        "step": step,
        "belongs_to": identity(record, values) if record else {},
        "versions": record.get("versions", {}),
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)


def identity(record: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must agree to resume, by a name to show; see ``run.json``."""
    model = dict(record.get("model", {}))
    if len(model) > 2:  # more than name and tokenizer: a folder may have moved
        del model["name"]
    data = record.get("data", {})
    found = {"recipe": record.get("recipe")}
    for split in ("train", "validation"):
        for key in ("rows", "sha256"):
            found[f"{split} data: {key}"] = data.get(split, {}).get(key)
    found |= {f"model: {key}": value for key, value in model.items()}
    must_agree = fields_with("resume", *RECIPES, among=[MUST_AGREE])
    return found | {name: values[name] for name in must_agree if name in values}


def _keep(root: Path, limit: int | None, newest: Path, best: Path) -> None:
    """Remove what a kill left of earlier saves, and checkpoints beyond ``limit``."""
    for stale in root.glob(f".{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    found = checkpoints(root)
    protected = {newest, best} & set(found)
    surplus = len(found) - max(limit or len(found), len(protected))
    # Later steps are of before a resume from an earlier one: they go first.
    found.sort(key=lambda path: (_step(path) <= _step(newest), _step(path)))
    for folder in [path for path in found if path not in protected][: max(surplus, 0)]:
        going = folder.with_name(f".{folder.name}")  # a kill leaves no half of it
        os.rename(folder, going)
        shutil.rmtree(going, ignore_errors=True)


def checkpoints(root: Path) -> list[Path]:
    """Return the folders named checkpoint-N in ``root`` by N; whole or not."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def fault(folder: Path, hashes: bool = True) -> str | None:
    """Return what keeps ``folder`` from being resumed; None where it is whole.

    Without ``hashes`` a changed file is found by its size only.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = {n: (f["bytes"], f["sha256"]) for n, f in manifest["files"].items()}
        known = isinstance(manifest["step"], int) and manifest["belongs_to"].items()
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was cut short, or plain Trainer made it"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{MANIFEST} cannot be read"
    if not known:
        return f"{MANIFEST} does not say to which run it belongs"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, was saved with {size:,}"
        if hashes and file_sha256(path) != sha256:
            return f"{name} has changed since it was saved (its sha256 is another)"
    if lacking := [name for name in _STATE if name not in files]:
        return f"it was saved without {', '.join(lacking)} (save_only_model)"
    return None


def newest(root: Path, hashes: bool = True) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint in ``root``, and why later ones are not."""
    passed: list[str] = []
    for folder in reversed(checkpoints(root)):
        found = fault(folder, hashes)
        if found is None:
            return folder, passed
        passed.append(f"{folder.name}: {found}")
    return None, passed


def locate(args: TrainingArguments) -> None:
    """Find and verify the checkpoint that ``args`` ask for, before anything is loaded.

    Sets ``resume_from_checkpoint`` to its path or None, and ``output_dir`` to the run
    that it is of where none is named. Raises CheckpointError.
    """
    asked = args.resume_from_checkpoint
    if asked is True:
        root = Path(str(args.output_dir)).expanduser() / "checkpoints"
        found, passed = newest(root)
        if found is None:
            seen = "; ".join(passed) or "there is none at all"
            raise CheckpointError(
                f"no complete checkpoint to resume: {seen}",
                hint="start anew in another output_dir",
                path=root,
            )
        for reason in passed:
            warn(f"passed over {reason}")
    elif asked:
        found = Path(str(asked)).expanduser()
        problem = fault(found) if found.is_dir() else "there is no such folder"
        if problem:
            other = newest(found.parent)[0]
            hint = f"resume from {other}" if other else "start anew"
            if found.is_dir():
                hint += ", or give its weights alone as --model_name_or_path"
            raise CheckpointError(problem, hint=hint, path=found)
    else:
        args.resume_from_checkpoint = None
        return
    args.resume_from_checkpoint = str(found)
    run = found.parent.parent
    if not args.output_dir and (run / "run.json").is_file():
        args.output_dir = str(run)
    where = f"in {args.output_dir}" if args.output_dir else "in a new folder"
    say(f"resume     {found}, {where}")


def require_match(
    recipe: str, args: Arguments, facts: Mapping[str, Any], train: Any | None
) -> None:
    """Raise CheckpointError unless the checkpoint to resume is one of this run's.

    Args:
        recipe: its name.
        args: what was asked, after ``locate``.
        facts: ``data`` and ``model``, as they go into ``run.json``.
        train: the training examples.
    """
    training = args.training
    if not training.resume_from_checkpoint or train is None:
        return
    folder = Path(str(training.resume_from_checkpoint))
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    values = {name: entry["value"] for name, entry in args.resolved().items()}
    here = _identity({"recipe": recipe, **facts}, values)
    there = manifest["belongs_to"]
    differ = [
        f"{name} was {_short(there.get(name))}, is {_short(here.get(name))}"
        for name in here | there
        if here.get(name) != there.get(name)
    ]
    if differ:
        raise CheckpointError(
            f"it does not belong to this run: {'; '.join(differ[:5])}",
            hint="resume with what it was made with, or give its weights alone as"
            " --model_name_or_path",
            path=folder,
        )
    total = training_steps(training, train)
    run_json = folder.parent.parent / "run.json"
    record = json.loads(run_json.read_text("utf-8")) if run_json.is_file() else {}
    finished = manifest["step"] == total and record.get("status") == "complete"
    if manifest["step"] > total or finished:
        raise CheckpointError(
            f"it is of step {manifest['step']}, this run ends at step {total}: nothing"
            " is left to do",
            hint="raise num_train_epochs or max_steps",
            path=folder,
        )
    parts = [type(p) for p in (args.model, args.data, training)]
    for name in fields_with("resume", *parts, among=[MAY_DIFFER]):
        was = record.get("arguments", {}).get(name, {}).get("value", values[name])
        if was != values[name]:
            warn(f"{name} was {was} before this resume, is {values[name]} from now on")
    planned = json.loads((folder / TRAINER_STATE_NAME).read_text("utf-8"))["max_steps"]
    schedule = SchedulerType(training.lr_scheduler_type).value
    if planned != total and not schedule.startswith("constant"):
        warn(
            f"the checkpoint was made for {planned:,} steps, this run has {total:,}:"
            f" the learning rate goes on as in a run of {total:,} ({schedule})"
        )
    for name, version in manifest["versions"].items():
        if name != "python" and version != (now := importlib.metadata.version(name)):
            warn(f"the checkpoint was made with {name} {version}, here is {now}")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch("[0-9a-f]{40,}", text) else text


def training_steps(args: TrainingArguments, train: Any) -> int:
    """Return the optimizer steps of a training on ``train``, as Trainer counts.

    A stream has no length, and needs ``max_steps``.
    """
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * epoch_steps(args, train))


def epoch_steps(args: TrainingArguments, train: Sized) -> int:
    """Return the optimizer steps of an epoch."""
    batches = math.ceil(len(train) / args.train_batch_size)
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)


def resume_command(argv: Sequence[str], folder: Path) -> str:
    """Return the command line of ``argv`` that goes on from checkpoint ``folder``."""
    flag, is_value = "--resume_from_checkpoint", False
    kept: list[str] = []
    for word in argv:
        name = word.partition("=")[0].replace("-", "_")
        if name == flag.replace("-", "_"):
            is_value = "=" not in word
        elif is_value and not word.startswith("--"):
            is_value = False
        else:
            kept.append(word)
            is_value = False
    return "python " + shlex.join([*kept, flag, str(folder)])
