"""Adapters that peft saved: merged into their base, they are models like others."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from llmft.console import say
from llmft.errors import ConfigError, brief
from llmft.files import file_sha256, publish_folder
from llmft.model.identity import terms_files
from llmft.model.labels import untrained
from llmft.model.new_weights import modules, output_layers
from llmft.model.pretrained import from_pretrained
from llmft.process import versions
from llmft.sources import catalog
from llmft.sources.hub import ADAPTER, Located

# By peft's task_type: what the base is loaded as, and the recipe for it.
_KINDS = {
    "CAUSAL_LM": (AutoModelForCausalLM, "generate.py"),
    "SEQ_CLS": (AutoModelForSequenceClassification, "classify.py"),
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_PREFIX = "base_model.model."  # of the names of weights in an adapter
_ODD = 7919  # classes that no layer has by chance


def merge_adapter(located: Located, base: Located, auto_class: Any) -> Located:
    """Return a folder of the cache with an adapter merged into its base, made once.

    Embeddings that the adapter holds for added tokens come with it, and a classifier's
    head. Its tokenizer is used if it has one, else that of the base.

    Args:
        auto_class: of the task that the model is for; None: that of the adapter.

    Raises:
        ConfigError: it is for another task, or does not fit its base.
    """
    folder = Path(located.path_or_id)
    config = json.loads((folder / ADAPTER).read_text("utf-8"))
    kind, method = (str(config.get(name) or "") for name in ("task_type", "peft_type"))
    if "PROMPT" in method or "TUNING" in method:
        said = f"an adapter of {method}, which has no weights to merge; expected LoRA"
        raise ConfigError(said, path=folder)
    fits, recipe = _KINDS.get(kind, (auto_class or AutoModelForCausalLM, ""))
    auto_class = auto_class or fits
    if fits is not auto_class or (kind and not recipe):
        see = f"use recipes/{recipe}" if recipe else "llmft has no recipe for it"
        raise ConfigError(
            f"an adapter for {kind}; expected one for this task; {see}", path=folder
        )
    name = f"adapter-{_digest(folder, base, auto_class)}"
    target = catalog.cache_home() / "unpacked" / name
    made = any(target.glob("*.safetensors"))
    where = "" if made else " in the cache (once)"
    say(f"adapter    {located.name}, merged into {base.name}{where}")
    if not made:
        added = config.get("trainable_token_indices") or []
        model = _merged(folder, base, auto_class, added)
        own = any((folder / name).is_file() for name in _TOKENIZER)
        tokenizer = from_pretrained(AutoTokenizer, located if own else base)
        with publish_folder(target, replace=True) as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            for path in terms_files(base.path_or_id):
                shutil.copyfile(path, staging / path.name)
            for path in terms_files(folder):
                shutil.copyfile(path, staging / f"{path.name}.adapter")
    return Located(
        str(target), local_files_only=True, name=located.name, merged_into=base.name
    )


def _digest(folder: Path, base: Located, auto_class: Any) -> str:
    """Return what the result depends on, in short."""
    places = [folder] if base.commit else [folder, Path(base.path_or_id)]
    files = [p for place in places for p in sorted(place.iterdir()) if p.is_file()]
    parts = [auto_class.__name__, base.name, base.commit, *sorted(versions().items())]
    parts += [(path.name, file_sha256(path)) for path in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _merged(
    folder: Path, base: Located, auto_class: Any, added: list[int] | dict[str, list]
) -> Any:
    """Return the base with the adapter in its weights, in fp32.

    ``added``: ids of tokens whose rows it trained, maybe by layer.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    options["ignore_mismatched_sizes"] = True  # of a head
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
            rows = {
                name.removeprefix(_PREFIX): weights.get_slice(name).get_shape()[0]
                for name in weights.keys()  # noqa: SIM118
            }
        if auto_class is AutoModelForSequenceClassification:
            options["num_labels"] = _classes(base, rows, folder)
        model, found = from_pretrained(
            auto_class, base, **options, output_loading_info=True
        )
        lost = {*found["missing_keys"], *(n for n, *_ in found["mismatched_keys"])}
        if random := lost - {*rows}:
            said = f"neither the adapter nor its base has {modules(random)}"
            raise ConfigError(f"{said}; expected trained weights", path=folder)
        table = model.get_input_embeddings()
        name = next(n for n, m in model.named_modules() if m is table)
        ids = chain(*added.values()) if isinstance(added, dict) else added
        least = 1 + max([len(table.weight) - 1, *ids])
        needed = rows.get(f"{name}.weight", least)
        if needed != len(table.weight):
            model.resize_token_embeddings(needed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Found missing adapter keys")
            merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except ConfigError:
        raise
    except Exception as error:  # peft, torch and safetensors each have their own
        raise ConfigError(
            f"the adapter does not fit its base model: {brief(error, 300)}; copy it"
            " again",
            path=folder,
        ) from error
    return merged


def _classes(base: Located, rows: dict[str, int], folder: Path) -> int:
    """Return how many classes the classifier in an adapter has."""
    config = from_pretrained(AutoConfig, base, num_labels=_ODD)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    for name in output_layers(model, _ODD):
        if f"{name}.weight" in rows:
            return rows[f"{name}.weight"]
    raise untrained("the adapter holds none", str(folder))
