"""Loading tokenizers and models, and checking that they fit together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmft.config.fields import (
    GenerationModelArguments,
    ModelArguments,
    TrainingArguments,
)
from llmft.console import say, warn
from llmft.data.read.labels import SINGLE
from llmft.data.tokens.chat import read_template
from llmft.errors import ConfigError, EnvironmentFault, LlmftError, brief
from llmft.files import publish_folder
from llmft.machine.detect import allowed_bytes, allowed_text, gib
from llmft.model import new_weights, probes
from llmft.model.adapters import base_of
from llmft.model.identity import terms_files
from llmft.model.labels import set_names, untrained
from llmft.model.merge import merge_adapter
from llmft.model.pretrained import from_pretrained, no_safetensors
from llmft.model.vocabulary import add_tokens, resize_embeddings
from llmft.sources import catalog, hub
from llmft.sources.hub import Located


def locate(
    args: ModelArguments, embedded_model: str, auto_class: Any = None
) -> Located:
    """Find the model of a run: a folder, a hub id, or an asset, which is fetched.

    An adapter is merged into its base, see ``merge_adapter``.

    Args:
        embedded_model: is advised where there is no hub.
        auto_class: of the task; None: of an adapter, that of its kind.

    Raises:
        ConfigError: no such folder, or a revision of what has none; or an adapter that
            is for another task, or does not fit its base, or that a second one is to be
            saved on top of.
        EnvironmentFault: it is in none of the places where it could be.
        UnsafeArtifactError: a folder whose weights are a pickle.
    """
    alternative = f"--model_name_or_path {embedded_model} needs no hub"
    name = args.model_name_or_path or ""
    located = _with_weights(_find(name, args.model_revision, alternative))
    if base := base_of(located.path_or_id):
        if getattr(args, "lora_save", None) == "adapter":
            raise ConfigError(
                f"{name} is an adapter, merged before training: a new adapter would"
                " need that model too; use --lora_save merged"
            )
        return merge_adapter(located, _base_of_adapter(*base, located), auto_class)
    return located


def _with_weights(located: Located) -> Located:
    folder = Path(located.path_or_id)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise no_safetensors(located)
    return located


def _find(
    name: str, revision: str | None, alternative: str = "", weights: bool = True
) -> Located:
    if not catalog.is_asset(name):
        located = hub.locate_model(name, revision, alternative, weights)
        if located.note:
            say(located.note)
        return located
    asset = catalog.get(name)
    if asset.kind != "model":
        raise ConfigError(f"{name} is a {asset.kind}, not a model")
    if revision:
        raise ConfigError(
            f"model_revision is {revision}, but {name} has one revision only;"
            " leave it out"
        )
    folder = catalog.fetch(name)
    packed = [m.name for m in asset.members if m.name.endswith(".gguf")]
    path = _unpack_gguf(folder, packed[0]) if packed else folder
    return Located(str(path), local_files_only=True, name=name)


def _unpack_gguf(folder: Path, name: str) -> Path:
    """Return a folder with the model of a GGUF file as safetensors, made once.

    The terms of the model, if any, go along.
    """
    target = catalog.cache_home() / "unpacked" / folder.name
    if any(target.glob("*.safetensors")):
        return target
    say(f"unpacking {name} into the cache (once, less than a minute)")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    with redirect_stderr(StringIO()):  # a bar, which nothing turns off
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # else it is not saved
        )
    with publish_folder(target, replace=True) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for path in terms_files(folder):
            shutil.copyfile(path, staging / path.name)
    return target


def require_memory_for_weights(
    auto_class: Any,
    located: Located,
    args: TrainingArguments,
    lora: bool,
    frozen_embeddings: bool = False,
) -> None:
    """Raise EnvironmentFault where not even the weights fit, before they are loaded.

    With them count, in training, gradients and what AdamW keeps. ``lora``: few train.

    Raises:
        ConfigError: an encoder-decoder model, in a task that it has no head for.
    """
    config = from_pretrained(AutoConfig, located)
    if config.is_encoder_decoder and type(config) not in auto_class._model_mapping:
        raise ConfigError(
            f"{config.model_type} is an encoder-decoder model; llmft trains encoders"
            " (mlm.py, classify.py) and decoders (generate.py): choose one of these",
            path=located.name,
        )
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config)
    except Exception:  # of another kind of model, which loading says in its own words
        return
    weights = sum(p.nbytes for p in model.parameters())
    parts = {"weights": weights}
    if args.do_train and not lora:
        adam = str(getattr(args.optim, "value", args.optim)).startswith("adamw")
        trained = weights
        if frozen_embeddings:
            trained -= model.get_input_embeddings().weight.nbytes
        parts |= {"gradients": trained, "optimizer": 2 * trained * adam}
    held, allowed = psutil.Process().memory_info().rss, allowed_bytes()
    if held + sum(parts.values()) > allowed:
        said = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
        raise EnvironmentFault(
            f"{located.name} needs more memory than it may use, {allowed_text()}:"
            f" {said}, and {gib(held)} for Python and its libraries",
            hint="use a smaller model, or --lora_r 8, which trains few weights"
            if args.do_train and not lora and auto_class is AutoModelForCausalLM
            else "use a smaller model",
        )


def load_tokenizer(located: Located, args: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer; without a pad token it pads with eos, which is said.

    Raises:
        ConfigError: there is no vocabulary, or neither pad nor eos token; or the
            config.json of the model is not one.
        UnsafeArtifactError: the model would have to run foreign code.
    """
    config = from_pretrained(AutoConfig, located)  # its faults come first
    if args.tokenizer_name:
        located, config = _find(args.tokenizer_name, None, weights=False), None
    tokenizer = from_pretrained(AutoTokenizer, located, config=config)
    add_tokens(tokenizer, args.add_tokens)
    known = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), "▁"}
    if known.issuperset(tokenizer.get_vocab()):
        files = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
        raise ConfigError(
            f"the tokenizer has no vocabulary: there is no"
            f" {' or '.join(sorted(files))}; copy the files of the tokenizer there, or"
            " give another with --tokenizer_name",
            path=located.name,
        )
    if isinstance(args, GenerationModelArguments) and args.chat_template_path:
        tokenizer.chat_template = read_template(args.chat_template_path)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"{located.name} has no pad and no eos token: set pad_token in"
                " its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
        say(f"the tokenizer has no pad token: padding with {tokenizer.eos_token!r}")
    return tokenizer


