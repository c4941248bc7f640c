"""``llmft runs clean``: what could be freed, and taking it away."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmft.errors import listed
from llmft.files import disk
from llmft.runs.listing import NOTES, notes_of
from llmft.runs.record import FOLDS, OF_RUN, STOPPED, RunRecord, find_runs, held

KINDS = {
    "checkpoints": "checkpoints of complete runs: the model stays",
    "failed": "runs that ended without a model",
    "leftovers": "what a kill left half written",
}
_AGE = 3600  # seconds; what is younger may be in the making
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_OF_CHECKPOINTS = re.compile(r"\.saving|\.checkpoint-\d+(\..+)?")
# Whatever else lies in the folder of a run stays. run.json goes last.
_ITS_OWN = (FOLDS, STOPPED, *reversed(OF_RUN[1:]), NOTES, "run.json")
_ENDED = ("failed", "interrupted", "killed")
_FILES = "|".join(re.escape(name) for name in _ITS_OWN if "." in name)
_LEFTOVER = re.compile(
    r"\.(model|profile|[0-9]+)\.(staging|older)-.+-\d+-[0-9a-f]{8}"
    rf"|\.({_FILES})\.(staging-.+-\d+-)?[0-9a-f]{{8}}|\.write-test"
)


@dataclass(frozen=True)
class Item:
    """Something that could go: its kind, of which run, why, where, and its bytes."""

    kind: str
    run: RunRecord
    what: str
    paths: list[Path]
    size: int


def find(root: Path, kinds: Collection[str], older_than: float = 0.0) -> list[Item]:
    """Return what could go in and below a folder; nothing of a run that is at work.

    Args:
        kinds: of ``KINDS``. older_than: seconds since the run began.
    """
    items, now = list[Item](), time.time()
    for run in find_runs(root):
        started = run.started
        if older_than and (not started or now - started.timestamp() < older_than):
            continue
        if run.status == "running" or run.folder.is_symlink():
            continue
        items += [item for item in _of_run(run, now) if item.kind in kinds]
    return items


def _of_run(run: RunRecord, now: float) -> Iterator[Item]:
    folder = run.folder
    root, model = folder / "checkpoints", folder / "model"
    within = _entries(root)
    checkpoints = [path for path in within if _CHECKPOINT.fullmatch(path.name)]
    has_model = model.is_dir() and any(model.iterdir())
    if (
        not has_model
        and run.status in _ENDED
        and "versions" in run.record  # else somebody else's
        and not any(notes_of(folder).values())
    ):
        ended = f"{run.status}, without a model"
        if checkpoints:
            newest = max(checkpoints, key=lambda path: int(path.name.split("-")[1]))
            ended += f"; could be resumed from {newest.name}"
        folds = len([*(folder / FOLDS).glob("[0-9]*.json")])
        if folds:
            ended += f"; could be resumed after {folds} of its folds"
        if run.status != "interrupted" or not (checkpoints or folds):
            own = [p for n in _ITS_OWN if (p := folder / n).exists()]
            own = [p for p in own if not p.is_symlink()]
            paths = [*_leftovers(folder, within, 0), *own]
            yield Item("failed", run, ended, paths, sum(map(_size, paths)))
            return
    if has_model and run.status == "complete" and checkpoints:
        names = listed([path.name for path in checkpoints], 3, str)
        what = f"{names} of a complete run"
        size = sum(map(_size, checkpoints))
        yield Item("checkpoints", run, what, checkpoints, size)
    if paths := list(_leftovers(folder, within, now - _AGE)):
        what = f"{len(paths)} half written"
        yield Item("leftovers", run, what, paths, sum(map(_size, paths)))


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, but no links; nothing where it is one itself."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


def _leftovers(folder: Path, within: list[Path], before: float) -> Iterator[Path]:
    """Yield what is half written: in the run since ``before``, 0 for all, and below."""
    for path in _entries(folder):
        if _LEFTOVER.fullmatch(path.name):
            if not before or path.lstat().st_mtime < before:
                yield path
    yield from (path for path in within if _OF_CHECKPOINTS.fullmatch(path.name))


def _size(path: Path) -> int:
    return disk(path) if path.is_dir() else path.lstat().st_size


def take_away(item: Item) -> str:
    """Take an item away; return what of its run stays, or "".

    Raises EnvironmentFault where a process has begun to work there.
    """
    with held(item.run.folder):
        for path in item.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if item.kind == "failed":
            if others := [path.name for path in item.run.folder.iterdir()]:
                return f"{len(others)} files that are not the run's stay"
            os.rmdir(os.path.abspath(item.run.folder))  # also where it is "."
    return ""
