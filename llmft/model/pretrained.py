"""``from_pretrained`` of transformers, and what its errors mean for the user."""

from __future__ import annotations

import json
import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import file_exists
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer

from llmft.errors import (
    ConfigError,
    EnvironmentFault,
    LlmftError,
    UnsafeArtifactError,
    escape,
)
from llmft.files import read_object
from llmft.model.convert import pickles
from llmft.process import as_fault
from llmft.sources import hub
from llmft.sources.hub import Located

_OBJECTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json")
_TELLING = (ValueError, StrictDataclassError)  # errors whose text needs no name


def from_pretrained(loader: Any, located: Located, **options: Any) -> Any:
    """Return ``loader.from_pretrained`` of what was located, and run no foreign code.

    Raises:
        ConfigError: transformers cannot make anything of the files.
        EnvironmentFault: files are missing or damaged.
        UnsafeArtifactError: the model would have to run foreign code.
    """
    require_inside(Path(located.path_or_id))
    try:
        return loader.from_pretrained(
            located.path_or_id,
            revision=located.commit or located.revision or "main",
            local_files_only=located.local_files_only,
            trust_remote_code=False,  # None would ask, and run it after a "y"
            **options,
        )
    except Exception as error:
        raise _fault(error, located, loader is AutoTokenizer) from error


def require_inside(folder: Path) -> None:
    """Raise UnsafeArtifactError where files of a model name others outside its folder.

    Some that are published name a place of the machine where they were made; what is
    not here cannot be read, nor does anything read a map of special tokens.
    """
    inside = [Path(os.path.normpath(folder.absolute())), folder.resolve()]
    for path in (*folder.glob("*.index.json"), folder / "tokenizer_config.json"):
        found = read_object(path)
        weights = found.get("weight_map")
        named = {n: x for n, x in found.items() if n.endswith("_file")}
        named.pop("special_tokens_map_file", None)
        for key, value in {
            **named,
            **(weights if isinstance(weights, dict) else {}),
        }.items():
            if not isinstance(value, str):
                continue
            place = Path(os.path.normpath(inside[0] / value))
            if not any(map(place.is_relative_to, inside)) and place.exists():
                raise UnsafeArtifactError(
                    f"{key} names {value}, which is outside of the model's folder",
                    "expected a file in it",
                    "remove that line, which older versions of transformers wrote for"
                    " a tokenizer of this machine, or copy the model's files again",
                    path=path,
                )


def _fault(error: Exception, located: Located, of_tokenizer: bool) -> LlmftError:
    """Return what keeps transformers from loading; it raises anything at odd files."""
    place, said = located.path_or_id, " ".join(str(error).split())
    if known := as_fault(error):
        return known
    if "trust_remote_code" in str(error):
        return UnsafeArtifactError(
            "this model comes with code of its own, which loading it would run",
            "expected a model type that transformers knows",
            "choose another model",
            path=located.name,
        )
    if isinstance(error, SafetensorError):
        found = f"the weights are damaged: {error}"
        return EnvironmentFault(found, hint="fetch or copy them again", path=place)
    if isinstance(error, OSError) and "safetensors" in said and " file named " in said:
        return no_safetensors(located)
    for name in _OBJECTS:
        if problem := _not_an_object(Path(place, name)):
            return ConfigError(
                f"{problem}; expected a JSON object; copy the model's files again",
                path=Path(place, name),
            )
    if isinstance(error, (OSError, ImportError, *hub.MISSES)):
        return EnvironmentFault(escape(said, 300), path=place)
    found = escape(said.rstrip("."), 300)
    if not isinstance(error, _TELLING):
        found = f"{type(error).__name__}: {found}"
    remedy = "check its config.json"
    if of_tokenizer:
        remedy = "copy its tokenizer again, or give another with --tokenizer_name"
        if Path(place).is_dir() and not Path(place, "tokenizer.json").exists():
            found = f"there is no tokenizer.json, and without it: {found}"
            pieces = sorted(Path(place).glob("*.model"))
            if pieces and find_spec("sentencepiece") is None:
                found = f"{pieces[0].name} needs SentencePiece, which is not installed"
                remedy = "pip install 'llmft[sentencepiece]'"
    return ConfigError(f"transformers cannot load it: {found}; {remedy}", path=place)


def _not_an_object(path: Path) -> str:
    """Return what is wrong with a JSON file, "" if nothing is or there is none."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        return f"not JSON: {error}"
    return "" if isinstance(value, dict) else f"JSON {json.dumps(value)[:40]}"


def no_safetensors(located: Located) -> LlmftError:
    """Return the error of a model without safetensors, which may be a pickle."""
    if _is_pickle(located):
        return UnsafeArtifactError(
            "the weights are a pickle (.bin), which can run code",
            "expected safetensors",
            f"`llmft convert {shlex.quote(located.name)}` makes that, running nothing",
            path=located.name,
        )
    return EnvironmentFault(
        "there are no weights: no file named model.safetensors",
        hint="copy the folder again, or choose another model",
        path=located.name,
    )


def _is_pickle(located: Located) -> bool:
    """Return whether a model without safetensors has PyTorch's older format."""
    found, revision = pickles(Path(located.path_or_id)), located.commit
    if found or not revision:
        return bool(found)
    names = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
    try:
        return any(file_exists(located.name, n, revision=revision) for n in names)
    except hub.MISSES:
        return False
