"""``llmft convert``: the weights of a pickle as safetensors, which can run no code."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import torch
import transformers
from huggingface_hub import save_torch_state_dict, snapshot_download
from transformers import AutoConfig

from llmft.console import say
from llmft.errors import (
    ConfigError,
    EnvironmentFault,
    UnsafeArtifactError,
    brief,
    listed,
    shorten,
)
from llmft.files import publish_folder, read_object
from llmft.sources import hub
from llmft.sources.wheels import size_text

# Variants of other names, as pytorch_model.fp16.bin, hold the same tensors again.
_PICKLE = re.compile(r"(pytorch_model|adapter_model)(?:-\d+(-of-\d+))?\.bin")
# Neither weights of other libraries nor pickles go along.
_LEFT_OUT = re.compile(
    r".*\.(bin|pt|pth|pkl|ckpt|h5|msgpack|ot|onnx|tflite|npz|bin\.index\.json)|\..*"
)


def pickles(folder: Path) -> list[Path]:
    """Return the files in a folder that are weights in PyTorch's older format."""
    return sorted(path for path in folder.glob("*.bin") if _PICKLE.fullmatch(path.name))


def convert(name: str, output_dir: str | None) -> Path:
    """Write a copy of a model whose weights are safetensors; return its folder.

    Of the pickle torch reads tensors alone. What the model itself ties to another one
    is kept once, anything else that shares memory by each name. The other files of the
    folder go along, those in folders inside of it do not.

    Args:
        name: a folder, or a hub id.
        output_dir: None: beside the folder, or here, by its name.

    Raises:
        ConfigError: there is nothing to convert, or more than one set of weights; or
            safetensors cannot hold them; or something is at the target.
        EnvironmentFault: the weights are damaged, or a part of them is missing.
        UnsafeArtifactError: the pickle holds more than tensors.
    """
    located = hub.locate_model(name)
    beside = Path(os.path.normpath(located.path_or_id))
    folder = beside
    if located.commit:  # of the hub
        beside = Path(Path(located.name).name)
    if located.commit and not located.note:  # else of its cache, as it is there
        kinds = ["*.safetensors", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*/*"]
        folder = Path(
            snapshot_download(
                located.name, revision=located.commit, ignore_patterns=kinds
            )
        )
    given = Path(output_dir).expanduser() if output_dir else None
    target = given or beside.with_name(f"{beside.name}-safetensors")
    if target.exists():
        raise ConfigError("output_dir is there: name another", path=target)
    files, safe = pickles(folder), [*folder.glob("*.safetensors")]
    if safe or not files:
        said = f"it has {safe[0].name}" if safe else "it has no pytorch_model.bin"
        raise ConfigError(f"{said}: nothing to convert", path=name)
    weights = _weights(folder, files)
    for tied, other in _tied(folder).items():
        if {tied, other} <= weights.keys():
            if torch.equal(weights[tied], weights[other]):
                del weights[tied]
    with publish_folder(target) as staging:
        left_out = [path.name for path in folder.iterdir() if not _goes_along(path)]
        for path in filter(_goes_along, folder.iterdir()):
            shutil.copyfile(path, staging / path.name)
        stem = _PICKLE.sub(r"\1", files[0].name).removeprefix("pytorch_")
        pattern = stem + "{suffix}.safetensors"
        try:
            save_torch_state_dict(weights, staging, filename_pattern=pattern)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            said = f"safetensors cannot hold the weights: {brief(error)}"
            raise ConfigError(said, path=name) from error
    size = size_text(sum(weight.nbytes for weight in weights.values()))
    say(f"{target}: {len(weights):,} tensors, {size}")
    if more := sorted({*left_out} - {file.name for file in files}):
        say(f"left out: {listed(more, show=str)}")
    return target


def _weights(folder: Path, files: list[Path]) -> dict[str, torch.Tensor]:
    """Return the tensors of the files in a folder by name, all that its index has."""
    sets = {_PICKLE.sub(r"\1\2", file.name): file.name for file in files}
    if len(sets) > 1:
        said = f"it has {listed(sets.values(), show=str)}; expected those of one model"
        raise ConfigError(said, "move the others away", path=folder)
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights |= _tensors(file)
    for index in folder.glob("*.bin.index.json"):
        names = read_object(index).get("weight_map", {})
        if not isinstance(names, dict):
            said = f"weight_map is {shorten(names)}; expected a file for each tensor"
            raise EnvironmentFault(said, hint="copy the folder again", path=index)
        if missing := names.keys() - weights.keys():
            raise EnvironmentFault(
                f"a part of the weights is not there, with {listed(missing, 3, str)}",
                hint="copy the folder again",
                path=folder,
            )
    count = next(iter(sets)).partition("-of-")[2]
    if count and int(count) != len(files):  # which no index told
        said = f"{len(files):,} of {int(count):,} files of the weights are there"
        raise EnvironmentFault(said, hint="copy the folder again", path=folder)
    return weights


def _tied(folder: Path) -> dict[str, str]:
    """Return the weights that the model in a folder takes from others, by name."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])(config)
        tied: dict[str, str] = model.all_tied_weights_keys
    except Exception:  # whatever it says of an adapter, or a model with its own code
        return {}
    return tied


def _goes_along(path: Path) -> bool:
    return path.is_file() and not _LEFT_OUT.fullmatch(path.name)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, none in memory that another one has."""
    try:
        found = torch.load(
            file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        said = f"asks for {what[1]}" if what else "is no pickle of torch"
        raise UnsafeArtifactError(
            f"it {said}: nothing of it was run",
            "expected tensors alone",
            "choose another model",
            path=file,
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise EnvironmentFault(
            f"the weights are damaged: {brief(error)}",
            hint="fetch or copy them again",
            path=file,
        ) from error
    tensors = found if isinstance(found, dict) else {}
    named = all(isinstance(name, str) for name in tensors)
    if not (named and all(isinstance(x, torch.Tensor) for x in tensors.values())):
        tensors = {}
    if not tensors:
        said = "not a dict of tensors by name; expected a state dict"
        raise ConfigError(said, path=file)
    for name, x in tensors.items():
        if name == "__metadata__" or x.layout != torch.strided:
            said = f"{shorten(name)}, {x.layout}; expected dense tensors of other names"
            raise ConfigError(f"safetensors cannot hold {said}", path=file)
    seen: set[int] = set()
    for name, x in tensors.items():
        storage = x.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != x.nbytes:
            tensors[name] = x.clone()
        seen.add(storage.data_ptr())
    return tensors
