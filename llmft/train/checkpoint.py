"""Checkpoints that are whole or not there.

Trainer saves into a hidden folder, from which a rename publishes
``RUN/checkpoints/checkpoint-N``. Its ``manifest.json`` lists the files with size and
sha256, and what a run must have in common with it to go on from there; it ends with
the sha256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llmft.config.facts import MUST_AGREE, fields_with
from llmft.config.fields import RECIPES
from llmft.errors import CheckpointError, NonFiniteError
from llmft.files import (
    clear_stagings,
    failpoint,
    file_sha256,
    publish_folder,
    read_object,
    to_json,
    write_text,
)

MANIFEST = "manifest.json"
AT_START = "llmft_not_finite"  # of a model: what ``not_finite`` said before training
VERSION = 2  # of the manifest
_SEAL = re.compile(rb'(.*),\n  "sha256": "([0-9a-f]{64})"\n}\n', re.DOTALL)
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


@contextmanager
def saving(root: Path) -> Iterator[str]:
    """Yield the folder in ``root`` for Trainer to save into; it is gone afterwards.

    What a kill left of earlier saves goes, too.
    """
    folder = root / ".saving"
    clear_stagings(root)
    _clear(root)
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
    loaded = best if args.load_best_model_at_end else target
    _keep(root, args.save_total_limit, target, loaded)


def _write_manifest(folder: Path, step: int, run_json: Path) -> None:
    record = read_object(run_json)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    arguments = record.get("arguments") or {}
    values = {name: a["value"] for name, a in arguments.items()}
    manifest = {
        "version": VERSION,
        "step": step,
        "leg": len(record.get("legs") or []) + 1,
        "belongs_to": identity(record, values) if record else {},
        "versions": record.get("versions", {}),
        "files": files,
    }
    write_text(folder / MANIFEST, sealed(manifest))
    failpoint("save.manifest.half", folder / MANIFEST)
    failpoint("save.manifest.close")


def sealed(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest, which ends with the sha256 of what is above."""
    body = to_json(manifest, indent=2).removesuffix("\n}")
    # As ``write_text`` writes it.
    found = hashlib.sha256(body.encode("utf-8", "backslashreplace")).hexdigest()
    return f'{body},\n  "sha256": "{found}"\n}}\n'


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises CheckpointError where there is none, it has changed, or is of a later llmft.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = json.loads(raw.decode("utf-8"))
        version = manifest.get("version", 1)
    except FileNotFoundError:
        said = f"it has no {MANIFEST}: it was cut short, or plain Trainer made it"
        raise CheckpointError(said, path=folder) from None
    except (ValueError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{MANIFEST} cannot be read", path=folder) from None
    if isinstance(version, int) and version > VERSION:
        made = (manifest.get("versions") or {}).get("llmft", "a later llmft")
        raise CheckpointError(
            f"{MANIFEST} is of version {version} (llmft {made}), this llmft reads up to"
            f" version {VERSION}",
            path=folder,
        )
    seal = _SEAL.fullmatch(raw)
    whole = seal and hashlib.sha256(seal[1]).hexdigest() == seal[2].decode()
    if not whole:
        said = f"{MANIFEST} has changed since it was saved (its sha256 is another)"
        raise CheckpointError(said, path=folder)
    return dict(manifest)


@torch.no_grad()
def not_finite(model: Any) -> dict[str, int]:
    """Return how many values of weights that are trained are not finite, by name.

    The sum tells: 135 M weights took 0.05 s on 2 cores, of 3.5 s that a save takes,
    where asking each took 0.8 s. That of finite ones may be too large: they are asked.
    """
    found = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad or math.isfinite(weight.sum().item()):
            continue
        if odd := int((~weight.isfinite()).sum()):
            found[name] = odd
    return found


def require_finite(model: Any, step: int) -> None:
    """Raise NonFiniteError for a weight that training has made not finite.

    Values that were not when it began are no reason: see ``Guards.on_train_begin``.
    """
    before = vars(model).get(AT_START, {})
    for name, odd in not_finite(model).items():
        if odd > (old := before.get(name, 0)):
            size = model.get_parameter(name).numel()
            raise NonFiniteError(
                f"{odd:,} of {size:,} values of the weight {name} are not"
                f" finite after step {step}" + f", {old:,} before training" * bool(old),
                "nothing of it is saved, the checkpoint before stays",
                "lower learning_rate, or raise warmup_steps",
            )


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
    if not values.get("streaming"):
        must_agree.remove("buffer_size")
    return found | {name: values[name] for name in must_agree if name in values}


def _keep(root: Path, limit: int | None, newest: Path, best: Path) -> None:
    """Remove what a kill left of earlier saves, and checkpoints beyond ``limit``."""
    _clear(root)
    found = checkpoints(root)
    protected = {newest, best} & set(found)
    surplus = len(found) - max(limit or len(found), len(protected))
    # Later steps are of before a resume from an earlier one: they go first.
    found.sort(key=lambda path: (_step(path) <= _step(newest), _step(path)))
    failpoint("rotate.before")
    for folder in [path for path in found if path not in protected][: max(surplus, 0)]:
        going = folder.with_name(f".{folder.name}")  # a kill leaves no half of it
        os.rename(folder, going)
        failpoint("rotate.mid")
        shutil.rmtree(going, ignore_errors=True)
    failpoint("rotate.after")


def _clear(root: Path) -> None:
    for stale in root.glob(f".{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(stale, ignore_errors=True)


def checkpoints(root: Path) -> list[Path]:
    """Return the folders named checkpoint-N in ``root`` by N; whole or not."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
