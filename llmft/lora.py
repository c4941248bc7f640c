"""LoRA: train small factors beside the frozen weights (Hu et al., arXiv 2106.09685).

peft does the work; a run ends with the factors merged into the weights, or with the
adapter alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from llmft.arguments import GenerationModelArguments
from llmft.console import say
from llmft.errors import ConfigError


def add_lora(model: Any, args: GenerationModelArguments) -> Any:
    """Return ``model`` with LoRA factors to train, or as it is without ``lora_r``.

    Raises:
        ConfigError: no layer is called as ``lora_target_modules`` says.
    """
    if args.lora_r is None:
        return model
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=args.lora_r,
        lora_alpha=args.lora_alpha or 2 * args.lora_r,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        linear = {n.split(".")[-1] for n, m in model.named_modules() if _has_matrix(m)}
        raise ConfigError(
            f"lora_target_modules is {args.lora_target_modules}: {error};"
            f" layers with weights are {', '.join(sorted(linear))}"
        ) from error
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    say(
        f"           LoRA of rank {args.lora_r}: {trained:,} of {total:,} weights train"
    )
    return wrapped


def _has_matrix(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 2 and not list(module.children())


def base_of(folder: str) -> str | None:
    """Return the model that the adapter in ``folder`` belongs to, None without one."""
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text("utf-8"))["base_model_name_or_path"]


def apply_adapter(model: Any, folder: str) -> Any:
    """Return ``model`` with the adapter in ``folder`` merged into its weights."""
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def merged(model: Any, args: GenerationModelArguments) -> Any:
    """Return the model to save: factors merged in, unless ``lora_save`` is adapter."""
    if args.lora_r is None or args.lora_save == "adapter":
        return model
    return model.merge_and_unload()
