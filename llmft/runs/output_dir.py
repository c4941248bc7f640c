"""The folder that a run gets: whether it can be used, and making it."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from pathlib import Path

from llmft.config.fields import AUTO, TrainingArguments
from llmft.console import say
from llmft.errors import EnvironmentFault
from llmft.files import read_object
from llmft.runs.record import FOLDS, OF_RUN, OUTPUTS, STOPPED, held
from llmft.train import resume

_BEGUN = re.compile(r"\.write-test|\.run\.json\.staging-.+")
_ELSEWHERE = "choose --output_dir"


def check_output_dir(args: TrainingArguments) -> None:
    """Find the checkpoint to resume, and make sure that ``output_dir`` can be used.

    Writes nothing; recipes call it before they load anything. Sets
    ``resume_from_checkpoint`` to the path of a verified checkpoint or to None.

    Raises:
        CheckpointError: where there is none to resume, or it is not whole.
        EnvironmentFault: where ``output_dir`` is a file, or in use by another run.
    """
    resume.locate(args)
    _require_free(args)
    if args.output_dir and (folder := Path(args.output_dir).expanduser()).is_dir():
        with held(folder):
            pass


def _require_free(args: TrainingArguments) -> None:
    if not args.output_dir:
        return
    folder = Path(args.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise EnvironmentFault("output_dir is a file", path=folder)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if there.is_dir() and not os.access(there, os.W_OK):
        raise EnvironmentFault("cannot write there", hint=_ELSEWHERE, path=there)
    entries = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if args.of_folds and FOLDS in entries:
        return  # before the last training; what else is there stays
    if FOLDS in entries:
        raise EnvironmentFault(
            "output_dir holds a cross-validation", hint="name a new folder", path=folder
        )
    if args.goes_on:  # a kill came before run.json, or the run there starts anew
        entries = [name for name in entries if not _BEGUN.fullmatch(name)]
        if read_object(folder / "run.json"):
            return
    if entries and not resume.is_of(args.resume_from_checkpoint, folder):
        raise EnvironmentFault(
            f"output_dir is not empty: it holds {', '.join(entries[:5])}",
            hint="name a new folder, or resume with --resume_from_checkpoint"
            " FOLDER/checkpoints/checkpoint-N"
            + (f", or {AUTO}" if not args.goes_on else ""),
            path=folder,
        )


def make_folder(recipe: str, args: TrainingArguments) -> Path:
    """Return the new folder of the run; raise EnvironmentFault where it cannot be."""
    _require_free(args)
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    folder = Path(args.output_dir or Path(OUTPUTS) / recipe / stamp).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".write-test").touch()
        (folder / ".write-test").unlink()
        if args.goes_on and not resume.is_of(args.resume_from_checkpoint, folder):
            with held(folder):
                _put_away(folder)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write there: {error.strerror}",
            hint=_ELSEWHERE,
            path=folder,
        ) from error
    return folder


def _put_away(folder: Path) -> None:
    """Move what a stopped run did into ``stopped/N`` of its folder; it starts anew.

    Its ``run.json`` stays until the new one takes its place, so that a kill in between
    leaves a run.
    """
    record = read_object(folder / "run.json")
    if not record:
        return
    if record.get("status") == resume.COMPLETE:
        raise EnvironmentFault(
            "the run there is complete", hint="name a new folder", path=folder
        )
    for path in (folder / "checkpoints").glob(".*"):  # half written
        shutil.rmtree(path, ignore_errors=True)
    above = folder / STOPPED
    above.mkdir(exist_ok=True)
    numbers = [int(path.name) for path in above.iterdir() if path.name.isdecimal()]
    target = above / str(1 + max(numbers, default=0))
    target.mkdir()
    shutil.copyfile(folder / "run.json", target / "run.json")
    there = [name for name in OF_RUN[1:] if os.path.lexists(folder / name)]
    for name in there:
        os.rename(folder / name, target / name)
    say(f"anew       {', '.join(there) or 'nothing'} of before: now in {target}")
