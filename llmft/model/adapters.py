"""LoRA: train small factors beside the frozen weights (Hu et al., arXiv 2106.09685).

peft does the work; a run ends with the factors merged into the weights, or with the
adapter alone. Meanwhile the frozen weights may be in bf16, and come back as they were.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from llmft.config.fields import GenerationModelArguments, TrainingArguments
from llmft.console import say, warn
from llmft.errors import ConfigError, EnvironmentFault, brief, listed
from llmft.model.probes import trial
from llmft.model.vocabulary import tokens_to_add
from llmft.sources.hub import ADAPTER, Located


def add_lora(
    model: Any,
    args: GenerationModelArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
    located: Located | None = None,
) -> Any:
    """Return ``model`` with LoRA factors to train, or as it is without ``lora_r``.

    The embeddings of ``add_tokens``, which ``tokenizer`` has, are trained as well. What
    is saved names its base as it was ``located``.

    Raises:
        ConfigError: a layer of ``lora_target_modules`` is not there or is tied to
            another one; or peft refuses the model, in its words, or would not load the
            adapter that is to be saved.
    """
    if args.lora_r is None:
        return model
    config = _lora_config(model, args)
    if tokenizer and args.add_tokens:
        config.trainable_token_indices = _rows_of_added(model, args, tokenizer)
    try:
        with warnings.catch_warnings(action="ignore"):  # of Conv1D, which is set then
            wrapped: Any = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"LoRA: {brief(error, 300)}; give the layers to change by"
            " --lora_target_modules"
        ) from error
    if args.lora_save == "adapter":
        _require_loadable(wrapped)
    saved = wrapped.peft_config["default"]
    folder = Path(model.name_or_path).absolute()
    if located and located.commit:  # of the hub
        saved.base_model_name_or_path = located.name
        saved.revision = located.commit
    elif folder.is_dir():  # found from every folder
        saved.base_model_name_or_path, saved.revision = str(folder), None
    trained, total = wrapped.get_nb_trainable_parameters()
    shown = f"LoRA of rank {args.lora_r}: {trained:,} of {total:,} weights train"
    say(f"           {shown}")
    return wrapped


def _require_loadable(model: PeftModel) -> None:
    """Raise ConfigError where peft would not find all the factors that it saves.

    It gives some of them the names that weights have in files of the base (Laguna).
    """
    with warnings.catch_warnings(action="ignore"):
        saved = get_peft_model_state_dict(model, **how_to_save(model))
        found: Any = set_peft_model_state_dict(model, saved)
    if lost := [name for name in found.missing_keys if "lora_" in name]:
        layer = lost[0].partition(".lora_")[0].rpartition("model.")[2]
        raise ConfigError(
            f"LoRA: an adapter of this {model.config.model_type} model would lose"
            f" {len(lost)} of its factors when peft loads it, as of {layer}; use"
            " --lora_save merged"
        )


def _lora_config(model: Any, args: GenerationModelArguments) -> LoraConfig:
    """Return the config of the factors; says which layers get none."""
    wanted = [n for n in args.lora_target_modules or [] if n != "all-linear"]
    # peft would compute them as plain linear layers, which they are not.
    odd = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _is_linear(module)
    ]
    layers = sorted({name.split(".")[-1] for name in odd})
    _require_layers(model, wanted, layers)
    if odd and not wanted:
        shown = listed(layers, 4, str)
        say(f"           without LoRA, computed in their own way: {shown}")
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=args.lora_r or 0,
        lora_alpha=args.lora_alpha or 2 * (args.lora_r or 0),
        lora_dropout=args.lora_dropout,
        target_modules=wanted or "all-linear",
        exclude_modules=None if wanted else odd or None,
    )


@torch.no_grad()
def _is_linear(layer: nn.Linear) -> bool:
    """Return whether a layer computes what its class says, as Falcon's own does."""
    if type(layer).forward == nn.Linear.forward:
        return True
    # Of unequal size: what normalizes its input would leave ones as they are.
    given = torch.linspace(-2, 3, 2 * layer.in_features, dtype=layer.weight.dtype)
    given = given.view(2, -1)
    try:
        found: Any = layer(given)
    except RuntimeError:
        return False
    wanted = nn.functional.linear(given, layer.weight, layer.bias)
    same = isinstance(found, torch.Tensor) and found.shape == wanted.shape
    return same and torch.allclose(found, wanted, 1e-4, 1e-5)