def require_mask_token(tokenizer: PreTrainedTokenizerBase, located: Located) -> None:
    """Raise ConfigError for a tokenizer without mask token, as of a causal model."""
    if tokenizer.mask_token is None:
        raise ConfigError(
            f"{located.name} has no mask token, which masked language modelling"
            " needs: choose a masked model such as distilbert-base-uncased, or"
            " recipes/generate.py for this one"
        )


def set_token_type_ids(tokenizer: PreTrainedTokenizerBase, located: Located) -> None:
    """Let a tokenizer make token types of pairs where the model has a use for them.

    The class of a tokenizer decides otherwise: a generic one makes none for BERT, and
    that of BERT makes some that DistilBERT refuses. It is saved with the tokenizer.
    """
    config = from_pretrained(AutoConfig, located)
    types, names = "token_type_ids", [*tokenizer.model_input_names]
    size = getattr(config, "type_vocab_size", None)
    if size is None:
        model: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
        takes = types in names and types in signature(model.forward).parameters
    else:
        takes = size > 1
    if takes != (types in names):
        names = [*names, types] if takes else [n for n in names if n != types]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def load_model(
    auto_class: Any,
    located: Located,
    args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 0,
    label_names: tuple[str, ...] = (),
    problem_type: str = SINGLE,
    will_train: bool = True,
    init_new_weights: Callable[[PreTrainedModel, list[str]], None] | None = None,
) -> PreTrainedModel:
    """Load the model with the head of its Auto class, and check the tokenizer with it.

    Args:
        label_names: the classes by id, for classification. problem_type: its kind.
        will_train: whether a head that is new will be trained before it is used.
        init_new_weights: is given the model and the names of its new weights, such as
            ``new_weights.init_mlm_head_as_identity``.

    Raises:
        ConfigError: config.json does not fit the weights, no trained classifier
            where none is trained, too few positions or embeddings.
    """
    config = from_pretrained(AutoConfig, located)
    why, note = set_names(config, label_names, problem_type)
    set_dropout(config, args.dropout)
    # A classifier finds the end of a text by it. Of a causal model it would be the eos,
    # whose embedding gets no gradient as padding.
    if label_names and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    model, loaded = from_pretrained(
        auto_class,
        located,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # new_weights tells which of them may be
        attn_implementation=args.attn_implementation,
    )
    new = new_weights.new_weights(model, loaded, located.name, bool(label_names))
    if why:
        new += new_weights.renew_classifier(model, new)
        trained = not loaded["missing_keys"].issuperset(new)
        note = f"the classifier of the file is not used: {why}" if trained else ""
    new_weights.say_loaded(model, new, loaded["unexpected_keys"], note)
    if new and not will_train:
        _require_trained(new, located.name, auto_class, bool(label_names))
    if init_new_weights:
        init_new_weights(model, new)
    if args.add_tokens or args.resize_embeddings:
        resize_embeddings(model, tokenizer)
    probes.check_fits(model, tokenizer, max_seq_length)
    if will_train:
        probes.require_savable(model, located.name)
    if args.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    return model


def _require_trained(new: list[str], name: str, auto_class: Any, labels: bool) -> None:
    """Warn of a head that is new and stays so; a classifier's is refused."""
    if labels:
        raise untrained(f"{new_weights.modules(new)} would be random", name)
    head = auto_class.__name__.removeprefix("AutoModelFor")
    meaning = "what it predicts means nothing; --do_train trains one"
    warn(f"{name} has no trained {head} head: {meaning}")


def _base_of_adapter(base: str, revision: str | None, located: Located) -> Located:
    """Find the base of an adapter, wherever it lies by now if it is an asset."""
    if not os.path.exists(base):
        base = catalog.named_by_folder(os.path.basename(base)) or base
    of_hub = not (os.path.exists(base) or catalog.is_asset(base))
    try:
        found = _with_weights(_find(base, revision if of_hub else None))
    except LlmftError as error:
        said = f"the adapter's base model {base}: {error.found}"
        raise type(error)(said, path=located.name) from error
    return found


def set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout probability that the config has; None changes nothing.

    Raises ConfigError where one of them can only be 0.
    """
    if dropout is None:
        return
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    for part in filter(None, parts):
        for name, value in part.to_dict().items():
            is_rate = "dropout" in name or name.endswith("pdrop")
            if not is_rate or type(value) not in (float, int):
                continue
            try:  # MPT has none of attention, and its type is int
                whole = type(value) is int and dropout == int(dropout)
                setattr(part, name, int(dropout) if whole else dropout)
            except ValueError as error:
                raise ConfigError(f"dropout is {dropout:g}: {brief(error)}") from error
