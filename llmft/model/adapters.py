"""LoRA: train small factors beside the frozen weights (Hu et al., arXiv 2106.09685).

peft does the work; a run ends with the factors merged into the weights, or with the
adapter alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from llmft.config.fields import GenerationModelArguments
from llmft.console import say
from llmft.errors import ConfigError


def add_lora(model: Any, args: GenerationModelArguments) -> Any:
    """Return ``model`` with LoRA factors to train, or as it is without ``lora_r``.

    Raises:
        ConfigError: a layer of ``lora_target_modules`` is not there or is tied to
            another one, or a second adapter is to be saved on top of a first.
    """
    if args.lora_r is None:
        return model
    base = args.model_name_or_path or ""
    if args.lora_save == "adapter" and base_of(base):
        raise ConfigError(
            f"{base} is an adapter, merged before training: a new adapter would need"
            " that model too; use --lora_save merged"
        )
    wanted = [n for n in args.lora_target_modules or [] if n != "all-linear"]
    _require_layers(model, wanted)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=args.lora_r,
        lora_alpha=args.lora_alpha or 2 * args.lora_r,
        lora_dropout=args.lora_dropout,
        target_modules=wanted or "all-linear",
    )
    wrapped: Any = get_peft_model(model, config)
    if Path(model.name_or_path).is_dir():  # found from every folder
        absolute = str(Path(model.name_or_path).absolute())
        wrapped.peft_config["default"].base_model_name_or_path = absolute
    trained, total = wrapped.get_nb_trainable_parameters()
    shown = f"LoRA of rank {args.lora_r}: {trained:,} of {total:,} weights train"
    say(f"           {shown}")
    return wrapped


def _require_layers(model: Any, wanted: list[str]) -> None:
    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    layers = {  # and whether each is an embedding
        name: id(module) in embeddings
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    }
    usable = {n.split(".")[-1] for n, embeds in layers.items() if not embeds}
    for name in wanted:
        found = [e for n, e in layers.items() if n == name or n.endswith(f".{name}")]
        if not found:
            raise ConfigError(
                f"lora_target_modules: no layer is called {name}; there are"
                f" {', '.join(sorted(usable))}; leave it out for all of them"
            )
        if any(found):
            raise ConfigError(
                f"lora_target_modules: {name} is an embedding, which may be tied to"
                " the other one and could not be merged; leave it out"
            )


def base_of(folder: str) -> str | None:
    """Return the model that the adapter in ``folder`` belongs to, None without one.

    Raises ConfigError where adapter_config.json does not name it.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or (Path(base) / path.name).is_file():
        raise ConfigError(
            "the adapter's base_model_name_or_path does not name a model; expected"
            " the folder or hub id of the model that it was trained on",
            path=path,
        )
    return base


def apply_adapter(model: Any, folder: str) -> Any:
    """Return ``model`` with the adapter in ``folder`` merged into its weights."""
    try:
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
        return merged.requires_grad_(True)  # peft has frozen them
    except Exception as error:  # peft, torch and safetensors each have their own
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"the adapter does not fit its base model: {said}; copy it again",
            path=folder,
        ) from error


def merged(model: Any, args: GenerationModelArguments) -> Any:
    """Return the model to save: factors merged in, unless ``lora_save`` is adapter."""
    if args.lora_r is None or args.lora_save == "adapter":
        return model
    return model.merge_and_unload()