def _rows_of_added(
    model: Any, args: GenerationModelArguments, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]] | None:
    """Return the ids of added tokens, by the layer whose rows of them train."""
    asked = tokens_to_add(args.add_tokens)
    added = sorted(tokenizer.get_added_vocab().keys() & asked)
    ids: Any = tokenizer.convert_tokens_to_ids(added)
    tables = {id(m): m for m in _embeddings(model) if m is not None}
    names = [name for name, m in model.named_modules() if id(m) in tables]
    tied = len({id(m.weight) for m in tables.values()}) < len(tables)
    return dict.fromkeys(names[: 1 if tied else 2], ids) if added else None


def _embeddings(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def _require_layers(model: Any, wanted: list[str], odd: list[str]) -> None:
    embeddings = {*map(id, _embeddings(model))}
    layers = {  # and whether each is an embedding
        name: id(module) in embeddings
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    }
    usable = {n.split(".")[-1] for n, embeds in layers.items() if not embeds}
    for name in wanted:
        if name.split(".")[-1] in odd:
            raise ConfigError(
                f"lora_target_modules: {name} computes in its own way, which peft would"
                " not do; leave it out"
            )
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


def base_of(folder: str) -> tuple[str, str | None] | None:
    """Return the model that the adapter in ``folder`` belongs to, and its revision.

    None without one. Raises ConfigError where adapter_config.json does not name it.
    """
    path = Path(folder) / ADAPTER
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text("utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError):
        base, revision = None, None
    if not isinstance(base, str) or (Path(base) / path.name).is_file():
        raise ConfigError(
            "the adapter's base_model_name_or_path does not name a model; expected"
            " the folder or hub id of the model that it was trained on",
            path=path,
        )
    return base, revision or None


def lighten_base(model: Any, args: TrainingArguments) -> None:
    """Keep the frozen weights of a LoRA training in bf16 on the CPU in bf16; say so.

    Where their originals cannot be kept in ``output_dir``, or ``model`` is not the same
    with them, they stay as they are, and a line says why.
    """
    if not (isinstance(model, PeftModel) and args.bf16 and args.use_cpu):
        return
    try:
        count = lighten(model, Path(str(args.output_dir)))
    except OSError as error:
        reason = f"{args.output_dir}: {error.strerror or error}"
        warn(
            f"the frozen weights stay in fp32; their originals found no place: {reason}"
        )
        return
    if count:
        say(f"frozen     {count:,} weights in bf16, {count * 2 / 1e6:,.0f} MB less")
    else:
        warn("the frozen weights stay in fp32; in bf16 this model gives other logits")


def lighten(model: Any, folder: Path) -> int:
    """Turn the frozen weights of linear layers into bf16; return how many they are.

    Autocast multiplies with just these, which it makes of fp32 anew for every product:
    loss and gradients stay the same bit by bit, embeddings, norms and factors stay in
    fp32, and memory is less (SmolLM2-135M, 8 x 128 tokens on 2 cores of an AMD EPYC: a
    peak of 3.2 GB instead of 3.7). Outside of autocast the model does not run until
    ``restore_base``. Weights that something else also holds, as an embedding does,
    stay, and all do where a trial gives other logits: then 0 returns.

    The originals wait in a file without a name in ``folder``, which is gone with this
    process however it ends. What the model was loaded from could change meanwhile, and
    lacks an adapter that was merged. Raises OSError where they cannot be written.
    """
    weights = _weights_of_products(model)
    originals: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    for weight in weights:
        originals.write(weight.data.contiguous().numpy())
    originals.flush()
    before = _trial(model)
    for weight in weights:
        weight.data = weight.data.bfloat16()
    halves = {id(weight) for weight in weights}
    for tensor in (*model.parameters(), *model.buffers()):
        # All are parts of one mapped file, which stays in memory for the last of them.
        if id(tensor) not in halves:
            tensor.data = tensor.data.clone()
    _cast_inputs(model, False)
    model.originals = originals, weights
    try:
        if torch.equal(_trial(model), before):
            return sum(weight.numel() for weight in weights)
    except RuntimeError:  # a part of the model that runs without autocast
        pass
    restore_base(model)
    return 0


def restore_base(model: Any) -> None:
    """Undo ``lighten``: every weight has the bits that it had.

    Raises OSError or EnvironmentFault where they cannot be read again.
    """
    if not hasattr(model, "originals"):
        return
    originals, weights = model.originals
    originals.seek(0)
    for weight in weights:
        whole = torch.empty(weight.shape)
        if originals.readinto(whole.numpy()) != whole.nbytes:
            raise EnvironmentFault(
                "the original weights cannot be read again",
                hint="resume from the last checkpoint",
            )
        weight.data = whole
    originals.close()
    _cast_inputs(model, True)
    del model.originals


@contextmanager
def light_base(model: Any, in_bf16: bool) -> Iterator[None]:
    """Let a LoRA model run in the block as ``lighten_base`` will have it, for a trial.

    What is compiled for such a model is compiled again where its weights change type.
    """
    weights = []
    if in_bf16 and isinstance(model, PeftModel):
        weights = _weights_of_products(model)
    originals = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.bfloat16()
    _cast_inputs(model, not weights)
    try:
        yield
    finally:
        for weight, whole in zip(weights, originals, strict=True):
            weight.data = whole
        _cast_inputs(model, True)


def _weights_of_products(model: nn.Module) -> list[nn.Parameter]:
    """Return the frozen fp32 parameters that are of linear layers only."""
    linear, others = {}, set()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if type(module) not in (nn.Linear, Conv1D) or weight.requires_grad:
                others.add(id(weight))
            elif weight.dtype == torch.float32:
                linear[id(weight)] = weight
    return [weight for key, weight in linear.items() if key not in others]


def _trial(model: Any) -> torch.Tensor:
    """Return the logits of eight tokens, computed as in a training in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        return trial(model, torch.arange(8)[None])


def _cast_inputs(model: nn.Module, enabled: bool) -> None:
    """Let peft cast what the factors are given to fp32, which autocast then undoes.

    Without: the same bits, 1,255 instead of 1,269 ms a step (as in ``lighten``).
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = enabled


def how_to_save(model: Any) -> dict[str, Any]:
    """Return what ``save_pretrained`` of a model in training is to be told.

    Of embeddings for added tokens their rows train, which are among the factors: peft
    would save all the others beside them.
    """
    return {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}


def save_model(model: Any, folder: Path) -> None:
    """Save what was trained, or the factors alone of a model that is not merged.

    They are then merged in memory: what is measured from now on is what who loads them
    has. As two summands, bf16 rounds small factors away (SmolLM2-135M after four steps:
    loss 5.88, merged 5.59, merged in fp32 5.54).
    """
    config = model.config.get_text_config()
    table = model.get_input_embeddings() if model.can_generate() else None
    pad, eos = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
    if pad == eos and getattr(table, "padding_idx", 0) is None:
        # Trainer calls the eos of the tokenizer padding, too; some families (Youtu)
        # are loaded with zeros for it.
        config.pad_token_id = None
    model.save_pretrained(folder, **how_to_save(model))
    if isinstance(model, PeftModel):
        model.merge_adapter()


def merged(model: Any, args: GenerationModelArguments) -> Any:
    """Return the model to save: factors merged in, unless ``lora_save`` is adapter.

    Its weights are the original ones, or the sum of these and the factors in fp32.
    """
    if args.lora_r is None:
        return model
    restore_base(model)
    return model if args.lora_save == "adapter" else model.merge_and_unload()
